# SPDX-License-Identifier: Apache-2.0
"""One random example with this package and with FlashInfer alone, and what must hold of the two.

Owns the oracle and the laws. The oracle is FlashInfer's tuner in the same process, which tunes the
same forward without this package; the tuner is emptied between the ways. Each law that an example
breaks is a sentence, so that a failure reads like a report.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flashinfer.autotuner import AutoTuner

from tests.tuner import child, random_ops
from tests.tuner.random_ops import CONTEXTS, DEFAULT, UNSTABLE, Example, Model, OpPlan
from warmup_plugin.engines.embedded.worker import Engine
from warmup_plugin.kernel_warmup import warm_up
from warmup_plugin.settings import Settings
from warmup_plugin.tuner.compat import open_contexts

#: Buckets, batches between them, and beyond the largest.
SERVED = (1, 2, 3, 4, 9, 16, 40, 64, 200)
_ROUNDING = 1e-6

#: What an op serves at a batch: (runner's number, tactic) and how long that truly takes.
Answer = tuple[Any, Any, float]


@dataclass
class Way:
    """What one way of starting came to."""

    error: Exception | None = None
    report: Any = None
    served: dict[tuple[str, int], Answer] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    timed: frozenset[str] = frozenset()
    synthesised: frozenset[str] = frozenset()

    def times(self, op: str) -> dict[int, float]:
        return {batch: time for (name, batch), (_, _, time) in self.served.items() if name == op}


def cache_root(engine: Engine) -> Path:
    """Return the engine's cache root, which is there afterwards."""
    assert engine.root is not None
    engine.root.mkdir(parents=True, exist_ok=True)
    return engine.root


def check(engine: Engine, example: Example) -> list[str]:
    """Return the laws that this example breaks."""
    alone = _start(example, lambda forward: _alone(example, forward))
    with tempfile.TemporaryDirectory(dir=cache_root(engine)) as root:
        ours = lambda forward: _ours(engine, example, Path(root), forward)  # noqa: E731
        cold, warm = _start(example, ours), _start(example, ours)
    broken = []
    for name, way in (("cold", cold), ("warm", warm)):
        broken += [
            f"{name}: {law}" for law in (*_raised(alone, way), *_slower(example, alone, way))
        ]
    if cold.error is None and warm.error is None:
        broken += _tuned_again(example, cold, warm)
    return broken


def _start(
    example: Example,
    run: Callable[[Callable[[], None]], Any],
    ops: tuple[OpPlan, ...] | None = None,
) -> Way:
    """Start as a process does that has tuned nothing, then serve these ops or those called."""
    tuner = AutoTuner.get()
    tuner.clear_cache()
    tuner.reset_statistics()
    random_ops.timed.clear()
    random_ops.synthesised.clear()
    way, model = Way(), Model(example)
    with child.counting() as counts:
        try:
            way.report = run(model.forward)
        except Exception as raised:  # noqa: BLE001  # whatever it is, the laws judge it
            way.error = raised
    way.counts = dict(counts)
    way.timed = frozenset(random_ops.timed)
    way.synthesised = frozenset(random_ops.synthesised)
    assert open_contexts(tuner) == 0
    assert child.left_behind() == []
    way.served = {
        (op.name, batch): _serve(model, op, batch)
        for op in (example.called if ops is None else ops)
        for batch in SERVED
    }
    return way


def _alone(example: Example, forward: Callable[[], None]) -> None:
    with CONTEXTS[example.context]():
        forward()


def _ours(engine: Engine, example: Example, root: Path, forward: Callable[[], None]) -> Any:
    given = child.arguments(engine, cache_root=root, tuning_context=CONTEXTS[example.context])
    return warm_up(forward, **{**given, "settings": Settings.from_env(margin=example.margin)})


def _serve(model: Model, op: OpPlan, batch: int) -> Answer:
    """Ask outside all contexts, as serving does, and run what is answered."""
    try:
        runner, tactic = model.choose(op, batch)
    except Exception as raised:  # noqa: BLE001  # planted in a key
        return type(raised).__name__, None, float("inf")
    return runner.plan.number, tactic, random_ops.true_time(runner, tactic, batch)


# -- the laws ------------------------------------------------------------------------------------


def _raised(alone: Way, way: Way) -> list[str]:
    """No exception leaves `warm_up` but the forward's own, which FlashInfer alone lets out too."""
    if way.error is None or type(way.error) is type(alone.error):
        return []
    return [f"raised {type(way.error).__name__}: {way.error}; alone: {alone.error!r}"]


def _slower(example: Example, alone: Way, way: Way) -> list[str]:
    """What serves takes no longer than what FlashInfer alone would serve, but for the margin."""
    if way.error is not None or alone.error is not None:
        return []  # a start that has failed serves nothing
    starved = {op.name for op in example.called if _is_starved(op)}
    odd = {op.name for op in example.called if _refuses_its_own(op) or _hides_its_key(op)}
    found = []
    for (op, batch), ours in way.served.items():
        theirs = alone.served[op, batch]
        # Alone it gives a whole call up to its default, which a tactic need not beat: a start with
        # a process group does as ours does, and leaves out what has no room.
        bound = float("inf") if op in starved and theirs[1] == DEFAULT else theirs[2]
        if op in odd:
            continue
        if ours[2] > bound / (1 - example.margin) + _ROUNDING:
            found.append(f"{op} @ {batch} serves {ours}, FlashInfer alone {theirs}")
    return found


