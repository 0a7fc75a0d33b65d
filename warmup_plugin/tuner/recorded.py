# SPDX-License-Identifier: Apache-2.0
"""A recorded call, set up again: its options, one of its buckets, inputs that a runner may look at.

Owns what tuning, building and asking have in common, so that all three meet a runner alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from warmup_plugin.tuner import capture
from warmup_plugin.tuner.intercepted_call import dynamic_inputs
from warmup_plugin.tuner.task import Call, Shapes


def askable(call: Call, shapes: Shapes) -> list[Any]:
    """Return the call's inputs at these shapes, of which a runner may be asked its key."""
    return capture.at_size(call.inputs, shapes, dynamic_inputs(call.config))


def narrow(config: Any, buckets: tuple[int, ...]) -> Any:
    """Return the config generating these buckets only, one per dynamic spec; its mapper is kept."""
    specs = tuple(
        replace(spec, gen_tuning_buckets=(bucket,))
        for spec, bucket in zip(config.dynamic_tensor_specs, buckets, strict=True)
    )
    return replace(config, dynamic_tensor_specs=specs)


@contextlib.contextmanager
def as_recorded(call: Call) -> Iterator[None]:
    """Run the body in the call's inference mode and on its stream."""
    stream = torch.cuda.stream(call.stream) if call.stream is not None else contextlib.nullcontext()
    with torch.inference_mode(call.inference), stream:
        yield
