# SPDX-License-Identifier: Apache-2.0
"""Runner lists that nobody thought of: never worse off than with FlashInfer alone.

A hundred examples in every test run, WARMUP_RANDOM_OPS of them by ``make fuzz``. What was found
once is below, by name.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.engines.embedded.host_clock import device_answers

HERE = Path(__file__).parent
sys.path.append(str(HERE.parents[1]))  # after all else: the package stays the wheel's

with device_answers():  # some releases of FlashInfer ask the device while they are imported
    from tests.tuner.drawing import examples
    from tests.tuner.laws import divided
    from tests.tuner.random_ops import Example, Fault, OpPlan, RunnerPlan, Step

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess

IS_FUZZING = "WARMUP_RANDOM_OPS" in os.environ
EXAMPLES = int(os.environ.get("WARMUP_RANDOM_OPS", "100"))


def start(root: Path, function: str, *, tp: int = 1, **arguments: Any) -> list[Any]:
    return launch(
        EngineConfig(layers=1, hidden=8, ffn=8, vocab=8, experts=2, heads=2 * tp, tp=tp,
                     timing="deterministic"),
        root=root,
        script=f"{HERE / 'on_random.py'}:{function}",
        arguments=arguments,
        timeout_s=3000.0 if IS_FUZZING else 110.0,
    )  # fmt: skip


@pytest.mark.timeout(3600 if IS_FUZZING else 120)
def test_random_runner_lists(tmp_path: Path) -> None:
    """An op that FlashInfer tunes is tuned; nothing is slower, nothing raises, and it stays so."""
    arguments = {"number": EXAMPLES, "derandomized": not IS_FUZZING}
    (checked,) = start(tmp_path / "root", "explore", **arguments)
    assert checked >= EXAMPLES


@pytest.mark.timeout(3600 if IS_FUZZING else 120)
@settings(
    max_examples=max(EXAMPLES // 10, 10), deadline=None, database=None, derandomize=not IS_FUZZING,
    report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
    phases=[Phase.generate] if not IS_FUZZING else [Phase.generate, Phase.shrink],
)  # fmt: skip
@given(examples(ranks=2))
def test_certified_ranks_serve_the_same(example: Example) -> None:
    """Two ranks whose times differ, and at times their batches: no false certificate."""
    with tempfile.TemporaryDirectory() as root:
        assert divided(start(Path(root), "on_ranks", tp=2, example=example)) == []


# -- what was found ------------------------------------------------------------------------------


def plain(*runners: RunnerPlan, batches: tuple[int, ...] = (64,), **options: Any) -> Example:
    """One op, called at these batches."""
    steps = options.pop("steps", tuple(Step(0, batch) for batch in batches))
    of_op = {name: options.pop(name) for name in ("config", "order", "faults") if name in options}
    return Example((OpPlan("op0", runners, **of_op),), steps, **options)


FIRST = RunnerPlan(0, 0, 3)
SECOND = RunnerPlan(1, 1, 3)
FOUND = {
    "its forward asks for candidates": plain(RunnerPlan(0, 0, 3, asks_itself=True), margin=0.03),
    "its key transposes an input": plain(RunnerPlan(0, 0, 3, "transposed")),
    "its key slices an input": plain(RunnerPlan(0, 0, 3, "sliced")),
    "another op before such a key": Example(
        (OpPlan("op0", (FIRST,)), OpPlan("op1", (RunnerPlan(0, 0, 3, "transposed"),))),
        (Step(0, 64), Step(1, 64)),
    ),
    "the batch orders the runners": plain(FIRST, SECOND, batches=(4, 64), order="reversed"),
    "a small batch has fewer runners": plain(
        FIRST, SECOND, batches=(4, 64), order="without the last"
    ),
    "one of several keys has the batch": plain(RunnerPlan(0, 0, 3, "raw batch"), SECOND),
    "the only key has the batch": plain(RunnerPlan(0, 0, 3, "raw batch"), batches=(1, 64)),
    "the only key has the batch, at two sizes of a bucket": plain(
        RunnerPlan(0, 0, 3, "raw batch"), batches=(9, 16, 10), config="own size", margin=0.03
    ),
    "one of several keys has the batch, at two sizes of a bucket": plain(
        RunnerPlan(0, 0, 3, "raw batch"), SECOND, batches=(9, 16, 3, 4, 50), config="own size"
    ),
    "the other one of several keys has the batch, at two sizes of a bucket": plain(
        FIRST,
        RunnerPlan(1, 1, 3, "raw batch"),
        batches=(9, 16, 3, 4, 50),
        config="own size",
        margin=0.03,
    ),
    "the default's key alone has the batch, which orders the runners": plain(
        RunnerPlan(0, 0, 1),
        RunnerPlan(1, 1, 0, "raw batch"),
        order="reversed",
        batches=(1,),
        margin=0.03,
    ),
    "both keys have something of the batch, which orders the runners": plain(
        RunnerPlan(0, 0, 0, "parity"),
        RunnerPlan(1, 0, 1, "raw batch"),
        order="reversed",
        batches=(16,),
        margin=0.03,
    ),
    "one of several keys has the batch, and both are of one class": plain(
        RunnerPlan(0, 0, 0, "raw batch"),
        RunnerPlan(1, 0, 0),
        order="reversed",
        batches=(3, 16),
        context="sglang",
    ),
    "the key has what the batch is like": plain(RunnerPlan(0, 0, 3, "parity"), batches=(1,)),
    "one call is skipped": plain(FIRST, steps=(Step(0, 64, "skip"), Step(0, 64))),
    "its tactics are validated": plain(
        RunnerPlan(0, 0, 3, validates="offered"), batches=(16, 64), margin=0.03
    ),
    "no memory for the default": plain(
        RunnerPlan(0, 0, 3, faults=(Fault(-1, "OutOfMemoryError", 16),)), batches=(4,), margin=0.03
    ),
    "two runners of one class": plain(
        RunnerPlan(0, 0, 1, "expanded"), RunnerPlan(1, 0, 4, "none"), batches=(17, 100)
    ),
    "two runners of one class and one tactic": plain(
        RunnerPlan(0, 0, 1, "dtype"), RunnerPlan(1, 0, 1, "none"), batches=(1,), margin=0.03
    ),
    "the fastest default is refused, and the batch orders the runners": plain(
        RunnerPlan(0, 0, 1),
        RunnerPlan(1, 1, 0, "none", validates="raises"),
        order="reversed",
        batches=(1,),
        margin=0.03,
    ),
    "the same, where FlashInfer races the default": plain(
        RunnerPlan(0, 0, 1),
        RunnerPlan(1, 0, 0, "none", validates="raises"),
        order="reversed",
        batches=(1, 16),
        context="sglang",
    ),
    "the batch orders runners of one class": plain(
        RunnerPlan(0, 0, 1, "expanded"),
        RunnerPlan(1, 0, 4, "none"),
        order="reversed",
        batches=(4, 64),
    ),
    "the batch orders runners, and one key has it": plain(
        RunnerPlan(0, 0, 0, "parity"), SECOND, batches=(64, 4), order="reversed", context="sglang"
    ),
    "the batch orders runners of one class, of which the default alone runs": plain(
        RunnerPlan(0, 0, 0),
        RunnerPlan(1, 0, 0, "none"),
        order="reversed",
        batches=(1, 16),
        context="sglang",
    ),
    "a tactic is refused at some batches": plain(
        FIRST, RunnerPlan(1, 1, 2, validates="even"), batches=(17,), margin=0.03
    ),
    "no memory for the key of another op": Example(
        (
            OpPlan("op0", (FIRST,)),
            OpPlan("op1", (RunnerPlan(0, 0, 3, faults=(Fault("key", "OutOfMemoryError", 16),)),)),
        ),
        (Step(0, 3), Step(1, 3)),
    ),
    "the key of the second runner raises at other batches": plain(
        RunnerPlan(0, 0, 1),
        RunnerPlan(1, 0, 0, "none", faults=(Fault("key", "MemoryError", 4),)),
        batches=(1,),
    ),
    "one key follows the batch, and another cannot be told at one": plain(
        RunnerPlan(0, 0, 0, "parity"),
        RunnerPlan(1, 1, 1, faults=(Fault("key", "MemoryError", 64),)),
        batches=(1,),
    ),
    "no memory for one tactic": plain(
        RunnerPlan(0, 0, 3, faults=(Fault(0, "MemoryError", 64),)), margin=0.03
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found_once(name: str, children: Children) -> None:
    assert children.one("on_random:one", example=FOUND[name]) == []


FOUND_ON_RANKS = {
    "the batch orders the runners": FOUND["the batch orders the runners"],
    "the ranks' batches order the runners": plain(
        FIRST, SECOND, batches=(4,), order="reversed", others=((Step(0, 64),),)
    ),
    "one of several keys has the batch": FOUND["one of several keys has the batch"],
    "one of several keys has the batch, and both are of one class": plain(
        RunnerPlan(0, 0, 0, "raw batch"),
        RunnerPlan(1, 0, 2),
        batches=(1,),
        others=((Step(0, 1),),),
    ),
    "one rank's batches have fewer runners": plain(
        RunnerPlan(0, 0, 0),
        RunnerPlan(1, 1, 1, "none"),
        order="without the last",
        batches=(1,),
        others=((Step(0, 16),),),
    ),
    "the ranks meet several sizes of a bucket": plain(
        RunnerPlan(0, 0, 3, "raw batch"),
        SECOND,
        batches=(9, 16, 3),
        config="own size",
        others=((Step(0, 16), Step(0, 10), Step(0, 4)),),
    ),
}


@pytest.mark.parametrize("name", FOUND_ON_RANKS)
def test_what_was_found_on_two_ranks(name: str, children: Children) -> None:
    ranks = children.ranks("on_random:on_ranks", tp=2, example=FOUND_ON_RANKS[name])
    assert divided(ranks) == []
