# SPDX-License-Identifier: Apache-2.0
"""The faults of `fault_rows.py`: vLLM alone, and the same with us.

vLLM's own cache answers them with a hang, a crash, silent disagreement, endless tuning; we with
none. Each start ends within its bound but those that are expected to hang, which are watched until
a peer has failed and for `HANG_S` from the start.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_rows import BEGIN, OF_TWO_ENGINES, PAGE, ROWS, page
from fault_table import BOUND, Row, faults_of_ours, sides, verdict, writable_again

engine = pytest.mark.engine
multiprocess = pytest.mark.multiprocess

#: A sound start takes under a second. One in which a rank has failed and another still waits
#: after this long waits for the group's time-out, 30 minutes.
HANG_S = 8.0
#: What any start with us may take, on a busy machine too.
BOUND_S = 40.0

SIDES = sides(ROWS)


@pytest.fixture
def prepared(job: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[[Row, str], Any]]:
    """Return a job with the row's number of ranks and sound tables, before the fault."""

    def make(row: Row, side: str) -> Any:
        found = job(tp=row.num_ranks)
        if not row.is_cold:
            found.start(plugin=side == "ours")
        return found

    with writable_again(tmp_path):
        yield make


def _tables(found: Any, side: str) -> Sequence[Path]:
    if side == "ours":
        return found.tables()  # type: ignore[no-any-return]
    return sorted(found.root.glob("flashinfer_autotune_cache/**/*rank*.json"))


@engine
@multiprocess
@pytest.mark.parametrize(("row", "side"), [p for p in SIDES if p.values[0] not in OF_TWO_ENGINES])
def test_row(prepared: Callable[..., Any], row: Row, side: str) -> None:
    found = prepared(row, side)
    if row.spoil is not None:
        tables = _tables(found, side)
        assert tables
        row.spoil(tables)
    before = found.own_files()
    is_ours = side != "alone"
    common = {
        "plugin": is_ours, "limit_s": BOUND_S if is_ours else HANG_S, "env": BOUND,
        "may_fail": True,
    }  # fmt: skip
    fault = {**row.options, "per_rank": lambda rank: dict(row.per_rank(rank, found.root))}

    start = found.start(**common, **fault)
    lasting = fault if row.is_lasting else {}
    again = found.start(**common, **lasting)

    told = verdict(start, is_ours=is_ours), verdict(again, is_ours=is_ours)
    assert told == getattr(row, side), (told, start.errors, again.errors)
    if is_ours:
        assert found.own_files() == before
        for each in (start, again):
            assert not each.ranks or each.errors or len(each.certificate) == 64
        third = found.start(**common, **lasting)
        assert is_at_rest(row, third), third.errors


def is_at_rest(row: Row, third: Any) -> bool:
    """Return whether the third start is warm and certified, or has nowhere to keep anything."""
    expected = "tunes" if row.number == "iv" or row.has_nowhere else "warm"
    return verdict(third, is_ours=True).startswith(expected) and len(third.certificate) == 64


@engine
@multiprocess
@pytest.mark.parametrize(("row", "side"), [p for p in SIDES if p.values[0] in OF_TWO_ENGINES])
def test_two_engines_start_cold_on_one_directory(
    job: Callable[..., Any], row: Row, side: str
) -> None:
    """Both tune, and each has the last word on another rank's file; with us one tunes."""
    found = job(tp=row.num_ranks)
    starts: list[Any] = []

    def one(noise: int) -> None:
        def save(rank: int) -> dict[str, Any]:
            return {"save_after_s": 4.0 if rank == noise else 2.0}

        starts.append(found.start(plugin=side == "ours", noise=noise, per_rank=save, env=BOUND))

    threads = [threading.Thread(target=one, args=(noise,)) for noise in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = found.start(plugin=side == "ours", env=BOUND)

    assert len(starts) == 2
    both = sorted(verdict(start, is_ours=side == "ours") for start in starts)
    first = {"tunes/tunes": "tunes", "tunes/warm": "tunes once"}.get("/".join(both), both)
    assert (first, verdict(again, is_ours=side == "ours")) == getattr(row, side)
    if side == "ours":
        assert {start.certificate for start in starts} == {again.certificate}


def test_no_row_of_ours_is_a_fault_again() -> None:
    assert not faults_of_ours(ROWS)


def test_the_page_has_these_rows() -> None:
    assert BEGIN in PAGE.read_text(encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python tests/engines/vllm/fault_rows.py"
    )
