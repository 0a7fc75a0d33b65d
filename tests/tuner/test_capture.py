# SPDX-License-Identifier: Apache-2.0
"""What is copied of a call is what its replay needs: no storage, no live tensor, no other key."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from flashinfer.autotuner import DynamicTensorSpec, TunableRunner, TuningConfig

from warmup_plugin.tuner import capture
from warmup_plugin.tuner.capture import Budget, Copies

MANY = 1 << 30


def copies(limit: int = MANY) -> Copies:
    return Copies(Budget(limit))


def unaligned(offset: int, *size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A tensor that begins ``offset`` elements behind an aligned address."""
    count = int(torch.Size(size).numel())
    return torch.arange(offset + count + 64).to(dtype)[offset : offset + count].view(size)


class Runner(TunableRunner):
    def __init__(self, **attributes: Any) -> None:
        for name, value in attributes.items():
            setattr(self, name, value)

    def get_valid_tactics(self, _inputs: Any, _profile: Any) -> list[int]:
        return [0]

    def forward(self, inputs: Any, **_options: Any) -> Any:
        return inputs

    def hook(self, tensors: list[Any]) -> list[Any]:
        return [self, *tensors]


@dataclass
class OldSpec:
    tensor_initializers: list[Any]


@dataclass
class OldConfig:
    dynamic_tensor_specs: tuple[OldSpec, ...]


class Packed(list[Any]):
    """An input list with state, as FlashInfer's unified MoE makes them."""

    launch_state = "fresh"


# -- stand-ins -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(5, 7),
        torch.zeros(5, 7).t(),
        torch.zeros(9, 9)[2:4, ::2],
        torch.zeros(1, 4).expand(3, 4),
        torch.zeros(3, dtype=torch.float8_e4m3fn),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(0, 4),
    ],
    ids=["contiguous", "transposed", "strided", "overlapping", "fp8", "scalar", "empty"],
)
def test_a_stand_in_has_all_but_storage(tensor: torch.Tensor) -> None:
    """Shape, strides, dtype, device and contiguity, and no byte."""
    (kept,) = copies().inputs([tensor], {0})
    assert kept.untyped_storage().nbytes() == 0
    for name in ("shape", "dtype", "device"):
        assert getattr(kept, name) == getattr(tensor, name)
    assert kept.stride() == tensor.stride()
    assert kept.is_contiguous() == tensor.is_contiguous()


def test_a_stand_in_of_another_size_has_no_storage_either() -> None:
    kept = capture.stand_in(torch.zeros(5, 7, dtype=torch.int32), (1 << 16, 1 << 10))
    assert (kept.shape, kept.dtype) == ((1 << 16, 1 << 10), torch.int32)
    assert kept.untyped_storage().nbytes() == 0


# -- clones --------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 1, 3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8], ids=str)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_clone_keeps_content_strides_and_alignment(
    offset: int, dtype: torch.dtype, is_transposed: bool  # noqa: FBT001
) -> None:  # fmt: skip
    """A better aligned clone would be another cache key."""
    tensor = unaligned(offset, 6, 4, dtype=dtype)
    tensor = tensor.t() if is_transposed else tensor
    expected = tensor.clone()
    (kept,) = copies().inputs([tensor], set())
    tensor.fill_(7)
    assert torch.equal(kept, expected)
    assert kept.stride() == tensor.stride()
    assert kept.data_ptr() % 256 == tensor.data_ptr() % 256
    assert kept.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr()


def test_weights_and_views_of_weights_are_not_cloned() -> None:
    """Also views that are made in inference mode, as engines make them."""
    weight = torch.nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    with torch.inference_mode():
        inputs = [weight, weight.t(), weight[1:], weight.view(-1)[3:]]
        kept = copies(limit=0).inputs(inputs, set())
    assert all(new is old for new, old in zip(kept, inputs, strict=True))


SEEN_AS: dict[str, Callable[[torch.nn.Parameter], torch.Tensor]] = {
    "data": lambda weight: weight.data,
    "another type": lambda weight: weight.view(torch.int64),
    "data of another type": lambda weight: weight.data.view(torch.int32),
    "a part of data": lambda weight: weight.data[256:],
    "detached": lambda weight: weight.detach(),
}


@pytest.mark.parametrize("name", SEEN_AS)
@pytest.mark.parametrize("inference", [False, True], ids=["plain", "inference"])
def test_a_weight_is_known_by_its_storage(name: str, *, inference: bool) -> None:
    """NVFP4 and MXINT4 MoEs see their weights so, in both engines."""
    weight = torch.nn.Parameter(torch.zeros(1024, 512, dtype=torch.uint8), requires_grad=False)
    with torch.inference_mode(inference):
        seen = SEEN_AS[name](weight)
    budget = Budget(MANY)
    assert Copies(budget).inputs([seen], set())[0] is seen
    assert budget.left == MANY


