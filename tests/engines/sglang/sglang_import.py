# SPDX-License-Identifier: Apache-2.0
"""Imports SGLang's scheduler on a machine without a GPU, once, for the fork server.

Owns the one thing that needs: PyPI's torchvision is built for CUDA, and beside a CPU torch its
import asks for operators that nobody has declared.
"""

from __future__ import annotations

import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")
_LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import sglang.srt.configs.model_config
import sglang.srt.distributed.parallel_state
import sglang.srt.layers.logits_processor
import sglang.srt.server_args
import sglang.srt.speculative.spec_info  # noqa: F401  # all for their being there
