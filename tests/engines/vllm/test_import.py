# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin import` from what the real vLLM has written: per-rank files, the managed store."""

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


def run(*argv: object) -> Any:
    """Run a command in this process and return its document."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main([*map(str, argv), "--json"]) == 0
    return json.loads(out.getvalue())


def written_by_vllm(engine: Any) -> dict[str, Any]:
    """Every entry of vLLM's own files, by key, the first rank's where ranks differ."""
    found: dict[str, Any] = {}
    for path, data in sorted(engine.own_files().items()):
        document = json.loads(data)
        if Path(path).parent.name == "entries":
            found.setdefault(document["key"], [document["runner"], document["tactic"]])
        elif Path(path).name != "manifest.json":
            for key, entry in document.items():
                if not key.startswith("_"):
                    found.setdefault(key, entry[:2])
    return found


@pytest.mark.parametrize(
    ("layout", "source"), [({}, "managed"), ({"tp": 2}, "vllm")], ids=["managed", "per-rank"]
)
def test_no_usable_entry_is_lost(
    job: Callable[..., Any], layout: dict[str, Any], source: str
) -> None:
    """Theirs gone after the import, the first start with us times nothing and serves the same."""
    engine = job(**layout)
    alone = engine.start(plugin=False)
    theirs = written_by_vllm(engine)
    assert theirs

    place = engine.root / "managed" if source == "managed" else "vllm"
    done = run("import", place, "--engine-root", engine.root, "--root", engine.root)
    (row,) = done["tables"]
    document = json.loads(Path(row["path"]).read_bytes())
    taken = {key: entry[:2] for key, entry in document.items() if not key.startswith("_")}
    assert taken == theirs
    for folder in ("flashinfer_autotune_cache", "managed"):
        shutil.rmtree(engine.root / folder, ignore_errors=True)

    first = engine.start()
    assert first.timed == [0] * len(first.ranks)
    for ours, before in zip(first.ranks, alone.ranks, strict=True):
        assert ours["served"] == before["served"]
