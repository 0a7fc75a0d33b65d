# SPDX-License-Identifier: Apache-2.0
"""The faults of `sglang_fault_rows.py`: SGLang alone, and the same with us.

Each start ends within its bound but those that are expected to hang: watched for `HANG_S`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fault_table import BOUND, Row, faults_of_ours, sides, verdict, writable_again
from sglang_fault_rows import BEGIN, PAGE, ROWS, page

engine = pytest.mark.engine
multiprocess = pytest.mark.multiprocess

#: A sound start takes two seconds. One in which a rank has ended and another still waits after this
#: long waits for SGLang's time-out, two hours.
HANG_S = 8.0
#: What any start with us may take, on a busy machine too.
BOUND_S = 60.0


@pytest.fixture
def clean_up(tmp_path: Path) -> Iterator[None]:
    with writable_again(tmp_path):
        yield


def _tables(found: Any, side: str) -> Sequence[Path]:
    if side == "ours":
        return found.tables()  # type: ignore[no-any-return]
    return sorted(found.root.glob("**/flashinfer/autotune/**/rank_*.json"))


@engine
@multiprocess
@pytest.mark.usefixtures("clean_up")
@pytest.mark.parametrize(("row", "side"), sides(ROWS))
def test_row(job: Callable[..., Any], row: Row, side: str) -> None:
    is_ours, found = side != "alone", job(tp=row.num_ranks)
    other = found.root / "rank1" if row.is_split else found.root
    other.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"may_fail": True, "plugin": is_ours}
    common["per_rank"] = lambda rank: {
        "env": {"SGLANG_CACHE_DIR": str(other if rank == 1 else found.root)}
    }
    if not row.is_cold:
        assert not found.start(**{**common, "plugin": side == "ours"}).errors
    if row.place is not None:
        row.place(found.root, other)
    if row.spoil is not None:
        tables = _tables(found, side)
        assert tables
        row.spoil(tables)
    before = found.own_files()
    common["limit_s"] = HANG_S if not is_ours and "hang" in row.alone else BOUND_S
    options = {**row.options, "env": {**BOUND, **row.options.get("env", {})}}
    lasting = options if row.is_lasting else {"env": BOUND}

    start, again = found.start(**common, **options), found.start(**common, **lasting)

    told = verdict(start, is_ours=is_ours), verdict(again, is_ours=is_ours)
    assert told == getattr(row, side), (told, start.errors, again.errors)
    if is_ours:
        assert row.is_left_alone or found.own_files() == before
        third = found.start(**common, **lasting)
        assert verdict(third, is_ours=True) == (again_of(row, side)), third.errors


def again_of(row: Row, side: str) -> str:
    """Return what the third start comes to: warm, unless there is nowhere to keep anything."""
    after: str = getattr(row, side)[1]
    return after if row.has_nowhere else after.replace("tunes", "warm")


def test_no_row_of_ours_is_a_fault_again() -> None:
    assert not faults_of_ours(ROWS)


def test_the_page_has_these_rows() -> None:
    assert BEGIN in PAGE.read_text(encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python tests/engines/sglang/sglang_fault_rows.py"
    )
