# SPDX-License-Identifier: Apache-2.0
"""S4: FlashInfer's compiled modules.

Every ``gen_*_module(...)`` gives a `Spec` whose ``build_and_load()`` is a `Module`: a call of any
function of it spends time. Functions that answer questions (how many tactics, which configurations)
are in `ANSWERS`. Assumes that candidates follow from what the question carries. Does not show real
candidate lists or their sizes, nor that a C++ entry takes these arguments.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from tests.real_ops.gpu.clock import canonical, digest, spend

#: Function name -> its answer, given the module and the arguments.
ANSWERS: dict[str, Callable[..., Any]] = {}


def answers(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Let the decorated function answer for these."""

    def keep(function: Callable[..., Any]) -> Callable[..., Any]:
        ANSWERS.update(dict.fromkeys(names, function))
        return function

    return keep


class Module:
    """A compiled module, or an object made by one: any attribute is a function that spends time."""

    def __init__(self, name: str, *made_with: Any) -> None:
        self.__dict__.update(name_=name, made_with=canonical(made_with))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if (answer := ANSWERS.get(name)) is not None:
            found = functools.partial(answer, self)
        else:
            found = functools.partial(spend, f"{self.name_}.{name}", self.made_with)
        self.__dict__[name] = found
        return found

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)


class Spec:
    """What a ``gen_*_module`` returns."""

    def __init__(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.name, self._made_with = name, (args, kwargs)

    def build_and_load(self) -> Module:
        return _module(self.name, repr(canonical(self._made_with)))

    def get_library_path(self) -> str:
        return ""

    def get_library_paths(self) -> list[str]:
        return []


@functools.cache
def _module(name: str, made_with: str) -> Module:
    return Module(name, made_with)


def _generator(name: str) -> Callable[..., Spec]:
    def generate(*args: Any, **kwargs: Any) -> Spec:
        return Spec(name.removeprefix("gen_"), args, kwargs)

    generate.__name__ = name
    setattr(generate, "is_stub", True)  # noqa: B010  # mypy: a function has no such attribute
    return generate


def stub_generators() -> None:
    """Replace every ``gen_*module*`` name in the FlashInfer modules imported so far."""
    kinds = (types.FunctionType, functools._lru_cache_wrapper)
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("flashinfer") or module is None:
            continue
        for name, value in list(vars(module).items()):
            is_generator = name.startswith("gen_") and "module" in name and isinstance(value, kinds)
            if is_generator and not getattr(value, "is_stub", False):
                setattr(module, name, _generator(name))


def replace_everywhere(old: Any, new: Any) -> int:
    """Replace an object under every name it has in FlashInfer's modules."""
    count = 0
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("flashinfer") and module is not None:
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
                    count += 1
    return count


# -- answers -------------------------------------------------------------------------------------


def _few(module: Module, least: int, span: int, *args: Any) -> int:
    return int(least + digest(module.name_, module.made_with, canonical(args)) % span)


@answers(
    *(f"{k}_gemm_tactic_num" for k in ("fp4", "fp8", "bf16", "mxfp8", "tgv", "nvfp4_svdquant")),
    "get_gemm1_tactic_count",
    "get_gemm2_tactic_count",
)
def _count(module: Module, *_args: Any) -> int:
    return _few(module, 3, 3)


@answers("get_tactic_num")
def _both_counts(module: Module) -> int:
    return 2 * _few(module, 3, 3)


@answers("get_tactic_occupancy")
def _occupancy(_module: Module, tactic: int) -> int:
    return 0 if tactic == 1 else 1


@answers("get_valid_tactics_for_shape")
def _for_shape(_module: Module, stage: int, n: int, k: int) -> list[int]:
    return [t for t in range(12) if (t + n + k + stage) % 3]


@answers("bmm_fp8_get_algos", "mm_bf16_cublaslt_get_algos")
def _algorithms(module: Module, *args: Any) -> int:
    return _few(module, 2, 4, args)


@answers("trtllm_gemm_tactics")
def _trtllm(_module: Module, *args: Any) -> list[int]:
    return [t for t in range(8) if digest(canonical(args), t) % 3]


@answers("trtllm_low_latency_gemm_tactics")
def _low_latency(_module: Module, *args: Any) -> list[int]:
    return [t for t in range(6) if digest(canonical(args), t) % 2] or [0]


@answers("trtllm_get_valid_moe_configs")
def _moe_configs(_module: Module, *args: Any) -> list[list[int]]:
    pairs = [(tile, config) for tile in (8, 32, 128) for config in range(3)]
    return [[*pair] for pair in pairs if digest(canonical(args), *pair) % 3]


@answers("get_workspace_size_in_bytes")
def _size(_module: Module, *_args: Any) -> int:
    return 1024


@answers("init")
def _init(module: Module, *args: Any) -> Module:
    return Module(f"{module.name_}.runner", *args)


@answers(
    "trtllm_bf16_moe", "trtllm_fp4_block_scale_moe", "trtllm_fp8_block_scale_moe",
    "trtllm_fp8_per_channel_scale_moe", "trtllm_fp8_per_tensor_scale_moe",
    "trtllm_mxint4_block_scale_moe",
)  # fmt: skip
def _fused_moe(module: Module, *args: Any) -> list[torch.Tensor]:
    """Spend time, and return what the front end unpacks where it does not finalise."""
    spend("trtllm_moe", module.made_with, args)
    return [torch.zeros(1) for _ in range(4)]
