# SPDX-License-Identifier: Apache-2.0
"""Which examples of `random_ops.py` Hypothesis draws.

Owns the strategies. Most runners are sound, and most examples have one oddity or two: what breaks
alone is found, and what breaks only in company as well.
"""

from __future__ import annotations

from hypothesis import strategies as st

from tests.tuner.random_ops import CONTEXTS, ERRORS, KEYS, Example, Fault, OpPlan, RunnerPlan, Step
from tests.tuner.toys import BUCKETS

_BATCHES = (1, 3, 4, 9, 16, 17, 64, 100)
_STABLE = ("dtype", "none", "transposed", "sliced", "narrowed", "expanded", "viewed")

_errors = st.sampled_from(sorted(ERRORS))
_least = st.sampled_from((1, *BUCKETS[1:]))


def _rarely(strategy: st.SearchStrategy[tuple[Fault, ...]]) -> st.SearchStrategy[tuple[Fault, ...]]:
    return st.one_of(st.just(()), st.just(()), st.just(()), strategy)


_runner_faults = _rarely(
    st.tuples(
        st.builds(
            Fault,
            st.sampled_from((0, 1, -1, "candidates", "key", "preparation")),
            _errors,
            _least,
        )
    )
)
_op_faults = _rarely(
    st.tuples(st.builds(Fault, st.sampled_from(("inputs", "hook")), _errors, _least))
)
_keys = st.one_of(st.sampled_from(_STABLE), st.sampled_from(sorted(KEYS)))


@st.composite
def _runners(draw: st.DrawFn) -> tuple[RunnerPlan, ...]:
    """One to three runners, no two of which share class and key: FlashInfer could not either."""
    plans = [
        RunnerPlan(
            number=number,
            kind=draw(st.integers(0, 2)),
            tactics=draw(st.integers(0, 4)),
            key=draw(_keys),
            asks_itself=draw(st.booleans()),
            validates=draw(st.sampled_from(("", "", "", "offered", "even", "raises"))),
            faults=draw(_runner_faults),
        )
        for number in range(draw(st.sampled_from((1, 2, 2, 3))))
    ]
    seen: dict[tuple[int, str], RunnerPlan] = {}
    for plan in plans:
        seen.setdefault((plan.kind, plan.key), plan)
    return tuple(seen.values())


def _steps(ops: int) -> st.SearchStrategy[tuple[Step, ...]]:
    step = st.builds(
        Step,
        st.integers(0, ops - 1),
        st.sampled_from(_BATCHES),
        st.sampled_from(("", "", "", "skip", "skip another", "tune", "no tuning")),
    )
    return st.lists(step, min_size=1, max_size=4).map(tuple)


@st.composite
def examples(draw: st.DrawFn, *, ranks: int = 1) -> Example:
    """One or two ops, up to four calls; with several ranks some give them other batches."""
    ops = tuple(
        OpPlan(
            name=f"op{index}",
            runners=draw(_runners()),
            config=draw(st.sampled_from(("floor", "floor", "own size", "cold", "graph", "static"))),
            order=draw(st.sampled_from(("fixed", "reversed", "without the last"))),
            faults=draw(_op_faults),
        )
        for index in range(draw(st.integers(1, 2)))
    )
    steps = draw(_steps(len(ops)))
    others = [draw(st.one_of(st.just(steps), _steps(len(ops)))) for _ in range(ranks - 1)]
    return Example(
        ops=ops,
        steps=steps,
        others=tuple(others),
        context=draw(st.sampled_from(sorted(CONTEXTS))),
        margin=draw(st.sampled_from((0.0, 0.03))),
        keeps_runners=draw(st.booleans()),
    )
