# SPDX-License-Identifier: Apache-2.0
"""Imported by Python itself in each process of a Ray cluster: Ray's made-up GPUs are vLLM's CPUs.

vLLM asks its platform for the name of its device at Ray, and a CPU has none. Owns that one answer.
"""

from __future__ import annotations

from typing import Any

from warmup_plugin.engines.gate import after_import


def _name_the_device(module: Any) -> None:
    module.CpuPlatform.ray_device_key = "GPU"


after_import("vllm.platforms.cpu", _name_the_device)
