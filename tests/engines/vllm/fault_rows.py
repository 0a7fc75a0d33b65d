# SPDX-License-Identifier: Apache-2.0
"""The rows of the fault table of `docs/vllm.md`: what is planted, what comes of it on both sides.

Owns the expectations, which `test_faults.py` holds against what it sees, and the table, which this
file writes when it is run as a script. A verdict is one of the words below; two stand for the start
with the fault and the one after it, the cache untouched.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import fault_table as faults
from fault_table import Row, edited, entries, every, last

PAGE = Path(__file__).parents[3] / "docs" / "vllm.md"
BEGIN = "<!-- From here on: python tests/engines/vllm/fault_rows.py -->"
END = "<!-- To here. -->"
ENGINE_BEGIN = "<!-- The whole engine: the same command. -->"
ENGINE_END = "<!-- To here, too. -->"

TWO_ENGINES = "two engines start cold on one directory"
#: A rank that raises stays, as a vLLM worker does that has answered its call with a failure.
LINGER = {"fault": "linger"}


def _first_null(document: faults.Document) -> faults.Document:
    first = next(key for key in document if key != "_metadata")
    return {**document, first: None}


def _half(document: faults.Document) -> faults.Document:
    keys = [key for key in document if key != "_metadata"]
    return {key: v for key, v in document.items() if key not in keys[: len(keys) // 2]}


def _other_keys(document: faults.Document) -> faults.Document:
    return {key.replace("embedded", "other"): value for key, value in document.items()}


def _other_tactic(entry: list[Any]) -> list[Any]:
    return [entry[0], (entry[1] + 1) % 3 if isinstance(entry[1], int) else entry[1], *entry[2:]]


def _swap(tables: Sequence[Path]) -> None:
    first, second = tables[0].read_bytes(), tables[1].read_bytes()
    tables[0].write_bytes(second)
    tables[1].write_bytes(first)


def _lost_and_read_only(tables: Sequence[Path]) -> None:
    folders = {table.parent for table in tables}
    for file in [file for folder in folders for file in folder.rglob("*") if file.is_file()]:
        file.unlink()
    faults.read_only([folder / "gone" for folder in folders])


def _in_the_way(rank: int, root: Path, *, of: int | None = None) -> Mapping[str, Any]:
    """Give a rank a cache root in which files stand where directories should."""
    if of is not None and rank != of:
        return {}
    place = root / "in the way"
    place.mkdir(exist_ok=True)
    for name in ("flashinfer_autotune_cache", "flashinfer_autotune"):
        (place / name).write_text("")
    if not (place / "modelinfos").exists():  # what vLLM has found out about the model's class
        (place / "modelinfos").symlink_to(root / "modelinfos")
    return {"env": {"VLLM_CACHE_ROOT": str(place)}}


ROWS: tuple[Row, ...] = (
    Row(number="-", fault="none", is_cold=True, alone=("tunes", "warm"), ours=("tunes", "warm")),
    Row(
        number="i", fault="a rank's file is lost", spoil=last(None),
        alone=("tunes", "warm"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii", fault="a file is truncated", spoil=last(lambda data: data[: len(data) // 2]),
        alone=("tunes", "warm"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii-b", fault="a file is `[]`", spoil=last(lambda _data: b"[]"),
        options=LINGER, is_lasting=True,
        alone=("hang", "hang"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii-c", fault="one entry of a file is `null`", spoil=last(edited(_first_null)),
        options=LINGER, is_lasting=True,
        alone=("hang", "hang"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii-d", fault="the same in all files", spoil=every(edited(_first_null)),
        alone=("crash", "crash"), ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="iii", fault="a file is from FlashInfer 0.6.0",
        spoil=last(edited(faults.other_version)),
        alone=("tunes", "tunes"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="iii-b", fault="all files are", spoil=every(edited(faults.other_version)),
        alone=("tunes", "tunes"), ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="iv", fault="a file stands where the directory should", is_cold=True,
        is_lasting=True, options=LINGER, per_rank=_in_the_way,
        alone=("crash", "crash"), ours=("tunes", "tunes"),
    ),
    Row(
        number="iv-b", fault="the same for rank 1 only", is_cold=True, is_lasting=True,
        options=LINGER, per_rank=lambda rank, root: _in_the_way(rank, root, of=1),
        alone=("hang", "hang"), ours=("tunes", "warm"),
    ),
    Row(
        number="iv-c", fault="a read-only directory, nothing in it", spoil=_lost_and_read_only,
        is_lasting=True, options={"fault": "unprivileged"},
        # The folder of the journals is there from before: the next start resumes.
        alone=("crash", "crash"), ours=("tunes", "warm"),
    ),
    Row(
        number="iv-d", fault="a read-only directory with the files", spoil=faults.read_only,
        is_lasting=True, options={"fault": "unprivileged"},
        alone=("warm", "warm"), ours=("warm", "warm"),
    ),
    Row(
        number="v", fault="rank 1's forward raises", is_cold=True,
        options={"fault": "dummy_run+linger@1"},
        alone=("hang", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="v-b", fault="the same, and its process ends", is_cold=True,
        options={"fault": "dummy_run@1"},
        alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="v-c", fault="v with `--cpu-distributed-timeout-seconds 5`", is_cold=True,
        options={
            "fault": "dummy_run+linger@1", "extra": {"cpu_distributed_timeout_seconds": 5},
        },
        alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="vi", fault="rank 0 raises in `get_valid_tactics`", is_cold=True,
        options={"fault": "get_valid_tactics+linger@0"},
        alone=("hang", "tunes"), ours=("tunes, on defaults", "tunes"),
    ),
    Row(
        number="vi-b", fault="rank 0's forward raises", is_cold=True,
        options={"fault": "dummy_run+linger@0"},
        alone=("hang", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="vii", fault="a tactic raises on rank 1 only", is_cold=True, is_lasting=True,
        has_nowhere=True,
        options={"fault": "tactic@1"},
        alone=("tunes", "warm"), ours=("tunes, on defaults", "tunes, on defaults"),
    ),
    Row(
        number="viii", fault="a file has other keys", spoil=last(edited(_other_keys)),
        alone=("warm, ranks disagree", "warm, ranks disagree"),
        ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="viii-b", fault="a file has other tactics", spoil=last(entries(_other_tactic)),
        alone=("warm, ranks disagree", "warm, ranks disagree"),
        ours=("warm", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="viii-c", fault="two ranks' files are swapped", spoil=_swap,
        alone=("warm, on defaults", "warm, on defaults"), ours=None, adopted=("warm", "warm"),
    ),
    Row(
        number="viii-c", fault="the same among four ranks", spoil=_swap, num_ranks=4,
        alone=("warm, ranks disagree", "warm, ranks disagree"), ours=None,
        adopted=("warm", "warm"),
    ),
    Row(
        number="ix", fault="all files have half of the shapes", spoil=every(edited(_half)),
        alone=("warm, on defaults", "warm, on defaults"),
        ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="x", fault="SIGKILL of rank 1 while tuning", is_cold=True,
        options={"fault": "kill+linger@1"},
        # Rank 0 had tuned all of it by then, and its journal has it.
        alone=("crash", "tunes"), ours=("ends", "warm"),
    ),
    Row(
        number="x", fault="the same among four ranks", is_cold=True, num_ranks=4,
        options={"fault": "kill+linger@1"},
        alone=("hang", "tunes"), ours=("ends", "warm"),
    ),
    Row(
        number="x", fault="SIGKILL of rank 0 while tuning", is_cold=True,
        options={"fault": "kill+linger@0"},
        alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="xi", fault="a file names a tactic that there is not",
        spoil=last(entries(faults.no_such_tactic)),
        alone=("warm, fails in serving", "warm, fails in serving"),
        ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="xi-b", fault="all files do", spoil=every(entries(faults.no_such_tactic)),
        alone=("warm, fails in serving", "warm, fails in serving"),
        ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="xi-c", fault="xi, and the runner has `validate_tactic`",
        spoil=last(entries(faults.no_such_tactic)), options={"fault": "validate"}, is_lasting=True,
        alone=("warm, ranks disagree", "warm, ranks disagree"),
        ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="xi-d", fault="xi-b, and the runner has `validate_tactic`",
        spoil=every(entries(faults.no_such_tactic)), options={"fault": "validate"}, is_lasting=True,
        alone=("warm, on defaults", "warm, on defaults"),
        ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="history", fault="rank 0's file is lost; rank 1 dies before it saves anew",
        spoil=lambda tables: tables[0].unlink(),
        options={"noise": 1, "fault": "exit_before_save@1"},
        alone=("crash", "warm, ranks disagree"), ours=("ends", "tunes"), adopted=("ends", "warm"),
    ),
    Row(
        number="history", fault="rank 0's file is lost; rank 1's save fails",
        spoil=lambda tables: tables[0].unlink(),
        options={"noise": 1, "fault": "unprivileged+no_save"},
        alone=("crash", "warm, ranks disagree"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="history", fault=TWO_ENGINES, is_cold=True,
        alone=("tunes", "warm, ranks disagree"), ours=("tunes once", "warm"),
    ),
    Row(
        number="history", fault="the same among four ranks", is_cold=True, num_ranks=4,
        alone=("tunes", "warm, ranks disagree"), ours=("tunes once", "warm"),
    ),
)  # fmt: skip


#: These take two starts at a time.
OF_TWO_ENGINES = tuple(row for row in ROWS if row.number == "history" and row.is_cold)


@dataclass(frozen=True)
class EngineRow:
    """One fault of a whole engine, warm or cold, and what a launch comes to on both sides.

    ``alone``, ``ours``: "up", "exit 1" or "hang", and what else there is to say after a comma.
    ``planted``: what goes wrong in a rank, as in `vllm_faults.py`, or ``[]``: rank 1's file.
    ``said``: what the log holds once the fault has struck, unless the engine comes up.
    """

    fault: str
    planted: str
    alone: str
    ours: str
    said: str = ""


ENGINE_ROWS = (
    EngineRow("none, warm", "", "up", "up, 0 tactics timed"),
    EngineRow(
        "rank 1's forward raises", "dummy_run@1", "hang", "exit 1, rank 1's error in the log",
        "planted in dummy_run",
    ),
    EngineRow(
        "rank 1's file is `[]`", "[]", "hang", "up, the file is left as it is",
        "TypeError: pop expected",
    ),
    EngineRow(
        "rank 0's forward raises", "dummy_run@0", "exit 1", "exit 1", "planted in dummy_run"
    ),
    EngineRow(
        "SIGKILL of rank 1 while tuning", "kill@1", "exit 1", "exit 1", "died unexpectedly"
    ),
    EngineRow("a tactic raises on rank 1", "tactic@1", "up", "up, that task on its default"),
)  # fmt: skip


def engine_table() -> str:
    """Return the page's table of whole engines."""
    lines = ["| fault | vLLM alone | with us |", "|---|---|---|"]
    for row in ENGINE_ROWS:
        alone = row.alone.replace("hang", "**hang**")
        lines.append(f"| {row.fault} | {alone} | {row.ours} |")
    return "\n".join(lines)


def page() -> str:
    """Return the page as it should be."""
    found: str = faults.page(PAGE, ROWS, "vLLM", BEGIN, END)
    before, _, rest = found.partition(ENGINE_BEGIN)
    _, _, after = rest.partition(ENGINE_END)
    return f"{before}{ENGINE_BEGIN}\n\n{engine_table()}\n\n{ENGINE_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
