# SPDX-License-Identifier: Apache-2.0
"""The clauses of the design, each held against what was seen of real starts.

    leader    two nodes with a cache root each: the path of the table, rank 0 tuning under a single
              tuning context, its bytes on all ranks, written by local rank 0 of each node
    per_rank  every rank tunes for itself, then the barrier
    sharded   what it saves beside leader

Owns these three cold starts and their verdict; `judge_design` is pure. They run below a temporary
root with the default settings and a strategy each, not the environment's.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cli.demo_run import Check, Ranks, Watch, start
from warmup_plugin.cli.load import TableFile, read_table
from warmup_plugin.cli.output import SHORT, name_ranks, plural, size
from warmup_plugin.engines.embedded import EngineConfig, RankResult
from warmup_plugin.identity import Identity
from warmup_plugin.settings import Settings

_SCRIPT = "warmup_plugin.engines.embedded.evidence:warm_up_watched"
#: Of the leader start; each needs a rank.
NODES = 2


@dataclass(frozen=True)
class Node:
    """What the leader start has left on one node: its cache root, and the tables below it."""

    root: Path
    tables: Sequence[TableFile]


@dataclass(frozen=True)
class Starts:
    """The three starts, and the nodes of the leader one."""

    leader: Ranks
    sharded: Ranks
    per_rank: Ranks
    nodes: Sequence[Node]


def prove(config: EngineConfig, *, watch: Watch) -> tuple[Check, ...]:
    """Start the engine three times and judge the clauses.

    Raises:
        CommandError: a rank failed.
    """
    with tempfile.TemporaryDirectory(prefix="warmup-demo-") as folder:
        return judge_design(start_by_strategy(config, Path(folder), watch=watch))


def start_by_strategy(config: EngineConfig, folder: Path, *, watch: Watch) -> Starts:
    """Start the engine once with each strategy, below a folder that is empty."""
    default = {row.metadata["variable"]: "" for row in fields(Settings)}

    def cold(strategy: str, *roots: Path) -> Ranks:
        env = {**default, "WARMUP_PLUGIN_STRATEGY": strategy}
        return start(strategy, config, roots, env, watch, script=_SCRIPT)

    roots = [folder / f"node{number}" for number in range(NODES)]
    leader = cold("leader", *roots)
    sharded, per_rank = cold("sharded", folder / "sharded"), cold("per_rank", folder / "per_rank")
    return Starts(leader, sharded, per_rank, [_node(root) for root in roots])


def _node(root: Path) -> Node:
    found = sorted(root.rglob("rank_tp*.json"))
    limit = Settings().table_bytes
    tables = [read_table(path, limit) for path in found if not path.match("*.manifest.json")]
    return Node(root, tables)


def judge_design(found: Starts) -> tuple[Check, ...]:
    """Return one check for each clause."""
    return (
        _path(found.leader, found.nodes),
        _one_context(found.leader, found.nodes),
        _one_broadcast(found.leader, found.nodes),
        _local_rank_0_wrote(found.leader, found.nodes),
        _barrier(found.per_rank),
        _sharded_saves(found.leader, found.sharded),
    )


def _path(leader: Ranks, nodes: Sequence[Node]) -> Check:
    """Hold each node's only table against the path that FlashInfer and its identity demand."""
    version = leader[0].report.flashinfer_version
    tables = [(node, table) for node in nodes for table in node.tables]
    wrong = [str(table.path) for node, table in tables if not _is_at_home(node, table, version)]
    if wrong or [len(node.tables) for node in nodes] != [1] * len(nodes):
        by_node = ", ".join(str(len(node.tables)) for node in nodes)
        where = f", of these elsewhere: {', '.join(wrong)}" if wrong else ""
        return Check("path", False, f"tables by node: {by_node}, not one each{where}")
    (digest,) = {table.path.parent.name for _, table in tables}
    files = " and ".join(dict.fromkeys(table.path.name for _, table in tables))
    place = f"flashinfer_autotune/{version}/cpu/{digest[:SHORT]}.../{files}"
    return Check("path", True, f"{place}, where identity.json has that sha256")


def _is_at_home(node: Node, table: TableFile, version: str) -> bool:
    if not isinstance(table.identity, Identity):
        return False
    home = Path("flashinfer_autotune", version, "cpu", table.identity.digest)
    return table.path.parent.relative_to(node.root) == home


