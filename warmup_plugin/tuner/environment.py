# SPDX-License-Identifier: Apache-2.0
"""What of this machine decides which tactics exist and which is fastest.

Owns the environment's config factors: FlashInfer's stamp, the GPU, FlashInfer's switches. Reads
only; a machine without CUDA has architecture ``cpu`` and no GPU.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from warmup_plugin.cache.stamps import BLOCKLIST

#: FlashInfer's variables that change candidates or what they are timed on (read in 0.7.2.post1).
SWITCHES = (
    "B12X_AUTOTUNE",
    "B12X_AUTOTUNE_EXHAUSTIVE",
    "FLASHINFER_AUTOTUNE_TIMER",
    "FLASHINFER_B12X_FORCE_MOE_W4A16",
    "FLASHINFER_CUTILE_AUTOTUNE_DISABLED",
    "FLASHINFER_DA_DISTRIBUTIONS",
    "FLASHINFER_DA_FACTORIZED_AUTOTUNE",
    "FLASHINFER_DISABLE_FP4_QUANT_FAST_MATH",
    "FLASHINFER_DISABLE_TINYGEMM2_SM100",
    "FLASHINFER_DIST_AWARE_AUTOTUNE",
    "FLASHINFER_NVFP4_4OVER6",
    "FLASHINFER_NVFP4_4OVER6_E4M3_USE_256",
    "FLASHINFER_NVFP4_4OVER6_ERR_MODE",
    "FLASHINFER_NVFP4_4OVER6_ERR_USE_FAST_MATH",
    "FLASHINFER_PRIMS_TS_COMPILE_OPTIONS",
    "MOE_AUTOTUNE",
)


def architecture() -> str:
    """Return ``sm<major><minor>`` of the current device, ``cpu`` without CUDA."""
    if not torch.cuda.is_available():
        return "cpu"
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}"


def gpu() -> dict[str, Any]:
    """Return name, SM count and compute capability of the current device; empty without CUDA."""
    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": properties.name,
        "sm_count": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
    }


def driver() -> str:
    """Return the version of the GPU driver; empty without one."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def switches() -> dict[str, str]:
    """Return the switches that are set, and the digest of the blocklist in force."""
    found = {name: os.environ[name] for name in SWITCHES if os.environ.get(name)}
    if path := os.environ.get(BLOCKLIST):
        try:
            found[BLOCKLIST] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        except OSError as error:
            found[BLOCKLIST] = f"unreadable ({type(error).__name__})"
    return found


def factors(stamp: Mapping[str, str]) -> dict[str, Any]:
    """Return the environment's config factors by their names in `Identity`, with this stamp."""
    return {"stamp": stamp, "gpu": gpu(), "switches": switches()}
