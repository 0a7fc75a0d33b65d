# SPDX-License-Identifier: Apache-2.0
"""What a thread is at, by its stack: whether it compiles.

Owns the folders in which compilers are called. A tactic's first run compiles its kernel inside
FlashInfer's measurement, so no event tells the two apart. Reads a stack of Python's; a compiler in
a process of its own shows by who waits for it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

#: Parts of the file names of code that runs for as long as something is compiled.
_COMPILERS = (
    "/flashinfer/jit/",
    "/torch/utils/cpp_extension",
    "/torch/_inductor/",
    "/triton/compiler/",
    "/cutlass/base_dsl/",
    "/cutlass/cutlass_dsl/",
    "/cuda/tile/_compile",
    "/tvm_ffi/cpp/",
)


def is_compiling(thread: int) -> bool:
    """Return whether this thread, by its number, stands in a compiler now."""
    return any(part in name for name in _files(thread) for part in _COMPILERS)


def _files(thread: int) -> Iterator[str]:
    frame = sys._current_frames().get(thread)  # noqa: SLF001  # Python's documented name for it
    while frame is not None:
        yield frame.f_code.co_filename.replace("\\", "/")
        frame = frame.f_back
