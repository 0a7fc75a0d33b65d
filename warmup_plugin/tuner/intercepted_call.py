# SPDX-License-Identifier: Apache-2.0
"""One intercepted ``choose_one``, as it came.

Owns what can be read off a call while it waits for its answer, and by what two calls are the same.
Copies nothing: what the replay needs is kept by `capture.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from warmup_plugin.tuner import capture
from warmup_plugin.tuner.compat import Options
from warmup_plugin.tuner.task import Extras, Shapes, TaskIds


class Asked(msgspec.Struct, frozen=True, dict=True):
    """One intercepted call as it came: nothing is copied yet.

    ``runners`` stand in the order of the call; ``named``, ``switches`` and ``numbers`` in that of
    `canonical`, which ``places`` leads to: the place of each in ``runners``. ``apart``: why each
    rank has to tune the call for itself, or an empty string.
    """

    op: str
    runners: list[Any]
    config: Any
    inputs: list[Any]
    kwargs: dict[str, Any]
    find_profiles: Callable[[], list[Shapes]]
    places: list[int]
    named: list[tuple[str, Extras]]
    switches: list[tuple[tuple[str, str], ...]]
    numbers: list[tuple[tuple[str, float], ...]]
    options: Options
    apart: str = ""

    @property
    def width(self) -> int:
        """The largest batch at hand."""
        return max(self.buckets(shapes_of(self.inputs)), default=0)

    def buckets(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the sizes of the dynamic dimensions, one per spec."""
        specs = self.config.dynamic_tensor_specs
        return tuple(shapes[spec.input_idx[0]][spec.dim_idx[0]] for spec in specs)

    @functools.cached_property
    def profiles(self) -> list[Shapes]:
        """The profiles that tuning would measure; a layer like an earlier one needs none."""
        return self.find_profiles()

    @functools.cached_property
    def ids(self) -> TaskIds:
        """The ids of its tasks."""
        return TaskIds(self.op, self.named)

    @functools.cached_property
    def follows_batch(self) -> bool:
        """Whether extras of some runner follow the batch, as cuBLASLt's do."""
        return any(extras.follows_batch for _, extras in self.named)

    def at(self, shapes: Shapes) -> list[Any]:
        """Return inputs of these shapes that a runner can be asked about."""
        return capture.at_size(self.inputs, shapes, dynamic_inputs(self.config))

    @functools.cached_property
    def keyed(self) -> list[tuple[str, tuple[Any, ...]]]:
        """Each runner's class and extras, as FlashInfer stores them with any profile's winner."""
        return [(name, extras.real) for name, extras in self.named]

    def keyed_at(self, shapes: Shapes) -> list[tuple[str, tuple[Any, ...]]]:
        """Return the same at this profile, where extras follow the batch."""
        inputs = self.at(shapes)
        return [
            (name, self.runners[place].get_cache_key_extras(inputs) if e.follows_batch else e.real)
            for place, (name, e) in zip(self.places, self.named, strict=True)
        ]

    def mark(self, known: dict[Any, Any]) -> tuple[Any, ...]:
        """Return what two calls have in common when recording both would add nothing.

        ``known``: the parts of earlier marks. Most are alike, and a thousand marks are let go of.
        """
        parts = (
            tuple((name, extras.neutral) for name, extras in self.named),
            tuple(self.places),
            tuple(self.switches),
            tuple(self.numbers),
            Same(self.config),
        )
        shared = (known.setdefault(part, part) for part in parts)
        return (self.op, shapes_of(self.inputs), self.options, *shared)


class Same:
    """A config as part of a dictionary key: by value where it can be hashed, else by identity."""

    def __init__(self, config: Any) -> None:
        self.config = config
        try:
            self._hash = hash(config)
        except TypeError:
            self._hash = id(config)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Same):
            return False
        return self.config is other.config or bool(self.config == other.config)


def shapes_of(inputs: list[Any]) -> Shapes:
    """Return the shapes of a call's inputs, as FlashInfer has them: ``(0,)`` for no tensor."""
    return tuple(tuple(x.shape) if isinstance(x, torch.Tensor) else (0,) for x in inputs)


def dynamic_inputs(config: Any) -> set[int]:
    """Return the inputs FlashInfer synthesises anew for each profile."""
    specs = {index for spec in config.dynamic_tensor_specs for index in spec.input_idx}
    return specs | {spec.input_idx for spec in config.constraint_specs}
