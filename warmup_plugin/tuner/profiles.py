# SPDX-License-Identifier: Apache-2.0
"""The profiles that tuning would measure, without a copy of each.

FlashInfer copies a whole profile, one object for each dimension, at every bucket: 50 us and more of
each task, a third and more of a warm survey (0.7.2). They are counted out here instead, for a kind
of call whose first one FlashInfer was asked about and said the same of; of any other it is asked
each time.
"""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

from warmup_plugin.tuner import compat
from warmup_plugin.tuner.intercepted_call import Same, shapes_of
from warmup_plugin.tuner.task import Shapes


class Profiles:
    """The profiles of one survey's calls.

    Two calls are of a kind where config, number of inputs and numbers of dimensions are equal.
    """

    def __init__(self, tuner: Any) -> None:
        self._tuner = tuner
        self._is_counted: dict[tuple[Same, tuple[int, ...]], bool] = {}

    def of(self, config: Any, inputs: list[Any]) -> list[Shapes]:
        """Return the shapes of all inputs at each bucket, in FlashInfer's order."""
        shapes = shapes_of(inputs)
        kind = Same(config), tuple(map(len, shapes))
        if self._is_counted.get(kind) and (counted := _counted(config, shapes)):
            return counted
        found = [
            profile.get_opt_shapes() for profile in compat.profiles(self._tuner, config, inputs)
        ]
        if kind not in self._is_counted:
            self._is_counted[kind] = False
            with contextlib.suppress(Exception):  # a config that only FlashInfer understands
                self._is_counted[kind] = found == _counted(config, shapes)
        return found


def _counted(config: Any, shapes: Shapes) -> list[Shapes]:
    """Return every combination of the dynamic dimensions' buckets, constrained ones inferred."""
    specs, found = config.dynamic_tensor_specs, []
    for sizes in itertools.product(*(_buckets(spec, shapes) for spec in specs)):
        changed = [list(shape) for shape in shapes]
        for spec, size in zip(specs, sizes, strict=True):
            for index, dim in zip(spec.input_idx, spec.dim_idx, strict=True):
                changed[index][dim] = size
        for spec in config.constraint_specs:
            changed[spec.input_idx][spec.dim_idx] = spec.infer_shape(_frozen(changed))
        found.append(_frozen(changed))
    return found


def _buckets(spec: Any, shapes: Shapes) -> list[int]:
    buckets = spec.gen_tuning_buckets
    if callable(buckets):
        buckets = buckets(shapes[spec.input_idx[0]][spec.dim_idx[0]])
    return sorted(set(buckets))


def _frozen(shapes: list[list[int]]) -> Shapes:
    return tuple(map(tuple, shapes))
