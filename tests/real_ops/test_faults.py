# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer's real op code does that a toy does not, and the plugin must live with.

Each test is one such habit: a runner that asks itself for candidates, a key that views a tensor, an
order of runners that moves with the batch. The oracle is FlashInfer alone, in the same process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.real_ops.keys import place_of

# A bound for what hangs: a server starts with the first test that asks it.
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

Ask = Callable[..., Any]
BLACKWELL, GEFORCE = "10.0", "12.0"
SHIPPED = 0.03


def winners(entries: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {key: entry[:2] for key, entry in entries.items()}


def check_warm(start: dict[str, Any]) -> None:
    report = start["report"]
    assert report["tactics_timed"] == report["inputs_synthesised"] == 0
    assert report["tasks"]["from_cache"] == report["tasks"]["seen"] > 0


def check_as_alone(found: dict[str, Any]) -> None:
    """All as FlashInfer alone, certified, and a warm second start."""
    cold, *warm = found["starts"]
    assert found["alone"]["entries"]
    assert winners(cold["entries"]) == winners(found["alone"]["entries"])
    assert cold["served"] == found["alone"]["served"]
    assert cold["report"]["agreement"] == "certified"
    assert cold["report"]["passed_through"] == cold["report"]["unshared"] == {}
    for start in warm:
        check_warm(start)
        assert start["served"] == cold["served"]


@pytest.mark.parametrize(
    ("op", "on"), [("mm_bf16_fp4 cute-dsl", BLACKWELL), ("mm_fp4 cute-dsl", GEFORCE)]
)
def test_the_racing_default_is_invisible_to_a_runner(ask: Ask, op: str, on: str) -> None:
    """These runners call their own `get_valid_tactics` in `forward`, and index what they get."""
    found = ask("faults", "starts", on=on, ops=[op], sizes=[300], margin=SHIPPED)
    cold, warm = found["starts"]
    alone = found["alone"]["entries"]
    assert cold["entries"].keys() == alone.keys()
    assert {task["outcome"] for task in found["tasks"]} == {"tuned"}
    assert {task.get("reason", "") for task in found["tasks"]} <= {
        "", "nothing is faster than the default by 3%",
    }  # fmt: skip
    assert cold["report"]["tactics_timed"] > len(alone) > 0
    check_warm(warm)
    assert warm["served"] == cold["served"]


@pytest.mark.parametrize("margin", [0.0, SHIPPED])
def test_tactics_are_compiled_in_parallel(ask: Ask, margin: float) -> None:
    """mm_fp4 sends its own candidates to a pool of compiling processes first of all."""
    found = ask("faults", "compile_pool", on=BLACKWELL, margin=margin)
    assert found["failures"] == []
    assert found["pools"] > 0


def test_a_key_that_views_an_output(ask: Ask) -> None:
    """The low-latency runner takes `out.T` to say its key."""
    check_as_alone(ask("faults", "starts", on=BLACKWELL, ops=["mm_mxfp8 low latency"], sizes=[8]))


def test_no_op_answers_for_another(ask: Ask) -> None:
    """The op before the one whose key views a tensor is tuned as ever."""
    ops = ["bmm_fp8 cutlass", "mm_mxfp8 low latency"]
    check_as_alone(ask("faults", "starts", on=BLACKWELL, ops=ops, sizes=[8]))


@pytest.mark.parametrize("op", ["mm_mxfp8 cute-dsl", "mm_bf16 cute-dsl"])
def test_an_order_of_runners_that_moves_with_the_batch(ask: Ask, op: str) -> None:
    """FlashInfer keeps one key for both orders, so they are one task."""
    sizes = [512, 8] if "mxfp8" in op else [512, 16]
    found = ask("faults", "starts", on=BLACKWELL, ops=[op], sizes=sizes, again=2)
    cold, *warm = found["starts"]
    assert cold["report"]["agreement"] == "certified"
    assert cold["report"]["passed_through"] == cold["report"]["unshared"] == {}
    for start in warm:
        check_warm(start)
        assert start["served"] == cold["served"]
    if "mxfp8" in op:  # the other has a runner whose key holds the batch
        assert winners(cold["entries"]) == winners(found["alone"]["entries"])
        assert cold["served"] == found["alone"]["served"]


@pytest.mark.parametrize("op", ["mm_bf16 cute-dsl", "mm_bf16 auto"])
def test_one_runner_with_the_batch_in_its_key(ask: Ask, op: str) -> None:
    """CuBLASLt's winners cannot be found again; those of the runners beside it are kept."""
    found = ask("faults", "starts", on=BLACKWELL, ops=[op], sizes=[8192])
    alone = winners(found["alone"]["entries"])
    kept = {key: winner for key, winner in alone.items() if "Cublaslt" not in key}
    cold = found["starts"][0]
    assert kept
    ours = winners(cold["entries"])
    assert {key: ours.get(key) for key in kept} == kept
    assert cold["served"] == found["alone"]["served"]


def test_a_skip_list_of_a_nested_context_concerns_its_calls(ask: Ask) -> None:
    found = ask("faults", "nested_skip", on=BLACKWELL)
    assert found["alone"]
    assert winners(found["entries"]) == winners(found["alone"])
    assert found["report"]["skipped_ops"] in ([], {})


@pytest.mark.parametrize(
    ("op", "on"), [("mm_fp4 cute-dsl", GEFORCE), ("mm_fp4 auto", GEFORCE), ("mla auto", BLACKWELL)]
)
def test_a_warm_start_makes_no_input_for_a_runner_that_validates(
    ask: Ask, op: str, on: str
) -> None:
    check_as_alone(ask("faults", "starts", on=on, ops=[op], sizes=[256]))


@pytest.mark.parametrize("op", ["mxint4 moe", "nvfp4 cutlass moe", "nvfp4 trtllm moe"])
def test_weights_are_not_copied(ask: Ask, op: str) -> None:
    """Engines pass them as `w.view(torch.long)` and `w.data`; routing tables are what is copied."""
    found = ask("faults", "memory_held", on=BLACKWELL, op=op)
    assert found["before"] > 0
    assert found["recorded"] - found["before"] < 100_000


def test_weights_of_real_size_are_not_copied(ask: Ask) -> None:
    """672 MiB of experts; recording once held as much again and more."""
    op = "nvfp4 cutlass moe, 8 experts of 4096 x 14336"
    found = ask("faults", "memory_held", on=BLACKWELL, op=op)
    assert found["before"] > 672 * 2**20
    assert found["recorded"] - found["before"] <= 2**20


def test_no_memory_while_recording(ask: Ask) -> None:
    """FlashInfer alone needs none in the forward; what cannot be copied is no error of a start."""
    found = ask("faults", "no_memory_while_recording", on=BLACKWELL, limit=100_000)
    assert found["alone"]
    assert winners(found["entries"]) == winners(found["alone"])
    assert found["report"]["passed_through"] == {}


@pytest.mark.parametrize("margin", [0.0, SHIPPED])
def test_a_decided_default_is_no_gap(ask: Ask, margin: float) -> None:
    """FlashInfer finds an entry for it, so serving neither warns nor counts a fallback."""
    found = ask("faults", "decided_defaults", on=BLACKWELL, margin=margin)
    assert found["alone_fallen_back"] == 0
    # Where the default wins, the entry is the first runner's.
    assert sorted(map(place_of, found["entries"])) == sorted(map(place_of, found["alone"]))
    assert found["fallen_back"] == 0
    assert found["counted"] == {}


@pytest.mark.real_ops
def test_near_ties_as_the_context_has_them(ask: Ask) -> None:
    found = ask("faults", "tie_tolerance", on=BLACKWELL, release="0.7.4", tolerance=0.5)
    assert found["alone"]
    assert winners(found["entries"]) == winners(found["alone"])
