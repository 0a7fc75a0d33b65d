# SPDX-License-Identifier: Apache-2.0
"""S1: what a kernel costs, on the project's simulated host clock.

Owns the one function through which time passes, `spend`, and what of a kernel's arguments its time
depends on, `canonical`. Assumes that a kernel costs by its name and by the shapes, dtypes, numbers
and names that it is given. Does not show real times, nor what contents (routing tables), the L2,
graphs or streams do to them; one-dimensional scratch and addresses do not count either.
"""

from __future__ import annotations

import enum
import zlib
from typing import Any

import torch

from warmup_plugin.engines.embedded.host_clock import advance

#: How far into containers an argument is looked at.
_DEEPEST = 9


class Noise:
    """What makes this process's times other times: two ranks measure differently."""

    where = ""


#: (what, canonical arguments) of every kernel started while `Log.on`.
STARTED: list[tuple[str, str]] = []


class Log:
    on = False


def spend(what: str, *args: Any, **kwargs: Any) -> None:
    """Let the time pass that this kernel takes."""
    said = repr((what, canonical(args), canonical(kwargs)))
    if Log.on:
        STARTED.append((what, said))
    advance(1.0 + zlib.crc32((said + Noise.where).encode()) / 2**32)


def digest(*parts: Any) -> int:
    """Return a number that follows from the parts."""
    return zlib.crc32(repr(parts).encode())


def canonical(value: Any, depth: int = 0) -> Any:
    """Return what of an argument a kernel's time may depend on; never addresses or contents."""
    if isinstance(value, torch.Tensor):
        return _of_tensor(value)
    if value is None or isinstance(value, bool | int | float | str | enum.Enum | torch.dtype):
        return _of_plain(value)
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return tuple(canonical(item, depth + 1) for item in value)
    if isinstance(value, dict) and depth < _DEEPEST:
        items = sorted(value.items(), key=lambda item: str(item[0]))
        return tuple((str(name), canonical(item, depth + 1)) for name, item in items)
    shape = getattr(value, "shape", None)  # a tensor of the DSL
    is_plain = isinstance(shape, tuple) and all(type(size) is int for size in shape)
    return (type(value).__name__, *(shape if is_plain and shape else ()))


def _of_plain(value: Any) -> Any:
    if type(value) is int and value > 1 << 40:
        return "address"
    if isinstance(value, enum.Enum):
        return value.name
    return str(value) if isinstance(value, torch.dtype) else value


def _of_tensor(value: torch.Tensor) -> Any:
    """Scratch grows with what ran before: its size is nobody's choice."""
    is_scratch = value.dim() == 1 and (
        value.numel() > 4096 or value.dtype in (torch.uint8, torch.float32)
    )
    name = str(value.dtype).removeprefix("torch.")
    return (name, "scratch") if is_scratch else (name, *value.shape)
