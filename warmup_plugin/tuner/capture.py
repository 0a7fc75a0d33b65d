# SPDX-License-Identifier: Apache-2.0
"""What of a call is kept for its replay, and at what price in memory.

Owns copies: of runners, of inputs, of tensors that initialisers and hooks have closed over. Tensors
with a dynamic dimension become stand-ins without storage, since FlashInfer synthesises them anew;
integer tensors and fixed activations are cloned at equal alignment, since engines overwrite them
(a routing table read later may point past the experts); weights are referenced. Past the byte
budget, or where no memory is found, a tensor is referenced too: the replay then reads what the
engine has left there. A stand-in cannot be viewed (torch refuses), so no runner is ever asked about
one: `at_size` has the inputs that a runner can be asked about.
"""

from __future__ import annotations

import copy
import functools
import gc
import types
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from warmup_plugin.tuner.task import Shapes

#: Kernels look at pointer alignment up to this many bytes.
_ALIGNMENT = 256


#: From this size on it is worth the search whether a tensor is a weight.
_LARGE = 64 * 1024


class Budget:
    """Bytes left for clones on this rank in this session, and which tensors are weights."""

    def __init__(self, limit: int) -> None:
        self.left = limit
        self.refused = 0
        self._weights: frozenset[tuple[torch.device, int]] | None = None

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor lies in the storage of some parameter of this process.

        By the storage, since neither `parameter.data` nor a view of another dtype names its base.
        All of the process's objects are looked through once, at the first large tensor.
        """
        base = tensor._base if tensor._base is not None else tensor  # noqa: SLF001  # torch's only name for a view's owner
        if isinstance(base, torch.nn.Parameter):
            return True
        if tensor.numel() * tensor.element_size() < _LARGE:
            return False
        if self._weights is None:
            self._weights = frozenset(map(_place, _parameters()))
        return _place(tensor) in self._weights

    def take(self, size: int) -> bool:
        """Return whether ``size`` bytes may be cloned, and count them."""
        if size > self.left:
            self.refused += 1
            return False
        self.left -= size
        return True


class Copies:
    """The copies made for one call: what it holds in two places is copied once.

    The originals must outlive this object, as they do during the call.
    """

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._made: dict[int, Any] = {}

    def runner(self, runner: Any) -> Any:
        """Return a copy of the runner that later mutation of the original does not reach.

        Runners held in its attributes are copied too; everything else is shared, so that the copy
        hashes as the original does (FlashInfer's in-memory key holds the hash).
        """
        if id(runner) in self._made:
            return self._made[id(runner)]
        twin = self._made[id(runner)] = copy.copy(runner)
        kind = _runner_type(runner)
        for name, value in vars(twin).items():
            if isinstance(value, kind):
                vars(twin)[name] = self.runner(value)
        return twin

    def inputs(self, inputs: list[Any], dynamic: set[int]) -> list[Any]:
        """Return the inputs as a replay needs them; list subclasses keep their class and state."""
        kept = copy.copy(inputs)
        for index, value in enumerate(inputs):
            if isinstance(value, torch.Tensor):
                is_dynamic = index in dynamic
                kept[index] = stand_in(value, value.size()) if is_dynamic else self._kept(value)
        return kept

    def kwargs(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments with their integer tensors cloned."""
        return {
            name: self._kept(value) if _is_integer_tensor(value) else value
            for name, value in kwargs.items()
        }

    def config(self, config: Any) -> Any:
        """Return the config with copies in place of what its functions have closed over.

        Copy the runners first: a function that refers to one then refers to its copy.
        """
        changes: dict[str, Any] = {}
        initializers = getattr(config, "tensor_initializers", ())
        kept = tuple((index, self._kept(function)) for index, function in initializers)
        if any(new is not old for (_, new), (_, old) in zip(kept, initializers, strict=True)):
            changes["tensor_initializers"] = kept
        hook = getattr(config, "inputs_pre_hook", None)
        if (kept_hook := self._kept(hook)) is not hook:
            changes["inputs_pre_hook"] = kept_hook
        specs = tuple(self._spec(spec) for spec in config.dynamic_tensor_specs)
        if any(new is not old for new, old in zip(specs, config.dynamic_tensor_specs, strict=True)):
            changes["dynamic_tensor_specs"] = specs
        return replace(config, **changes) if changes else config

    def _spec(self, spec: Any) -> Any:
        """Before 0.6.18 the initialisers stand in the spec, one per input."""
        initializers = getattr(spec, "tensor_initializers", None)
        kept = self._kept(initializers)
        return spec if kept is initializers else replace(spec, tensor_initializers=kept)

    def _kept(self, value: Any) -> Any:
        """Return what stands for a value in the replay: itself where nothing has to be copied."""
        if id(value) not in self._made:
            self._made[id(value)] = value  # what refers to itself ends here
            if isinstance(value, torch.Tensor):
                self._made[id(value)] = _clone(value, self._budget)
            elif type(value) in (list, tuple):
                items = [self._kept(item) for item in value]
                if any(new is not old for new, old in zip(items, value, strict=True)):
                    self._made[id(value)] = type(value)(items)
            elif isinstance(value, functools.partial):
                function, args = self._kept(value.func), self._kept(value.args)
                named = {name: self._kept(arg) for name, arg in value.keywords.items()}
                self._made[id(value)] = functools.partial(function, *args, **named)
            elif isinstance(value, types.MethodType) and id(value.__self__) in self._made:
                owner = self._made[id(value.__self__)]
                self._made[id(value)] = types.MethodType(value.__func__, owner)
            elif isinstance(value, types.FunctionType) and value.__closure__:
                self._made[id(value)] = self._unbound(value, value.__closure__)
        return self._made[id(value)]

    def _unbound(
        self, function: types.FunctionType, closure: tuple[types.CellType, ...]
    ) -> types.FunctionType:
        """Return the function with copies in its cells; itself if it needs none."""
        cells = tuple(self._cell(cell) for cell in closure)
        if all(new is old for new, old in zip(cells, closure, strict=True)):
            return function
        unbound = types.FunctionType(
            function.__code__, function.__globals__, function.__name__, function.__defaults__, cells
        )
        unbound.__kwdefaults__ = function.__kwdefaults__
        return unbound

    def _cell(self, cell: types.CellType) -> types.CellType:
        try:
            content = cell.cell_contents
        except ValueError:  # an empty cell: the function refers to a name not bound yet
            return cell
        kept = self._kept(content)
        return cell if kept is content else types.CellType(kept)


def _runner_type(runner: Any) -> type:
    """Return FlashInfer's own runner base class, found without importing it again."""
    bases = [b for b in type(runner).__mro__ if b.__name__ == "TunableRunner"]
    return bases[-1] if bases else type(runner)


def _is_integer_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not (
        value.dtype.is_floating_point or value.dtype.is_complex
    )


def _parameters() -> Iterator[torch.Tensor]:
    """Return the parameters of this process, as `isinstance` tells them, which is slow code.

    An instance of a tensor's subclass stays one and is marked (`torch.nn.Parameter.__new__`).
    """
    kinds: dict[type, str] = {torch.Tensor: ""}
    for found in gc.get_objects():
        kind = type(found)
        if kind not in kinds:
            is_tensor = issubclass(kind, torch.Tensor)
            is_parameter = issubclass(kind, torch.nn.Parameter)
            kinds[kind] = "parameter" if is_parameter else "maybe" if is_tensor else ""
        if kinds[kind] and (kinds[kind] == "parameter" or getattr(found, "_is_param", False)):
            yield found


def _place(tensor: torch.Tensor) -> tuple[torch.device, int]:
    """Return where a tensor's storage begins; that of an uninitialised parameter nowhere."""
    try:
        return tensor.device, tensor.untyped_storage().data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):
        return tensor.device, -1


