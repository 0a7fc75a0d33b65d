# SPDX-License-Identifier: Apache-2.0
"""Which fields of a runner's cache key follow the batch.

FlashInfer stores a winner under the key of the inputs that it makes for a bucket and looks it up
under the key of the inputs at hand. A runner's extras should be equal for both; cuBLASLt's are not:
they hold the batch, so that a winner is found at that batch alone. This belongs to the runner, not
to the call it stands in, so it is asked once for each runner class, its switches and the form of
its extras, which runners of one class need not have in common.

Owns that question. Runners are asked with tensors of undefined contents, and run nothing.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from warmup_plugin.tuner.capture import at_size
from warmup_plugin.tuner.intercepted_call import Same, dynamic_inputs, shapes_of
from warmup_plugin.tuner.profiles import Profiles
from warmup_plugin.tuner.recorded import narrow
from warmup_plugin.tuner.task import Shapes, Switches


class Fields(msgspec.Struct, frozen=True):
    """What is known of a runner's extras.

    ``batch``: the indices of those that are another at another batch. ``is_made_otherwise``: they
    differ between the inputs of the call and fresh ones of the same shapes.
    """

    batch: tuple[int, ...] = ()
    is_made_otherwise: bool = False


class _Kind(msgspec.Struct, frozen=True):
    """Runners of which one answers for all: class, switches, form of the extras."""

    name: str
    switches: Switches
    form: tuple[str, ...]


class BatchFields:
    """The answers of one survey, by op and kind of runner; ops of one config share them."""

    def __init__(self, profiles: Profiles) -> None:
        self._profiles = profiles
        self._known: dict[tuple[str, _Kind], Fields] = {}
        self._by_config: dict[tuple[_Kind, Same], Fields] = {}

    def of(
        self,
        kind: tuple[str, Any, Switches],
        real: tuple[Any, ...],
        config: Any,
        inputs: list[Any],
    ) -> Fields:
        """Return what is known of a runner whose extras are ``real`` for these inputs.

        ``kind``: the op, the runner itself, and its switches.
        """
        op, runner, switches = kind
        # By name: FlashInfer makes some of its runner classes anew for each call.
        name = f"{type(runner).__module__}.{type(runner).__qualname__}"
        key = op, _Kind(name, switches, _form(real))
        if key not in self._known:
            # What its key is made of is the class's own; ops that share its config share that.
            of_class = key[1], Same(config)
            if of_class not in self._by_config:
                others = self._other_sizes(config, inputs)
                if not others:  # nothing is dynamic: there is no batch to follow
                    return Fields()
                self._by_config[of_class] = _ask(runner, real, config, inputs, others)
            self._known[key] = self._by_config[of_class]
        return self._known[key]

    def _other_sizes(self, config: Any, inputs: list[Any]) -> list[Shapes]:
        """Return the smallest and the largest other profile of a call, or one twice its size.

        Buckets may end at the batch at hand: a single row is tuned at one size.
        """
        own = shapes_of(inputs)
        found = [shapes for shapes in self._profiles.of(config, inputs) if shapes != own]
        if not found and (specs := config.dynamic_tensor_specs):
            twice = tuple(2 * own[spec.input_idx[0]][spec.dim_idx[0]] for spec in specs)
            found = self._profiles.of(narrow(config, twice), inputs)
        return [min(found, key=_elements), max(found, key=_elements)] if found else []


def _form(extras: tuple[Any, ...]) -> tuple[str, ...]:
    """Return what extras look like at any batch: their words, else their types."""
    return tuple(each if isinstance(each, str) else type(each).__name__ for each in extras)


def _elements(shapes: Shapes) -> int:
    return sum(math.prod(shape) for shape in shapes)


def _ask(
    runner: Any, real: tuple[Any, ...], config: Any, inputs: list[Any], others: list[Shapes]
) -> Fields:
    dynamic = dynamic_inputs(config)
    batch: set[int] = set()
    is_made_otherwise = False
    for shapes in (shapes_of(inputs), *others):
        try:
            extras = runner.get_cache_key_extras(at_size(inputs, shapes, dynamic))
        except Exception:  # noqa: BLE001, S112  # no memory, or a size it refuses: FlashInfer would fail at it, too
            continue
        if len(extras) != len(real):
            batch.update(range(len(real)))
        else:
            batch.update(i for i, (a, b) in enumerate(zip(extras, real, strict=True)) if a != b)
        if batch and shapes == shapes_of(inputs):
            is_made_otherwise = True
    return Fields(tuple(sorted(batch)), is_made_otherwise)