def test_a_marked_instance_of_a_tensors_subclass_is_a_weight() -> None:
    class Sharded(torch.Tensor):
        pass

    weight = torch.zeros(1024, 64).as_subclass(Sharded)
    weight._is_param = True  # what `torch.nn.Parameter` makes of it
    budget = Budget(MANY)
    plain = weight.as_subclass(torch.Tensor)
    assert Copies(budget).inputs([plain], set())[0] is plain
    assert Copies(budget).inputs([torch.zeros(1024, 64)], set())[0] is not plain
    assert budget.left < MANY


def test_where_no_memory_is_left_a_tensor_is_referenced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As past the budget; FlashInfer alone needs no copy either."""

    def no_memory(*_: Any, **_options: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("planted")

    tensor = torch.arange(8)
    monkeypatch.setattr(torch, "empty", no_memory)
    assert copies().inputs([tensor], set())[0] is tensor


def test_inputs_to_ask_about_have_a_size_and_can_be_viewed() -> None:
    """What a stand-in cannot: torch lets nobody view it."""
    stand_in = capture.stand_in(torch.zeros(300, 8), (300, 8))
    with pytest.raises(RuntimeError, match="setStorage"):
        stand_in.t()
    weight = torch.ones(8)
    inputs = [stand_in, weight, None]
    dynamic, static, none = capture.at_size(inputs, ((4, 8), (8,), (0,)), {0})
    assert (dynamic.t().shape, dynamic[:1].shape, dynamic.dtype) == ((8, 4), (1, 8), torch.float32)
    assert static is weight
    assert none is None


def test_tensors_whose_elements_overlap_are_not_cloned() -> None:
    """A clone would have other strides, or as much memory as elements."""
    tensor = torch.zeros(1, 4).expand(1000, 4)
    (kept,) = copies().inputs([tensor], set())
    assert kept is tensor


def test_the_budget_is_kept() -> None:
    """What does not fit is referenced and counted; what fits afterwards is still cloned."""
    budget = Budget(100)
    made = Copies(budget)
    inputs = [torch.zeros(10), torch.zeros(20), torch.zeros(15), None, "text"]
    kept = made.inputs(inputs, set())
    assert [new is old for new, old in zip(kept, inputs, strict=True)] == [
        False, True, False, True, True,
    ]  # fmt: skip
    assert (budget.left, budget.refused) == (0, 1)


def test_what_occurs_twice_is_cloned_once() -> None:
    """In the inputs, a keyword and a closure alike, for one price."""
    table, budget = torch.arange(10), Budget(MANY)
    made = Copies(budget)

    def hook(_tensors: Any) -> Any:
        return table

    (as_input,) = made.inputs([table], set())
    as_keyword = made.kwargs({"table": table})["table"]
    assert made.config(TuningConfig(inputs_pre_hook=hook)).inputs_pre_hook([]) is as_input
    assert as_keyword is as_input
    assert MANY - budget.left == 80


def test_integer_keywords_are_cloned_and_others_referenced() -> None:
    """Routing tables are overwritten by the engine; outputs and scales are sized for the call."""
    kwargs = {
        "ids": torch.arange(3),
        "mask": torch.ones(3, dtype=torch.bool),
        "out": torch.zeros(3),
    }
    kept = copies().kwargs(kwargs)
    assert list(kept) == list(kwargs)
    assert [kept[name] is kwargs[name] for name in kwargs] == [False, False, True]


# -- inputs and runners --------------------------------------------------------------------------


def test_list_subclasses_keep_class_and_state() -> None:
    packed = Packed([torch.zeros(3), None])
    packed.launch_state = "packed"
    kept = copies().inputs(packed, {0})
    packed.launch_state = "later"
    assert type(kept) is Packed
    assert kept.launch_state == "packed"
    assert kept[0] is not packed[0]
    assert packed[0].untyped_storage().nbytes() == 12


def test_a_runners_copy_hashes_like_it_and_is_not_mutated_with_it() -> None:
    """Attributes that cannot be hashed enter FlashInfer's hash by identity: they are shared."""
    runner = Runner(stage=1, workspace=torch.zeros(3), plans={"a": 1}, inner=Runner(pack=1))
    twin = copies().runner(runner)
    assert hash(twin) == hash(runner)
    before = hash(twin)
    runner.stage, runner.inner.pack = 2, 2
    assert (twin.stage, twin.inner.pack, hash(twin)) == (1, 1, before)
    assert twin.workspace is runner.workspace
    assert twin.plans is runner.plans


