# SPDX-License-Identifier: Apache-2.0
"""A live rank of an engine that lacks something, or hands in what it should not: what all come to.

Owns the rows, what comes of each on either side, and the table that an engine's page shows, which
this file writes when it is run as a script. A start with the fault is made on an empty cache and on
one that a sound start has filled; the one after it is sound, unless the fault is one that lasts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from live_faults import AFTER_TUNING, OLDER, has_struck

from warmup_plugin.engines.embedded.config import resolve

#: A sound start takes seconds, on a busy machine more. An engine alone that has not ended after the
#: first of these hangs, one with us after the second.
HANG_S, BOUND_S = 60.0, 110.0
BOUND = {"WARMUP_PLUGIN_GRACE_S": "1", "WARMUP_PLUGIN_SILENCE_S": "3"}
PAGES = Path(__file__).parents[2] / "docs"
BEGIN = "<!-- Live ranks: python tests/engines/live_ranks.py -->"
END = "<!-- End of live ranks. -->"
CONFINING = Path(__file__).parents[1] / "faults" / "test_places.py"

#: What a start comes to, and the one after it.
Words = tuple[str, str]
Cells = Words | Mapping[str, Words | None] | None
ALL, FIRST, SECOND = "", "0", "1"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One fault, of all ranks or of one.

    ``planted``: names of `live_faults.py`. ``alone``: the engine alone, cold and over its own
    files: up | crash | hang; None where it has nothing that this could befall. ``cold``, ``warm``:
    what a start with us and the one after come to; None: it is not tried. ``said``: in the log of
    each rank that lives. ``bound``: what ends the wait for it. ``others``: planted on the other
    ranks. By engine, where the engines differ.
    """

    fault: str
    planted: str = ""
    ranks: str = ALL
    alone: Cells = ("up", "up")
    cold: Cells
    warm: Cells
    said: str = ""
    bound: str = "nothing is waited for"
    is_lasting: bool = False
    strikes: str = ""
    others: str = "nothing"  # SGLang's ranks, where one has a fault, do not meet at the end
    place: Callable[[Any], None] | None = None
    root: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    needs_root: bool = False

    @property
    def who(self) -> str:
        """Return whom it befalls."""
        return f"rank {self.ranks}" if self.ranks else "all ranks"

    def __str__(self) -> str:
        return f"{self.fault}, {self.who}"

    def options(self) -> dict[str, Any]:
        """Return what a start with the fault is told."""
        own = {"fault": self.planted, "env": dict(self.env)}
        others = {"fault": self.others}
        return {"per_rank": lambda rank: own if self.ranks in (ALL, str(rank)) else others}


def of(engine: str, cells: Cells) -> Words | None:
    """Return an engine's own words, None where a side is not tried."""
    return cells if cells is None or isinstance(cells, tuple) else cells[engine]


# -- places ----------------------------------------------------------------------------------------


def _pipe_for_a_lease(job: Any) -> None:
    (folder,) = {table.parent for table in job.tables()}
    (folder / "journal").mkdir(exist_ok=True)
    os.mkfifo(folder / "journal" / "tuning.json")


def _without_tables(job: Any) -> None:
    for table in job.tables():
        for path in table.parent.glob("rank_*"):
            path.unlink()


# -- the rows --------------------------------------------------------------------------------------

KEPT, NEVER_KEPT = ("tunes", "warm"), ("tunes", "tunes")
WARM = ("warm", "warm")
#: The engine warms up by itself; its own files, where it has any, are taken over at the next start.
BY_ITSELF = ("by itself", "warm")

