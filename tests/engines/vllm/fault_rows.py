# SPDX-License-Identifier: Apache-2.0
"""The rows of the fault table of `docs/vllm.md`: what is planted, what comes of it on both sides.

Owns the expectations, which `test_faults.py` holds against what it sees, and the table, which this
file writes when it is run as a script. A verdict is one of the words below; two stand for the start
with the fault and the one after it, the cache untouched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "vllm.md"
BEGIN = "<!-- From here on: python tests/engines/vllm/fault_rows.py -->"
END = "<!-- To here. -->"

Document = dict[str, Any]
#: Changes the tables of all ranks, in their order; ours is one for all.
Spoil = Callable[[Sequence[Path]], None]
Verdicts = tuple[str, str]

#: A rank that raises stays, as a vLLM worker does that has answered its call with a failure.
LINGER = {"fault": "linger"}
BOUND = {"WARMUP_PLUGIN_GRACE_S": "1", "WARMUP_PLUGIN_SILENCE_S": "3"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault.

    ``alone``, ``ours``, ``adopted``: vLLM's verdicts; ours, our table spoiled; ours at the first
    start over vLLM's files, spoiled. None: there is no such case. ``options`` are those of the
    start with the fault; ``lasting``: it is there at the next one too.
    """

    number: str
    fault: str
    alone: Verdicts
    ours: Verdicts | None
    adopted: Verdicts | None = None
    num_ranks: int = 2
    spoil: Spoil | None = None
    is_cold: bool = False
    is_lasting: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    per_rank: Callable[[int, Path], Mapping[str, Any]] = lambda _rank, _root: {}


def _last(change: Callable[[bytes], bytes] | None) -> Spoil:
    return lambda tables: _change(tables[-1], change)


def _every(change: Callable[[bytes], bytes]) -> Spoil:
    def spoil(tables: Sequence[Path]) -> None:
        for table in tables:
            _change(table, change)

    return spoil


def _change(table: Path, change: Callable[[bytes], bytes] | None) -> None:
    if change is None:
        table.unlink()
    else:
        table.write_bytes(change(table.read_bytes()))


def _edited(change: Callable[[Document], Document]) -> Callable[[bytes], bytes]:
    return lambda data: json.dumps(change(json.loads(data))).encode()