def test_runners_that_refer_to_each_other_are_copied_once() -> None:
    runner = Runner()
    runner.self = runner
    made = copies()
    twin = made.runner(runner)
    assert twin.self is twin is made.runner(runner)


# -- functions of the config ---------------------------------------------------------------------


def over_a_closure(table: torch.Tensor) -> Callable[..., Any]:
    def initializer(_shapes: Any = None, _dtype: Any = None, _device: Any = None) -> Any:
        return table

    return initializer


def over_a_list(table: torch.Tensor) -> Callable[..., Any]:
    values = [None, (table, 1)]

    def initializer(*_: Any, key: int = 1) -> Any:
        return values[key][0]  # type: ignore[index]

    return initializer


def over_a_function(table: torch.Tensor) -> Callable[..., Any]:
    inner = over_a_closure(table)

    def initializer(*_: Any) -> Any:
        return inner()

    return initializer


def over_a_partial(table: torch.Tensor) -> Callable[..., Any]:
    return functools.partial(lambda *_, kept: kept, kept=table)


@pytest.mark.parametrize(
    "make",
    [over_a_closure, over_a_list, over_a_function, over_a_partial],
    ids=lambda make: make.__name__,
)
@pytest.mark.parametrize("place", ["initializer", "hook"])
def test_functions_keep_what_they_had_closed_over(
    make: Callable[[torch.Tensor], Callable[..., Any]], place: str
) -> None:
    """The engine overwrites its routing table; the replay still sees the one of the call."""
    table = torch.arange(4)
    function = make(table)
    config = (
        TuningConfig(tensor_initializers=((2, function),))
        if place == "initializer"
        else TuningConfig(inputs_pre_hook=function)
    )
    kept = copies().config(config)
    table.fill_(9)
    found = kept.inputs_pre_hook or kept.tensor_initializers[0][1]
    assert found().tolist() == [0, 1, 2, 3]
    assert function().tolist() == [9, 9, 9, 9]
    if place == "initializer":
        assert kept.tensor_initializers[0][0] == 2


def test_hooks_of_a_runner_are_its_copys() -> None:
    """FlashInfer's unified runners prepare their own workspace in a bound hook or a closure."""
    runner = Runner(inner=Runner())
    inner = runner.inner

    def over_inner(_tensors: Any) -> Any:
        return inner

    made = copies()
    twin = made.runner(runner)
    bound = made.config(TuningConfig(inputs_pre_hook=runner.hook)).inputs_pre_hook
    closed = made.config(TuningConfig(inputs_pre_hook=over_inner)).inputs_pre_hook
    assert bound([1]) == [twin, 1]
    assert closed([]) is twin.inner
    assert over_inner([]) is inner


def test_a_config_with_nothing_to_copy_is_itself() -> None:
    """FlashInfer finds buckets by it; engines keep it for ever."""
    calls = []

    def plain(tensors: Any) -> Any:
        calls.append(tensors)
        return tensors

    spec = DynamicTensorSpec((0,), (0,), (1, 2), lambda x: x)
    config = TuningConfig(
        dynamic_tensor_specs=(spec,),
        tensor_initializers=((0, torch.zeros),),
        inputs_pre_hook=plain,
    )
    assert copies().config(config) is config
    assert copies().config(TuningConfig(inputs_pre_hook=Runner().hook)).inputs_pre_hook is not None


def test_initializers_in_the_spec_are_kept_too() -> None:
    """Releases before 0.6.18 have them there."""
    table = torch.arange(4)
    config = OldConfig((OldSpec([over_a_closure(table), torch.zeros]), OldSpec([torch.zeros])))
    kept = copies().config(config)
    table.fill_(9)
    assert kept.dynamic_tensor_specs[0].tensor_initializers[0]().tolist() == [0, 1, 2, 3]
    assert kept.dynamic_tensor_specs[0].tensor_initializers[1] is torch.zeros
    assert kept.dynamic_tensor_specs[1] is config.dynamic_tensor_specs[1]


def test_a_function_that_refers_to_itself_comes_to_an_end() -> None:
    table = torch.arange(4)

    def hook(_tensors: Any, *, again: bool = False) -> Any:
        return hook(_tensors) if again else table

    kept = copies().config(TuningConfig(inputs_pre_hook=hook)).inputs_pre_hook
    table.fill_(9)
    assert kept([]).tolist() == [0, 1, 2, 3]
