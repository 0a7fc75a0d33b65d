# SPDX-License-Identifier: Apache-2.0
"""S6: kernels of the CuTe DSL.

Owns the stand-in for ``cute.compile``: a compiled kernel spends time by the plain attributes of the
kernel object and by its arguments. The DSL itself is the real package. Assumes that one compiled
kernel serves all batches. Does not show compile errors and times, nor the kernel cache on disk.
"""

from __future__ import annotations

import enum
import functools
from typing import Any

from tests.real_ops.gpu.clock import canonical, spend


def plain_state(value: Any) -> Any:
    """Return the plain attributes of an object."""
    plain = (bool, int, float, str, tuple, list, enum.Enum)
    state = getattr(value, "__dict__", {}).items()
    found = sorted((k, canonical(v)) for k, v in state if isinstance(v, plain) or v is None)
    return (type(value).__name__, tuple(found))


class Compiled:
    """A compiled DSL kernel."""

    def __init__(self, kernel: Any, *args: Any, **kwargs: Any) -> None:
        kernel = getattr(kernel, "__self__", kernel)
        name = getattr(kernel, "__name__", type(kernel).__name__)
        self._what = f"dsl.{name}"
        # Only what is no size: a compiled kernel serves every batch, whoever's call compiled it.
        given = (*args, *kwargs.values())
        switches = tuple(v for v in given if isinstance(v, bool | str | enum.Enum))
        self._made_with = (plain_state(kernel), canonical(switches))

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        spend(self._what, self._made_with, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return functools.partial(spend, f"{self._what}.{name}")


class Compile:
    """``cute.compile``, with or without options in brackets."""

    def __call__(self, kernel: Any, *args: Any, **kwargs: Any) -> Compiled:
        return Compiled(kernel, *args, **kwargs)

    def __getitem__(self, _options: Any) -> Compile:
        return self


def install() -> None:
    """Put the compiler in place, and what asks the driver about the device."""
    from cutlass import (
        cute,
        utils,
    )
    from cutlass.cute import experimental
    from flashinfer.jit import cute_dsl_core

    cute.compile = experimental.compile = Compile()
    built: dict[str, Any] = {}

    def build_and_load(self: Any) -> Any:
        if self.name not in built:
            built[self.name] = self.compile_fn()
        return built[self.name]

    for kind in vars(cute_dsl_core).values():
        if isinstance(kind, type) and kind.__name__.startswith("JitSpecCuteDsl"):
            spec: Any = kind
            spec.build_and_load = build_and_load
            spec.compile_and_persist = lambda self: build_and_load(self) and None
    hardware: Any = utils.HardwareInfo
    hardware.__init__ = lambda _self, *_args, **_kwargs: None
    hardware.get_max_active_clusters = lambda _self, *_args, **_kwargs: 128
    hardware.get_device_multiprocessor_count = lambda _self, *_args, **_kwargs: 148
    hardware.get_l2_cache_size_in_bytes = lambda _self, *_args, **_kwargs: 64 * 1024
