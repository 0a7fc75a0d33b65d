# SPDX-License-Identifier: Apache-2.0
"""The environment that the figures are of.

Owns what is asked and of whom. Everything that cannot be found out is left out; nothing here stops
the run.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time

import torch

import warmup_plugin
from warmup_plugin.tuner import compat, environment

_PACKAGES = (
    "flashinfer-python", "flashinfer-cubin", "flashinfer-jit-cache", "torch", "triton",
    "nvidia-cutlass-dsl", "nvidia-cudnn-frontend", "nvidia-cudnn-cu13", "nvidia-cudnn-cu12",
    "nvidia-cublas", "nvidia-cublas-cu12", "vllm", "sglang",
)  # fmt: skip
_QUERY = ("clocks.sm", "clocks.max.sm", "power.limit", "persistence_mode", "mig.mode.current")


def find() -> dict[str, object]:
    """Return the facts, as JSON values."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "warmup-plugin": warmup_plugin.__version__,
        "gpu": environment.gpu(),
        "gpu memory": _memory(),
        "driver": environment.driver(),
        "cuda": torch.version.cuda or "",
        "stamp": compat.stamp(),
        "switches": environment.switches(),
        "packages": _packages(),
        "nvidia-smi": _smi(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
    }


def _memory() -> str:
    if not torch.cuda.is_available():
        return ""
    free, total = torch.cuda.mem_get_info()
    return f"{free / 2**30:.0f} of {total / 2**30:.0f} GiB free at the start"


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _smi() -> dict[str, str]:
    """Return clocks, power limit and mode of the first GPU, where nvidia-smi answers."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(  # noqa: S603  # fixed arguments
            command, capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in done.stdout.strip().split(",")]
    return dict(zip(_QUERY, values, strict=False))
