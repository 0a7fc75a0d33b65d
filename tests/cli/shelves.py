# SPDX-License-Identifier: Apache-2.0
"""Small tables made by hand, for the verbs that look at what is kept. Written as the store does."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from warmup_plugin.cache.cached_table import Published
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.paths import LAYOUT
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
from warmup_plugin.identity import Identity
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.process_info import own_card
from warmup_plugin.settings import Settings

VERSION, ARCH = "0.7.2.post1", "sm100"
#: What a receipt says of a process that has ended on this machine.
GONE = {"pid": 1 << 30, "started": 1, "place": own_card().place}
STAMP = {"flashinfer_version": VERSION, "gpu": "NVIDIA B200"}
KEYS = [f"('op::gemm', 'Runner', (({size}, 64), (64, 64)), ())" for size in (1, 2, 4)]


def identity(**changed: Any) -> Identity:
    """The identity of these tests, with some factors changed."""
    base: dict[str, Any] = {"model": "m", "dtype": "bfloat16", "tp": 2, "stamp": STAMP}
    return Identity.of(**{**base, **changed})


def put(
    root: Path, who: Identity | None = None, *, version: str = VERSION, keys: int = 3,
    source: tuple[int, int, int] = (0, 0, 0), tactic: int = 7,
) -> Path:  # fmt: skip
    """Publish a complete table below a root; return its directory."""
    who = who or identity()
    directory = root / LAYOUT / version / ARCH / who.digest
    entries = {key: Entry("Runner", tactic) for key in KEYS[:keys]}
    tasks = {f"{i:032x}": TaskRecord("op::gemm", ((key,),), "tuned", ms=0.5, default_ms=1.0)
             for i, key in enumerate(entries)}  # fmt: skip
    manifest = Manifest(
        identity=who.digest, tasks=tasks, complete=True, engine="vllm", engine_version="0.33.0"
    )
    done = Store(directory, Settings()).publish(source, Table(STAMP, entries), manifest, who)
    assert isinstance(done, Published)
    return directory


def receipt(directory: Path, **changed: Any) -> Path:
    """Write a receipt beside a table, as of now unless told otherwise."""
    values: dict[str, Any] = {
        "engine": "vllm", "engine_version": "0.33.0", "plugin_version": "0.1.0",
        "flashinfer_version": VERSION, "rank": 0, "world_size": 2, "mode": "on",
        "strategy": "leader", "agreement": "certified", "at": time.time(),
        "tasks": {"seen": 3, "from_cache": 3, "tuned": 0}, "identity": directory.name,
    }  # fmt: skip
    document = {**WarmupReport(**values).to_json(), **changed}
    folder = directory / "reports"
    folder.mkdir(exist_ok=True)
    path = folder / f"20261120T000000.{len(list(folder.iterdir())):03d}Z_rank0.json"
    path.write_text(json.dumps(document))
    return path


def tuned(**changed: Any) -> dict[str, Any]:
    """A receipt's row of a tuned task, with some fields changed."""
    row = {"task": "t", "op": "op::gemm", "bucket": "1", "rank": 0, "began": 0.0, "seconds": 0.5,
           "runner": "R", "ms": 1.0, "default_ms": 2.0, "reason": ""}  # fmt: skip
    return {**row, **changed}


def age(directory: Path, days: float) -> None:
    """Make all that is there so old."""
    then = time.time() - days * 86_400
    for path in (*directory.rglob("*"), directory):
        os.utime(path, (then, then))


def files_below(root: Path) -> dict[str, bytes]:
    """Every file with its content."""
    found = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in found}