def _refuses_its_own(op: OpPlan) -> bool:
    """Return whether a runner may refuse a tactic at the size at which it was timed.

    FlashInfer stores it all the same, and serves it at other sizes of the bucket; we drop it.
    """
    return op.config == "own size" and any(plan.validates == "even" for plan in op.runners)


def _hides_its_key(op: OpPlan) -> bool:
    """Return whether a runner's key cannot be told at some size.

    FlashInfer stores a winner without asking the other runners there, and a call finds it as long
    as it is in memory and its runner the first. We ask all, as FlashInfer does with a loaded table:
    the task fails, is told of, and is tuned again at the next start.
    """
    return any(fault.place == "key" for plan in op.runners for fault in plan.faults)


def _is_starved(op: OpPlan) -> bool:
    """Return whether something that runs the op finds no memory."""
    faults = [*op.faults, *(fault for plan in op.runners for fault in plan.faults)]
    return any("Memory" in fault.error for fault in faults)


def _is_sound(op: OpPlan) -> bool:
    """Return whether an op's winners can be stored and nothing that runs it runs out of memory.

    What is lost to memory is tried again at the next start; so is an op of which nothing runs. Two
    lists of one op, one within the other, share FlashInfer's file keys and may not share an entry.
    An op whose default fails cannot take the survey's answer, and is passed through.
    """
    if op.order == "without the last" and len(op.runners) > 1:
        return False
    if op.faults or _is_starved(op) or any(plan.key in UNSTABLE for plan in op.runners):
        return False
    places = {fault.place for plan in op.runners for fault in plan.faults}
    if places & {"key", "candidates", "preparation", DEFAULT}:
        return False
    return any(plan.tactics and not plan.faults for plan in op.runners)


def _told(way: Way) -> str:
    """Return what a report says of single ops beside what it has tuned or found stored."""
    report = way.report
    if report is None:
        return ""
    left = {op for op, n in report.ops.items() if any(n.get(k) for k in ("failed", "unshared"))}
    texts = [dict(report.unshared), dict(report.passed_through), report.warnings]
    return json.dumps([*texts, sorted(left)])


def _tuned_again(example: Example, cold: Way, warm: Way) -> list[str]:
    """A warm start times and synthesises nothing for what can be stored, and says what it does."""
    found = []
    for op in example.called:
        if op.name in warm.timed | warm.synthesised:
            if _is_sound(op):
                found.append(f"{op.name}: tuned again by a warm start")
            elif op.name not in _told(warm):
                found.append(f"{op.name}: tuned again by a warm start, which does not say so")
        if _is_sound(op) and warm.times(op.name) != cold.times(op.name):
            found.append(f"{op.name}: a warm start serves {warm.served}, the cold {cold.served}")
    if all(map(_is_sound, example.called)):
        counts = {name: n for name, n in warm.counts.items() if n and name != "reductions"}
        found += [f"a warm start: {counts}"] if counts else []
    return found


# -- several ranks -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rank:
    """What one rank of several came to, as plain values."""

    error: str
    agreement: str
    told: str
    served: dict[tuple[str, int], tuple[Any, Any]]


def on_a_rank(engine: Engine, example: Example) -> Rank:
    """Start with this package on this rank, whose times are its own.

    Served are the ops that all ranks have called: of another one a rank has no task, as a pipeline
    stage has none of another stage's layers.
    """
    rank = engine.ranks.rank
    random_ops.noise = f"rank {rank}"
    forwards = [example.steps, *example.others]
    forwards += [example.steps] * (engine.ranks.world_size - len(forwards))
    own = replace(example, steps=forwards[rank], others=())
    root = cache_root(engine)
    met = set.intersection(*({step.op for step in steps} for steps in forwards))
    ops = tuple(op for number, op in enumerate(example.ops) if number in met)
    way = _start(own, lambda forward: _ours(engine, own, root, forward), ops=ops)
    return Rank(
        f"{type(way.error).__name__}: {way.error}" if way.error else "",
        way.report.agreement if way.report else "",
        _told(way),
        {at: (number, tactic) for at, (number, tactic, _) in way.served.items()},
    )


def divided(ranks: list[Rank]) -> list[str]:
    """Return where ranks differ though all is certified, or without a word of it."""
    if any(rank.error for rank in ranks):
        return [] if all(rank.error for rank in ranks) else [f"raised on one: {ranks}"]
    found = []
    for at in ranks[0].served:
        if len({str(rank.served[at]) for rank in ranks}) > 1:
            answers = [rank.served[at] for rank in ranks]
            if ranks[0].agreement == "certified":
                found.append(f"certified, but {at} serves {answers}")
            elif at[0] not in ranks[0].told:
                found.append(f"{at} serves {answers}, and the report does not say so")
    return found
