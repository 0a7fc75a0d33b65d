# SPDX-License-Identifier: Apache-2.0
"""S2: the device that op code asks about.

Owns the ``torch.cuda`` queries, contexts and handles that are replaced, and CUDA's version, 13.0.
Assumes that op code asks the device nothing else, and one device. Does not show several devices in
a process, capture of graphs, or an allocator that runs out of memory.
"""

from __future__ import annotations

import contextlib
import os
import types
from typing import Any

import torch

from tests.real_ops.gpu.tensors import CPU, Here
from warmup_plugin.engines.embedded import host_clock

CUDA_VERSION = "13.0"


class _Generator(torch._C.Generator):
    def __new__(cls, device: Any = None) -> Any:
        del device
        make: Any = super().__new__
        return make(cls, CPU)


def _properties(capability: tuple[int, int], name: str, processors: int) -> Any:
    return types.SimpleNamespace(
        name=name, major=capability[0], minor=capability[1], multi_processor_count=processors,
        L2_cache_size=64 * 1024, total_memory=1 << 37, shared_memory_per_block_optin=232448,
        shared_memory_per_multiprocessor=233472, max_threads_per_multi_processor=2048,
        regs_per_multiprocessor=65536, warp_size=32, uuid="GPU-0", is_integrated=False,
        shared_memory_per_block=49152, memory_bus_width=8192, memory_clock_rate=3_000_000,
        clock_rate=1_900_000,
    )  # fmt: skip


def install(capability: tuple[int, int], name: str, processors: int) -> None:
    """Let this process have one GPU of this capability."""
    torch.version.cuda = CUDA_VERSION  # None in a CPU build
    os.environ["FLASHINFER_CUDA_ARCH_LIST"] = f"{capability[0]}.{capability[1]}a"
    os.environ["CUTE_DSL_ARCH"] = f"sm_{capability[0]}{capability[1]}a"
    properties = _properties(capability, name, processors)
    # FlashInfer's clock looks for what is replaced here, so this comes first.
    torch.cuda.get_device_properties = lambda _device=None: properties  # type: ignore[assignment]
    host_clock.install(simulated=True)
    names: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "init": lambda: None,
        "get_device_properties": lambda _device=None: properties,
        "get_device_capability": lambda _device=None: capability,
        "get_device_name": lambda _device=None: name,
        "device": lambda _device=None: contextlib.nullcontext(),
        "set_device": lambda _device=None: None,
        "current_blas_handle": lambda: 0,
        "mem_get_info": lambda _device=None: (1 << 36, 1 << 37),
        "memory_allocated": lambda _device=None: 0,
        "max_memory_allocated": lambda _device=None: 0,
        "memory_reserved": lambda _device=None: 0,
        "default_stream": lambda _device=None: host_clock._STREAM,
        "MemPool": lambda *_args, **_kwargs: None,
        "use_mem_pool": lambda *_args, **_kwargs: contextlib.nullcontext(),
        "get_rng_state": lambda _device=None: torch.get_rng_state(),
    }
    for key, value in names.items():
        setattr(torch.cuda, key, value)
    _streams()
    setattr(torch._C, "_cuda_getCurrentRawStream", lambda _index=0: 0)  # noqa: B010  # not there in a CPU build
    setattr(torch, "Generator", _Generator)  # noqa: B010  # mypy has it for a class that stays


def _streams() -> None:
    stream: Any = host_clock.HostStream
    event: Any = host_clock.HostEvent
    stream.device, stream.device_index = Here.device, Here.device.index
    stream.query = event.query = lambda _self: True
    stream.record_event = lambda _self, given=None: given or event()
    event.wait = lambda _self, *_args: None


def be_device(index: int) -> None:
    """Let this process's one GPU have this index."""
    Here.device = torch.device("cuda", index)
    setattr(torch.cuda, "current_device", lambda: index)  # noqa: B010  # mypy: cannot assign to a function
    stream: Any = host_clock.HostStream
    stream.device, stream.device_index = Here.device, index
