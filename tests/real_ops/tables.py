# SPDX-License-Identifier: Apache-2.0
"""The tables of what a FlashInfer release tunes, in `sites/<release>.txt`.

A line is ``site | <file function op> | <case> @ <GPU>`` or ``runner | <file class> | <case> @
<GPU>``: the case reaches it there. Behind ``out:`` instead stands the reason why no case does. The
tables are written by hand where a reason is needed; `python -m pytest tests/real_ops/test_sites.py`
says which lines a release lacks, and which are no longer true.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).with_name("sites")
OUT = "out: "


def read(release: str, kind: str) -> dict[str, str]:
    """Return the lines of a kind, "site" or "runner": name -> case and GPU, or reason."""
    found = {}
    for line in (FOLDER / f"{release}.txt").read_text().splitlines():
        if line.startswith(f"{kind} | "):
            _, name, reached = line.split(" | ", 2)
            found[name] = reached
    return found


def reached(release: str, kind: str) -> dict[str, tuple[str, str]]:
    """Return name -> (case, GPU) of what is reached."""
    lines = read(release, kind).items()
    pairs = {name: how.rsplit(" @ ", 1) for name, how in lines if not how.startswith(OUT)}
    return {name: (case, gpu) for name, (case, gpu) in pairs.items()}