ROWS: tuple[Row, ...] = (
    *(
        Row(
            fault="no place for a temporary file, the linker knows cuBLAS", ranks=ranks,
            planted="no_search_by_files+no_place_for_files", needs_root=True, is_lasting=True,
            cold=KEPT, warm=WARM,
        )
        for ranks in (ALL, FIRST, SECOND)
    ),
    *(
        Row(
            fault="no place for a temporary file, it does not", ranks=ranks,
            planted="no_place_for_files", needs_root=True, is_lasting=True,
            alone=("crash", "crash"), cold=KEPT, warm=WARM,
        )
        for ranks in (ALL, FIRST, SECOND)
    ),
    *(
        Row(
            fault="umask 0777", planted="unprivileged+umask_0777", ranks=ranks, is_lasting=True,
            alone=("crash", "up") if ranks == ALL else ("up", "up"),
            cold=KEPT if ranks == SECOND else NEVER_KEPT, warm=WARM,
        )
        for ranks in (ALL, FIRST, SECOND)
    ),
    *(
        Row(
            fault="standard error closed", planted="no_error_stream", ranks=ranks,
            is_lasting=True, cold=KEPT, warm=WARM,
        )
        for ranks in (ALL, FIRST, SECOND)
    ),
    *(
        Row(
            fault="no new thread can be started", ranks=ranks,
            planted="a_user+no_thread", others="a_user", needs_root=True,
            cold=BY_ITSELF, warm=BY_ITSELF,
            said="threads more can be started",
            bound="asked before the session",
        )
        for ranks in (FIRST, SECOND)
    ),
    *(
        Row(
            fault="a vote of another step", planted="vote_of_another_step", ranks=ranks,
            alone=None, cold=BY_ITSELF, warm=BY_ITSELF, strikes="always",
            said="its vote at step agree is one of step 'load'", bound="the votes of the step",
        )
        for ranks in (FIRST, SECOND)
    ),
    *(
        Row(
            fault="a vote with a field less", planted="vote_without_a_field", ranks=ranks,
            alone=None, cold=BY_ITSELF, warm=BY_ITSELF, strikes="always",
            said="its vote at step agree has no 'vouched'", bound="the votes of the step",
        )
        for ranks in (FIRST, SECOND)
    ),
    *(
        Row(
            fault="the first vote of an older version, a field less", planted="older_vote",
            ranks=ranks, alone=None, cold=BY_ITSELF, warm=BY_ITSELF, strikes="always",
            said=f"warmup-plugin is {OLDER}", bound="the votes of the step",
        )
        for ranks in (FIRST, SECOND)
    ),
    *(
        Row(
            fault="an older version of this package", planted="older_version", ranks=ranks,
            alone=None, cold=BY_ITSELF, warm=BY_ITSELF, said=OLDER,
            bound="the first meeting",
        )
        for ranks in (FIRST, SECOND)
    ),
    Row(
        fault="`WARMUP_PLUGIN_STRATEGY=per_rank`", ranks=FIRST, planted="nothing",
        env={"WARMUP_PLUGIN_STRATEGY": "per_rank"}, alone=None,
        cold=("apart", "tunes"), warm=("apart", "warm"),
        said="WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 forbids that",
    ),
    *(
        Row(
            fault="a list of tactics that must not run", ranks=ranks, planted="blocklist",
            alone=("crash", "up"), cold=("apart", "tunes"), warm=("apart", "warm"),
            said="WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 forbids that",
        )
        for ranks in (FIRST, SECOND)
    ),
    Row(
        fault="a list of tactics that must not run, agreement is required", ranks=SECOND,
        planted="blocklist", env={"WARMUP_PLUGIN_REQUIRE_AGREEMENT": "1"}, alone=None,
        cold=("on defaults", "tunes"), warm=("on defaults", "warm"),
        said="switches.FLASHINFER_TACTICS_BLOCKLIST",
    ),
    Row(
        fault="another switch of FlashInfer that changes which tactics there are", ranks=SECOND,
        planted="nothing", env={"MOE_AUTOTUNE": "1"},
        cold=("apart", "tunes"), warm=("apart", "warm"),
        said="WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 forbids that",
    ),
    Row(
        fault="a pipe where the lease should be", place=_pipe_for_a_lease, alone=None,
        cold=KEPT, warm=WARM,
    ),
    Row(
        fault="a cache root of bytes that are no text", root=os.fsdecode(b"caf\xe9"),
        cold=KEPT, warm=WARM,
    ),
    *(
        Row(
            fault=f"one {call} of a journal's record fails", planted=f"one_failed_{call}",
            alone=None, cold=KEPT, warm=WARM, strikes="cold",
        )
        for call in ("write", "fsync")
    ),
    *(
        Row(
            fault=f"SIGTERM in {step}", planted=f"sigterm_in_{step}", ranks=ranks,
            alone=None, cold=("ends", "warm"), warm=None,
            strikes="cold", said="SIGTERM", bound="the steps that are left",
        )
        for step in AFTER_TUNING
        for ranks in (FIRST, SECOND)
    ),
    # Nothing has been tuned, so the signal ends the process at once. A warm start of SGLang has no
    # such steps: it is certified with the survey's meeting.
    *(
        Row(
            fault=f"SIGTERM in {step} of a warm start", planted=f"sigterm_in_{step}", ranks=ranks,
            alone=None, cold=None, warm={"vllm": ("ends", "warm"), "sglang": None},
            strikes="warm", said=f"rank {ranks} ", bound="a silence",
        )
        for step in AFTER_TUNING
        for ranks in (FIRST, SECOND)
    ),
)  # fmt: skip

SIDES = ("alone, cold", "alone, warm", "cold", "warm")


