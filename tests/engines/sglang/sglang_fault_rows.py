# SPDX-License-Identifier: Apache-2.0
"""The rows of the fault table of `docs/sglang.md`, which this file writes when run as a script.

Owns the expectations, which `test_faults.py` holds against what it sees.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import fault_table as faults
from fault_table import Row, edited, entries, every, last

PAGE = Path(__file__).parents[3] / "docs" / "sglang.md"
BEGIN = "<!-- From here on: python tests/engines/sglang/sglang_fault_rows.py -->"
END = "<!-- To here. -->"


def _forbid(root: Path, _other: Path) -> None:
    root.chmod(0o555)


def _forbid_rank_1(_root: Path, other: Path) -> None:
    for folder in [other, *(path for path in other.rglob("*") if path.is_dir())]:
        folder.chmod(0o555)


def _only_the_last(tables: Sequence[Path]) -> None:
    *others, spoiled = tables
    for table in others:
        table.unlink()
    spoiled.write_bytes(faults.halved(spoiled.read_bytes()))


def _truncated_and_read_only(tables: Sequence[Path]) -> None:
    last(faults.halved)(tables)
    faults.read_only(tables)


TUNES, WARM = ("tunes", "warm"), ("warm", "warm")
ROWS: tuple[Row, ...] = (
    Row(number="-", fault="none", is_cold=True, alone=TUNES, ours=TUNES),
    Row(
        number="i", fault="a rank's file is lost", spoil=last(None),
        alone=TUNES, ours=TUNES, adopted=WARM,
    ),
    Row(
        number="ii", fault="a rank's file is truncated", spoil=last(faults.halved),
        alone=TUNES, ours=TUNES, adopted=WARM,
    ),
    Row(
        number="ii-b", fault="all files are", spoil=every(faults.halved),
        alone=("crash", "crash"), ours=TUNES, adopted=TUNES,
    ),
    Row(
        number="ii-b", fault="all files are `[]`", spoil=every(lambda _data: b"[]"),
        alone=("crash", "crash"), ours=TUNES, adopted=TUNES,
    ),
    Row(
        number="ii-b", fault="all files have an empty entry",
        spoil=every(edited(faults.first_empty)),
        alone=("crash", "crash"), ours=TUNES, adopted=TUNES,
    ),
    Row(
        number="ii-c", fault="rank 1's file is truncated, the others have none",
        spoil=_only_the_last, options={"fault": "linger"}, is_lasting=True,
        alone=("hang", "hang"), ours=None, adopted=TUNES,
    ),
    Row(
        number="iii", fault="a rank's file is from FlashInfer 0.6.0",
        spoil=last(edited(faults.other_version)),
        alone=TUNES, ours=TUNES, adopted=WARM,
    ),
    Row(
        number="iii-b", fault="all files are", spoil=every(edited(faults.other_version)),
        alone=("tunes", "tunes"), ours=TUNES, adopted=TUNES,
    ),
    Row(
        number="iii-c", fault="rank 1 has another cuBLAS", is_cold=True, is_lasting=True,
        has_nowhere=True, is_left_alone=True, options={"fault": "own_cublas"},
        alone=("tunes", "tunes"), ours=("tunes", "tunes"),
    ),
    Row(
        number="iv-a", fault="the directory cannot be written", place=_forbid, is_cold=True,
        is_lasting=True, has_nowhere=True, options={"fault": "unprivileged"},
        alone=("crash", "crash"), ours=("tunes", "tunes"),
    ),
    Row(
        number="iv-b", fault="the same, sound files in it", spoil=faults.read_only,
        is_lasting=True, options={"fault": "unprivileged"},
        alone=("crash", "crash"), ours=WARM, adopted=WARM,
    ),
    Row(
        number="iv-c", fault="the same, one file truncated", spoil=_truncated_and_read_only,
        is_lasting=True, options={"fault": "unprivileged"},
        # The folder of the journals is there from before: the next start resumes.
        alone=("crash", "crash"), ours=TUNES, adopted=WARM,
    ),
    Row(
        number="iv-d", fault="rank 1's directory cannot be written", place=_forbid_rank_1,
        is_cold=True, is_split=True, is_lasting=True, options={"fault": "unprivileged+linger"},
        alone=("hang", "hang"), ours=TUNES,
    ),
    Row(
        number="iv-e", fault="the same, sound files in it", place=_forbid_rank_1,
        is_split=True, is_lasting=True, options={"fault": "unprivileged"},
        alone=("crash", "crash"), ours=WARM,
    ),
    Row(
        number="v", fault="rank 1's forward raises, its process ends", is_cold=True,
        options={"fault": "forward@1"}, alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="v", fault="the same, its process stays", is_cold=True,
        options={"fault": "forward+linger@1"}, alone=("hang", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="v-b", fault="rank 1's forward raises after its last collective", is_cold=True,
        options={"fault": "after_forward@1"},
        alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="vi", fault="rank 0 raises in `get_valid_tactics`, its process stays",
        is_cold=True, options={"fault": "get_valid_tactics+linger@0"},
        alone=("hang", "tunes"), ours=("tunes, on defaults", "tunes"),
    ),
    Row(
        number="vi-b", fault="rank 1 runs out of memory in a preparation", is_cold=True,
        options={"fault": "out_of_memory@1"},
        alone=("tunes, on defaults", "tunes"), ours=TUNES,
    ),
    Row(
        number="vii", fault="a tactic raises on rank 1 only", is_cold=True, is_lasting=True,
        has_nowhere=True,
        options={"fault": "tactic@1"}, alone=TUNES,
        ours=("tunes, on defaults", "tunes, on defaults"),
    ),
    Row(
        number="vii-c", fault="an op cannot run on FlashInfer's default", is_cold=True,
        is_lasting=True, has_nowhere=True, options={"fault": "no_default"},
        alone=TUNES, ours=("tunes", "tunes"),
    ),
    Row(
        number="vii-b", fault="rank 1 offers one tactic less", is_cold=True, is_lasting=True,
        options={"fault": "one_tactic_less@1"}, alone=("crash", "crash"), ours=TUNES,
    ),
    Row(
        number="vii-b", fault="the same among four ranks", is_cold=True, is_lasting=True,
        num_ranks=4, options={"fault": "one_tactic_less+linger@1"},
        alone=("hang", "hang"), ours=TUNES,
    ),
    Row(
        number="viii", fault="keys hold the rank", is_cold=True, is_lasting=True,
        options={"has_rank_keys": True}, alone=("tunes", "tunes"), ours=TUNES,
    ),
    Row(
        number="ix", fault="all files have half of the shapes", spoil=every(edited(faults.half)),
        alone=TUNES, ours=TUNES, adopted=TUNES,
    ),
    Row(
        number="x", fault="SIGKILL of rank 1 while tuning", is_cold=True,
        # Rank 0 had tuned all of it by then, and its journal has it.
        options={"fault": "kill@1"}, alone=("crash", "tunes"), ours=("ends", "warm"),
    ),
    Row(
        number="xi", fault="a file names a tactic that there is not",
        spoil=last(entries(faults.no_such_tactic)),
        alone=TUNES, ours=TUNES, adopted=WARM,
    ),
    Row(
        number="xi-b", fault="all files do", spoil=every(entries(faults.no_such_tactic)),
        alone=("crash", "crash"), ours=TUNES, adopted=TUNES,
    ),
    Row(
        number="xi-c", fault="all files name the default, which is slower",
        spoil=every(entries(faults.default_tactic)),
        alone=("warm, on defaults", "warm, on defaults"),
        ours=("warm, on defaults", "warm, on defaults"),
        adopted=("warm, on defaults", "warm, on defaults"),
    ),
    Row(
        number="xii", fault="rank 1's forward has one op less", is_cold=True, is_lasting=True,
        options={"fault": "one_op_less@1"}, alone=("crash", "crash"), ours=TUNES,
    ),
    Row(
        number="off", fault="`SGLANG_FLASHINFER_AUTOTUNE_CACHE=0`", is_cold=True, is_lasting=True,
        has_nowhere=True, options={"env": {"SGLANG_FLASHINFER_AUTOTUNE_CACHE": "0"}},
        alone=("tunes", "tunes"), ours=("tunes", "tunes"),
    ),
)  # fmt: skip


def page() -> str:
    """Return the page as it should be."""
    found: str = faults.page(PAGE, ROWS, "SGLang", BEGIN, END)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
