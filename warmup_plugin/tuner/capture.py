# SPDX-License-Identifier: Apache-2.0
"""What of a call is kept for its replay, and at what price in memory.

Owns copies: of runners, of inputs, of tensors that initialisers and hooks have closed over. Tensors
with a dynamic dimension become stand-ins without storage, since FlashInfer synthesises them anew;
integer tensors and fixed activations are cloned at equal alignment, since engines overwrite them
(a routing table read later may point past the experts); weights are referenced. Past the byte
budget a tensor is referenced too: the replay then reads what the engine has left there.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

#: Kernels look at pointer alignment up to this many bytes.
_ALIGNMENT = 256


class Budget:
    """Bytes left for clones on this rank in this session."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.refused = 0

    def take(self, size: int) -> bool:
        """Return whether ``size`` bytes may be cloned, and count them."""
        if size > self.left:
            self.refused += 1
            return False
        self.left -= size
        return True


def copy_runner(runner: Any) -> Any:
    """Return a copy of the runner that later mutation of the original does not reach.

    Runners held in its attributes are copied too; everything else is shared, so that the copy
    hashes as the original does (FlashInfer's in-memory key holds the hash).
    """
    twin = copy.copy(runner)
    kind = _runner_type(runner)
    for name, value in vars(twin).items():
        if isinstance(value, kind):
            setattr(twin, name, copy.copy(value))
    return twin


def _runner_type(runner: Any) -> type:
    """Return FlashInfer's own runner base class, found without importing it again."""
    bases = [b for b in type(runner).__mro__ if b.__name__ == "TunableRunner"]
    return bases[-1] if bases else type(runner)


def keep_inputs(inputs: list[Any], dynamic: set[int], budget: Budget) -> list[Any]:
    """Return the inputs as a replay needs them; list subclasses keep their class and state."""
    kept = copy.copy(inputs)
    for index, value in enumerate(inputs):
        if isinstance(value, torch.Tensor):
            kept[index] = _stand_in(value) if index in dynamic else _fixed(value, budget)
    return kept


def keep_kwargs(kwargs: dict[str, Any], budget: Budget) -> dict[str, Any]:
    """Return the keyword arguments with their integer tensors cloned."""
    return {
        name: _fixed(value, budget) if _is_integer_tensor(value) else value
        for name, value in kwargs.items()
    }


def keep_config(config: Any, budget: Budget) -> Any:
    """Return the config with clones in place of the tensors its functions have closed over."""
    changes: dict[str, Any] = {}
    initializers = getattr(config, "tensor_initializers", ())
    if initializers:
        kept = tuple((index, _unbind(function, budget)) for index, function in initializers)
        if any(new[1] is not old[1] for new, old in zip(kept, initializers, strict=True)):
            changes["tensor_initializers"] = kept
    hook = getattr(config, "inputs_pre_hook", None)
    if hook is not None and (kept_hook := _unbind(hook, budget)) is not hook:
        changes["inputs_pre_hook"] = kept_hook
    specs = tuple(_keep_spec(spec, budget) for spec in config.dynamic_tensor_specs)
    if any(new is not old for new, old in zip(specs, config.dynamic_tensor_specs, strict=True)):
        changes["dynamic_tensor_specs"] = specs
    return replace(config, **changes) if changes else config


def _keep_spec(spec: Any, budget: Budget) -> Any:
    """Before 0.6.18 the initialisers stand in the spec, one per input."""
    initializers = getattr(spec, "tensor_initializers", None)
    if not initializers:
        return spec
    kept = [_unbind(function, budget) for function in initializers]
    changed = any(new is not old for new, old in zip(kept, initializers, strict=True))
    return replace(spec, tensor_initializers=kept) if changed else spec


def _unbind(function: Callable[..., Any], budget: Budget) -> Callable[..., Any]:
    """Return the function with every tensor it has closed over cloned; itself if it has none."""
    if isinstance(function, functools.partial):
        args = tuple(_fixed(a, budget) if _is_tensor(a) else a for a in function.args)
        named = {k: _fixed(a, budget) if _is_tensor(a) else a for k, a in function.keywords.items()}
        return functools.partial(_unbind(function.func, budget), *args, **named)
    if not isinstance(function, types.FunctionType) or not function.__closure__:
        return function
    cells = [_unbind_cell(cell, budget) for cell in function.__closure__]
    if all(new is old for new, old in zip(cells, function.__closure__, strict=True)):
        return function
    unbound = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__,
        tuple(cells),
    )  # fmt: skip
    unbound.__kwdefaults__ = function.__kwdefaults__
    return unbound


def _unbind_cell(cell: types.CellType, budget: Budget) -> types.CellType:
    try:
        content = cell.cell_contents
    except ValueError:  # an empty cell: the function refers to a name not bound yet
        return cell
    if _is_tensor(content):
        return types.CellType(_fixed(content, budget))
    if isinstance(content, (list, tuple)) and any(_is_tensor(item) for item in content):
        items = [_fixed(item, budget) if _is_tensor(item) else item for item in content]
        is_plain = type(content) in (list, tuple)
        return types.CellType(type(content)(items)) if is_plain else cell
    return cell


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)


def _is_integer_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not (
        value.dtype.is_floating_point or value.dtype.is_complex
    )


def _is_weight(tensor: torch.Tensor) -> bool:
    base = tensor._base if tensor._base is not None else tensor  # noqa: SLF001  # torch's only name for a view's owner
    return isinstance(base, torch.nn.Parameter)


def _stand_in(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor of equal shape, strides, dtype and device whose storage is empty."""
    empty = torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device
    )
    empty.untyped_storage().resize_(0)
    return empty


def _fixed(tensor: torch.Tensor, budget: Budget) -> torch.Tensor:
    """Return a clone with the same strides and alignment, or the tensor itself.

    Runners read the alignment of their inputs into cache keys, so a clone that is better aligned
    would be another key. Weights stay as they are; so do tensors whose elements overlap.
    """
    if _is_weight(tensor) or tensor.numel() == 0:
        return tensor
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True))
    if span < tensor.numel() or not budget.take(span * tensor.element_size()):
        return tensor
    raw = torch.empty(
        span * tensor.element_size() + _ALIGNMENT, dtype=torch.uint8, device=tensor.device
    )
    shift = (tensor.data_ptr() - raw.data_ptr()) % _ALIGNMENT
    if shift % tensor.element_size():
        return tensor
    flat = raw[shift : shift + span * tensor.element_size()].view(tensor.dtype)
    clone = flat.as_strided(tensor.size(), tensor.stride())
    clone.copy_(tensor)
    return clone
