# SPDX-License-Identifier: Apache-2.0
"""What earlier starts have reported: how long each task took.

Owns the way back from the reports beside the tables, of this identity and its siblings, to seconds
by task label. Reads only, and little: the newest few. What cannot be read is left out.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

import msgspec

from warmup_plugin.cache.files import read_file
from warmup_plugin.cache.store import REPORTS
from warmup_plugin.runtime.safe_json import Miss, decode

#: So many reports are read; each may have every task of a job.
_MOST: Final = 8


class _Costs(msgspec.Struct):
    """The part of a report that is asked for; the rest may be of any version."""

    costs: dict[str, float] = {}


_DECODER: Final = msgspec.json.Decoder(_Costs)


def seconds_by_label(directory: Path, limit: int) -> dict[str, float]:
    """Return what the newest reports of a directory and its siblings say; the newest one wins.

    ``limit``: bytes of the largest report that is read.
    """
    found: dict[str, float] = {}
    for path in _newest(directory):
        content = read_file(path, limit).content
        read = decode(_DECODER, content) if isinstance(content, bytes) else content
        if not isinstance(read, Miss):
            found = {**read.costs, **found}
    return found


def _newest(directory: Path) -> list[Path]:
    marks = []
    with contextlib.suppress(OSError):
        for path in directory.parent.glob(f"*/{REPORTS}/*.json"):
            with contextlib.suppress(OSError):
                is_own = path.parent.parent == directory
                marks.append((is_own, path.stat().st_mtime_ns, path))
    return [path for *_, path in sorted(marks, reverse=True)[:_MOST]]