def cases(engine: str) -> list[Any]:
    """Return the parameters of all rows and sides; one of each fault with us is run by default."""
    found, seen = [], set[str]()
    for row in ROWS:
        sides = dict(zip(SIDES, (row.alone, row.alone, row.cold, row.warm), strict=True))
        tried = [side for side, cells in sides.items() if of(engine, cells) is not None]
        ours = [side for side in tried if not side.startswith("alone")]
        default = "" if row.fault in seen or not ours else ours[len(seen) % len(ours)]
        seen.add(row.fault)
        for side in tried:
            marks = () if side == default else pytest.mark.soak
            found.append(pytest.param(row, side, id=f"{row}, {side}", marks=marks))
    return found


# -- what comes of them ----------------------------------------------------------------------------


def came_to(start: Any) -> str:
    """Return what a start with us came to; all ranks the same."""
    if start.hung:
        return "hang"
    if start.errors:
        assert not start.ranks, "a rank is up without one that has ended"
        return "ends"
    reports = [rank["report"] for rank in start.ranks]
    if not any(reports):
        return "by itself"
    if {report["agreement"] for report in reports} == {"none"}:
        return "apart"
    if {report["agreement"] for report in reports} == {"defaults"}:
        return "on defaults"
    assert len(start.certificate) == 64
    assert not start.disputed
    return "tunes" if sum(start.timed) else "warm"


def check(row: Row, side: str, make: Callable[..., Any], engine: str) -> None:
    """Start with a fault, and once more."""
    if row.needs_root and (reason := resolve(f"{CONFINING}:can_confine")()):
        pytest.skip(reason)
    job = make(tp=2)
    if row.root:
        named = job.root.with_name(row.root)
        if job.root.exists():
            job.root.rename(named)
        job.root = named
    (_check_alone if side.startswith("alone") else _check_ours)(row, side, job, engine)


def _check_alone(row: Row, side: str, job: Any, engine: str) -> None:
    expected = of(engine, row.alone)
    assert expected is not None
    if is_warm := side.endswith("warm"):
        job.start(plugin=False)
    start = job.start(plugin=False, may_fail=True, limit_s=HANG_S, **row.options())
    word = "hang" if start.hung else "crash" if start.errors else "up"
    assert word == expected[is_warm], (word, start.errors)


def _check_ours(row: Row, side: str, job: Any, engine: str) -> None:
    if side == "warm" or row.place is not None:
        job.start()
    if row.place is not None:
        row.place(job)
        if side == "cold":
            _without_tables(job)
    common = {"env": BOUND, "may_fail": True, "limit_s": BOUND_S}

    start = job.start(**common, **row.options())
    again = job.start(**common, **(row.options() if row.is_lasting else {}))

    told = came_to(start), came_to(again)
    expected = of(engine, row.cold if side == "cold" else row.warm)
    logs = [*start.errors.values(), *("\n".join(rank["lines"]) for rank in start.ranks)]
    assert told == expected, (told, logs, again.errors)
    said = row.said
    if said and told[0] not in ("tunes", "warm"):
        silent = sum(said not in log for log in logs)
        assert silent <= (told[0] in ("ends", "apart", "on defaults")), (
            logs
        )  # who dies, or whom rank 0 speaks for
    if told[0] not in ("ends", "by itself"):
        assert not [line for log in logs for line in log.splitlines() if "is lost" in line]
    if row.strikes in ("always", side):
        assert has_struck(job.root.parent), "nothing has gone wrong"
    assert not [line for rank in again.ranks for line in rank["lines"] if "has died" in line]
    third = job.start(**common)
    is_kept = told[1] == "warm" or not row.is_lasting
    assert came_to(third) == ("warm" if is_kept else "tunes"), third.errors


# -- the page --------------------------------------------------------------------------------------


def table(engine: str, title: str) -> str:
    """Return the table of an engine's page."""
    head = (
        "fault", "of", f"{title} alone, cold", "warm", "with us, cold", "next", "with us, warm",
        "next", "bounded by",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in ROWS:
        sides = (row.alone, row.cold, row.warm)
        if of(engine, row.cold) is None and of(engine, row.warm) is None:
            continue
        words = [word for side in sides for word in of(engine, side) or ("", "")]
        shown = [f"**{word}**" if word in ("crash", "hang") else word for word in words]
        lines.append(f"| {' | '.join((row.fault, row.who, *shown, row.bound))} |")
    return "\n".join(lines)


def page(engine: str, title: str) -> str:
    """Return an engine's page as it should be."""
    before, _, rest = (PAGES / f"{engine}.md").read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{table(engine, title)}\n\n{END}{after}"


if __name__ == "__main__":
    for name, shown in (("vllm", "vLLM"), ("sglang", "SGLang")):
        (PAGES / f"{name}.md").write_text(page(name, shown), encoding="utf-8")