def at_size(inputs: list[Any], shapes: Shapes, dynamic: Collection[int]) -> list[Any]:
    """Return the inputs of a call with fresh ``dynamic`` ones of these shapes.

    For what a runner says of its inputs: their contents are undefined, and nothing is launched.
    Raises `torch.OutOfMemoryError`.
    """
    fresh = copy.copy(inputs)
    for index, shape in enumerate(shapes):
        if index in dynamic and isinstance(inputs[index], torch.Tensor):
            fresh[index] = inputs[index].new_empty(shape)
    return fresh


def stand_in(tensor: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Return a tensor of this size whose storage is empty; of equal strides where sizes are."""
    if tuple(size) == tuple(tensor.size()):
        empty = tensor.new_empty_strided(size, tensor.stride())
    else:
        empty = tensor.new_empty(size)
    empty.untyped_storage().resize_(0)
    return empty


def _clone(tensor: torch.Tensor, budget: Budget) -> torch.Tensor:
    """Return a clone with the same strides and alignment, or the tensor itself.

    Runners read the alignment of their inputs into cache keys, so a clone that is better aligned
    would be another key. Weights stay as they are; so do tensors whose elements overlap.
    """
    if tensor.numel() == 0 or budget.is_weight(tensor):
        return tensor
    span = 1 + sum((n - 1) * s for n, s in zip(tensor.size(), tensor.stride(), strict=True))
    if span < tensor.numel() or not budget.take(span * tensor.element_size()):
        return tensor
    size = span * tensor.element_size() + _ALIGNMENT
    try:
        raw = torch.empty(size, dtype=torch.uint8, device=tensor.device)
    except (torch.cuda.OutOfMemoryError, MemoryError):
        return tensor
    shift = (tensor.data_ptr() - raw.data_ptr()) % _ALIGNMENT
    if shift % tensor.element_size():
        return tensor
    flat = raw[shift : shift + span * tensor.element_size()].view(tensor.dtype)
    clone = flat.as_strided(tensor.size(), tensor.stride())
    clone.copy_(tensor)
    return clone