def _one_context(leader: Ranks, nodes: Sequence[Node]) -> Check:
    """Count the tuning contexts in which tactics were timed, and who timed what."""
    tuned = _tuned(leader)
    known = _tasks(nodes)
    tuners = [rank for rank in leader if tuned[rank.rank] or rank.evidence.contexts]
    contexts = [len(rank.evidence.contexts) for rank in tuners]
    nested = sum(rank.evidence.nested for rank in leader)
    left = int(leader[0].report.tasks.get("seen", 0)) - tuned[0]
    is_once = 0 < sum(tuned.values()) == known
    holds = is_once and not left and not nested and contexts == [1] * len(tuners)
    lead = leader[0].evidence
    words = f"leader: rank 0 tunes {tuned[0]} tasks, {lead.tactics} tactics, in "
    words += f"{plural(len(lead.contexts), 'tuning context')}, {nested or 'none'} nested"
    others = {rank.rank: tuned[rank.rank] for rank in tuners if rank.rank}
    for rank, number in others.items():
        words += f"; rank {rank} the {number} that only its stage has"
    words += f"; rank 0 has left {left} of its own" if left else ""
    words += "" if is_once else f"; {sum(tuned.values())} tuned of {known}"
    return Check("one context", holds, words)


def _tuned(ranks: Ranks) -> dict[int, int]:
    return {rank.rank: int(rank.report.tasks.get("tuned", 0)) for rank in ranks}


def _tasks(nodes: Sequence[Node]) -> int:
    """Return how many tasks the first node's manifest has a winner for."""
    manifests = [table.manifest for node in nodes[:1] for table in node.tables]
    known = [found.tasks for found in manifests if isinstance(found, Manifest)]
    return sum(task.outcome == "tuned" for tasks in known for task in tasks.values())


def _one_broadcast(leader: Ranks, nodes: Sequence[Node]) -> Check:
    """Follow the table's bytes: put by rank 0, taken by every rank, the same in every file."""
    files = {table.sha256: table.bytes for node in nodes for table in node.tables}
    if len(files) != 1:
        return Check("one broadcast", False, f"the nodes hold {len(files)} different tables")
    ((sha256, number),) = files.items()
    put = [rank.rank for rank in leader if sha256 in rank.evidence.put]
    got = [rank.rank for rank in leader if sha256 in rank.evidence.got]
    words = (
        f"leader: {size(number)} with sha256 {sha256[:SHORT]}, put by {name_ranks(put)}, "
        f"taken by {name_ranks(got)}, the bytes of {plural(len(nodes), 'file')}"
    )
    return Check("one broadcast", put == [0] and len(got) == len(leader), words)


def _local_rank_0_wrote(leader: Ranks, nodes: Sequence[Node]) -> Check:
    """See which processes have moved a table into place."""
    first = [rank.rank for rank in leader if rank.evidence.local_rank == 0]
    wrote = {rank.rank: len(rank.evidence.wrote) for rank in leader if rank.evidence.wrote}
    holds = wrote == dict.fromkeys(first, 1) and len(first) == len(nodes)
    by = ", ".join(f"rank {rank}: {plural(number, 'table')}" for rank, number in wrote.items())
    words = f"leader: {by or 'nobody wrote'}; local rank 0 of {plural(len(nodes), 'node')}: "
    return Check("local rank 0 wrote", holds, words + name_ranks(first))


def _barrier(per_rank: Ranks) -> Check:
    """Compare the last tactic of any rank with the first rank that went on."""
    tasks = [(_count(rank, "tuned"), _count(rank, "seen")) for rank in per_rank]
    is_own = all(0 < tuned == seen for tuned, seen in tasks)
    done = {rank.rank: rank.evidence.last_tactic for rank in per_rank}
    first, last = min(done, key=lambda r: done[r]), max(done, key=lambda r: done[r])
    early = min(rank.evidence.left for rank in per_rank) - done[last]
    words = f"per_rank: {'/'.join(str(tuned) for tuned, _ in tasks)} tasks by rank"
    words += "" if is_own else f" of {'/'.join(str(seen) for _, seen in tasks)}"
    words += f"; rank {first} times its last tactic {done[last] - done[first]:.2f} s before "
    words += f"rank {last}; "
    words += "no rank goes on before that" if early > 0 else f"one goes on {-early:.2f} s too early"
    return Check("barrier", is_own and early > 0, words)


def _count(rank: RankResult, name: str) -> int:
    tasks: Mapping[str, int] = rank.report.tasks
    return tasks.get(name, 0)


def _sharded_saves(leader: Ranks, sharded: Ranks) -> Check:
    """Compare what the busiest rank times: the others wait for it."""
    alone, shared = (max(rank.evidence.tactics for rank in ranks) for ranks in (leader, sharded))
    is_same = sum(_tuned(leader).values()) == sum(_tuned(sharded).values())
    words = f"the busiest rank times {shared} tactics, under leader {alone}"
    words += f": {1 - shared / alone:.0%} less" if 0 < shared < alone else ""
    words += "" if is_same else "; the two have not tuned the same number of tasks"
    return Check("sharded saves", is_same and 0 < shared < alone, words)
