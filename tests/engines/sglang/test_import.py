# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin import` from what the real SGLang has written: one file for each rank."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.cli import main

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

EXTEND = {"SGLANG_FLASHINFER_AUTOTUNE_EXTEND": "1"}


def test_no_usable_entry_is_lost(job: Callable[..., Any]) -> None:
    """Theirs gone after the import, the first start with us times nothing and serves the same."""
    engine = job(tp=2)
    alone = engine.start(plugin=False, env=EXTEND)
    theirs: dict[str, Any] = {}
    for _, data in sorted(engine.own_files().items()):
        for key, entry in json.loads(data).items():
            if not key.startswith("_"):
                theirs.setdefault(key, entry[:2])
    assert theirs

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        place = ("--engine-root", str(engine.root), "--root", str(engine.root))
        assert main(["import", "sglang", *place, "--json"]) == 0
    (row,) = json.loads(out.getvalue())["tables"]
    document = json.loads(Path(row["path"]).read_bytes())
    assert {key: entry[:2] for key, entry in document.items() if key[0] != "_"} == theirs
    shutil.rmtree(engine.root / "flashinfer")

    first = engine.start(env=EXTEND)
    assert first.timed == [0] * len(first.ranks)
    for ours, before in zip(first.ranks, alone.ranks, strict=True):
        assert ours["served"] == before["served"]
