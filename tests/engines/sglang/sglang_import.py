# SPDX-License-Identifier: Apache-2.0
"""Imports SGLang's scheduler on a machine without a GPU, once, for the fork server.

With its warm-up, as a scheduler process has before it loads plugins. Owns the one thing that needs:
PyPI's torchvision is built for CUDA, and beside a CPU torch its import asks for operators that
nobody has declared.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

library: Any = torch.library.Library
torchvision = library("torchvision", "DEF")
torchvision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
torchvision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
for name in (
    "configs.model_config", "distributed.parallel_state", "layers.logits_processor",
    "model_executor.runner.base_runner", "server_args", "speculative.spec_info",
):  # fmt: skip
    importlib.import_module(f"sglang.srt.{name}")
