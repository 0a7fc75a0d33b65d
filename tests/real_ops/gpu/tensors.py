# SPDX-License-Identifier: Apache-2.0
"""S3: tensors in host memory that say they are on the GPU.

Owns `HostCuda` and the function mode that makes one wherever ``device="cuda"`` is asked for.
Assumes that Python code looks at device, shapes, strides and pointers only. Does not show anything
that compiled code would check. Memory is without end unless a test sets a limit to one allocation.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")


class Here:
    """The one device of this process; `device.be_device` makes it another."""

    device = torch.device("cuda", 0)
    #: No allocation of more bytes than this succeeds.
    memory_limit: int | None = None


class HostCuda(torch.Tensor):
    """Host memory that says it is on the GPU."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # torch's is an attribute
        return Here.device

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]  # torch's is an attribute
        return True

    @property
    def is_cpu(self) -> bool:  # type: ignore[override]  # torch's is an attribute
        return False

    def get_device(self) -> int:
        return Here.device.index or 0

    def record_stream(self, _stream: Any) -> None: ...


class OnHost(TorchFunctionMode):
    """Make on the host what is asked for on the GPU."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func is torch.Tensor.cuda:
            return on_gpu(args[0])
        given = dict(kwargs or {})
        moved = _names_cuda(given.get("device"))
        if moved:
            given["device"] = CPU
        if func in _MOVES or any(isinstance(a, torch.device) for a in args):
            new = tuple(CPU if _names_cuda(a) else a for a in args)
            moved = moved or any(a is not b for a, b in zip(new, args, strict=True))
            args = new
        if given.get("pin_memory"):
            given["pin_memory"] = False
        out = func(*args, **given)
        if Here.memory_limit is not None:
            _check_memory(out, args)
        is_plain = isinstance(out, torch.Tensor) and not isinstance(out, HostCuda)
        return on_gpu(out) if moved and is_plain else out


def _check_memory(out: Any, args: Any) -> None:
    """Raise where a call has made a storage that is too large; a view has made none."""
    if not isinstance(out, torch.Tensor):
        return
    with torch._C.DisableTorchFunctionSubclass():
        storage = out.untyped_storage()
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, torch.Tensor)}
    if storage.nbytes() > (Here.memory_limit or 0) and storage.data_ptr() not in given:
        raise torch.cuda.OutOfMemoryError(f"no {storage.nbytes()} bytes left (planted)")


@contextlib.contextmanager
def no_memory_above(limit: int) -> Iterator[None]:
    """Let larger allocations fail in the body."""
    Here.memory_limit = limit
    try:
        yield
    finally:
        Here.memory_limit = None


_MOVES = (torch.Tensor.to, torch.Tensor.copy_)


def _names_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.split(":")[0] == "cuda"


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.as_subclass(HostCuda)


def zeros(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return zeros; types of one byte, which torch cannot fill on a CPU, as bytes seen so."""
    if dtype.itemsize == 1:
        return on_gpu(torch.zeros(shape, dtype=torch.uint8).view(dtype))
    return on_gpu(torch.zeros(shape, dtype=dtype))


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return on_gpu(torch.ones(shape, dtype=dtype))


def weight(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Return a weight as engines hold it: a Parameter, and no view of anything."""
    plain = zeros(*shape, dtype=dtype).as_subclass(torch.Tensor)
    made: Any = torch.Tensor._make_subclass(HostCuda, plain, False)
    made._is_param = True  # what makes torch take an instance of a subclass for a Parameter
    return made  # type: ignore[no-any-return]  # it is a HostCuda


def bytes_held() -> int:
    """Return the bytes of all storages on the GPU that Python objects of this process hold."""
    gc.collect()
    sizes: dict[int, int] = {}
    for value in gc.get_objects():
        if type(value) is HostCuda:
            storage = value.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())