def _entries(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    return _edited(lambda d: {k: v if k == "_metadata" else change(v) for k, v in d.items()})


def _first_null(document: Document) -> Document:
    first = next(key for key in document if key != "_metadata")
    return {**document, first: None}


def _half(document: Document) -> Document:
    keys = [key for key in document if key != "_metadata"]
    return {key: v for key, v in document.items() if key not in keys[: len(keys) // 2]}


def _other_version(document: Document) -> Document:
    return {**document, "_metadata": {**document["_metadata"], "flashinfer_version": "0.6.0"}}


def _other_keys(document: Document) -> Document:
    return {key.replace("embedded", "other"): value for key, value in document.items()}


def _other_tactic(entry: list[Any]) -> list[Any]:
    return [entry[0], (entry[1] + 1) % 3 if isinstance(entry[1], int) else entry[1], *entry[2:]]


def _no_such_tactic(entry: list[Any]) -> list[Any]:
    return [entry[0], 99, *entry[2:]]


def _swap(tables: Sequence[Path]) -> None:
    first, second = tables[0].read_bytes(), tables[1].read_bytes()
    tables[0].write_bytes(second)
    tables[1].write_bytes(first)


def _read_only(tables: Sequence[Path]) -> None:
    for folder in {table.parent for table in tables}:
        folder.chmod(0o555)


def _lost_and_read_only(tables: Sequence[Path]) -> None:
    folders = {table.parent for table in tables}
    for file in [file for folder in folders for file in folder.rglob("*") if file.is_file()]:
        file.unlink()
    _read_only([folder / "gone" for folder in folders])


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
        number="i", fault="a rank's file is lost", spoil=_last(None),
        alone=("tunes", "warm"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii", fault="a file is truncated", spoil=_last(lambda data: data[: len(data) // 2]),
        alone=("tunes", "warm"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii-b", fault="a file is `[]`", spoil=_last(lambda _data: b"[]"),
        options=LINGER, is_lasting=True,
        alone=("hang", "hang"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii-c", fault="one entry of a file is `null`", spoil=_last(_edited(_first_null)),
        options=LINGER, is_lasting=True,
        alone=("hang", "hang"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="ii-d", fault="the same in all files", spoil=_every(_edited(_first_null)),
        alone=("crash", "crash"), ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="iii", fault="a file is from FlashInfer 0.6.0", spoil=_last(_edited(_other_version)),
        alone=("tunes", "tunes"), ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="iii-b", fault="all files are", spoil=_every(_edited(_other_version)),
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
        alone=("crash", "crash"), ours=("tunes", "tunes"),
    ),
    Row(
        number="iv-d", fault="a read-only directory with the files", spoil=_read_only,
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
        alone=("hang", "tunes"), ours=("tunes, on defaults", "warm, on defaults"),
    ),
    Row(
        number="vi-b", fault="rank 0's forward raises", is_cold=True,
        options={"fault": "dummy_run+linger@0"},
        alone=("hang", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="vii", fault="a tactic raises on rank 1 only", is_cold=True, is_lasting=True,
        options={"fault": "tactic@1"},
        alone=("tunes", "warm"), ours=("tunes, on defaults", "warm, on defaults"),
    ),
    Row(
        number="viii", fault="a file has other keys", spoil=_last(_edited(_other_keys)),
        alone=("warm, ranks disagree", "warm, ranks disagree"),
        ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="viii-b", fault="a file has other tactics", spoil=_last(_entries(_other_tactic)),
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
        number="ix", fault="all files have half of the shapes", spoil=_every(_edited(_half)),
        alone=("warm, on defaults", "warm, on defaults"),
        ours=("tunes", "warm"), adopted=("tunes", "warm"),
    ),
    Row(
        number="x", fault="SIGKILL of rank 1 while tuning", is_cold=True,
        options={"fault": "kill+linger@1"},
        alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="x", fault="the same among four ranks", is_cold=True, num_ranks=4,
        options={"fault": "kill+linger@1"},
        alone=("hang", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="x", fault="SIGKILL of rank 0 while tuning", is_cold=True,
        options={"fault": "kill+linger@0"},
        alone=("crash", "tunes"), ours=("ends", "tunes"),
    ),
    Row(
        number="xi", fault="a file names a tactic that there is not",
        spoil=_last(_entries(_no_such_tactic)),
        alone=("warm, fails in serving", "warm, fails in serving"),
        ours=("warm, on defaults", "tunes"), adopted=("warm", "warm"),
    ),
    Row(
        number="xi-b", fault="all files do", spoil=_every(_entries(_no_such_tactic)),
        alone=("warm, fails in serving", "warm, fails in serving"),
        ours=("warm, on defaults", "tunes"), adopted=("tunes", "warm"),
    ),
    Row(
        number="xi-c", fault="xi, and the runner has `validate_tactic`",
        spoil=_last(_entries(_no_such_tactic)), options={"fault": "validate"}, is_lasting=True,
        alone=("warm, ranks disagree", "warm, ranks disagree"),
        ours=("tunes", "warm"), adopted=("warm", "warm"),
    ),
    Row(
        number="xi-d", fault="xi-b, and the runner has `validate_tactic`",
        spoil=_every(_entries(_no_such_tactic)), options={"fault": "validate"}, is_lasting=True,
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
        number="history", fault="two engines start cold on one directory", is_cold=True,
        alone=("tunes", "warm, ranks disagree"), ours=("tunes once", "warm"),
    ),
)  # fmt: skip


def table() -> str:
    """Return the page's table."""
    head = (
        "", "fault", "vLLM alone", "next", "ours", "next", "ours, over vLLM's files", "next",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in ROWS:
        sides = [
            verdict for side in (row.alone, row.ours, row.adopted) for verdict in side or ("", "")
        ]
        lines.append(f"| {' | '.join((row.number, row.fault, *sides))} |")
    return "\n".join(lines)


def page() -> str:
    """Return the page as it should be: its own words around the table."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
