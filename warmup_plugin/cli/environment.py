# SPDX-License-Identifier: Apache-2.0
"""What the library would find on this machine, found without importing torch or FlashInfer.

Owns the two parts of a path that come from the machine: FlashInfer's version and the architecture,
each with the words for where it is from. What cannot be found out is None, or ``cpu``; a question
to the driver is bounded in time.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
from collections.abc import Mapping

from warmup_plugin.cache.paths import Component

_PACKAGE = "flashinfer-python"
_QUERY = ("nvidia-smi", "--format=csv,noheader")
_PATIENCE_S = 20.0  # a driver that is not loaded yet takes its time


def flashinfer_version() -> Component | None:
    """Return the version of the installed FlashInfer, None where there is none."""
    found = installed_version(_PACKAGE)
    return Component("version", found, f"{_PACKAGE} installed here") if found else None


def architecture(environ: Mapping[str, str]) -> Component:
    """Return the architecture of the GPU that torch would use; ``cpu`` where it would use none."""
    torch = installed_version("torch")
    if torch is not None and torch.endswith("+cpu"):
        return Component("arch", "cpu", f"torch {torch} is installed here")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return Component("arch", "cpu", "CUDA_VISIBLE_DEVICES hides every GPU")
    capabilities = _compute_capabilities()
    if not capabilities:
        return Component("arch", "cpu", "nvidia-smi finds no GPU")
    first = (visible or "0").split(",")[0].strip()
    index = int(first) if first.isdecimal() and int(first) < len(capabilities) else 0
    several = len(set(capabilities)) > 1
    source = f"nvidia-smi, GPU {index} of different ones" if several else "nvidia-smi"
    return Component("arch", f"sm{capabilities[index].replace('.', '')}", source)


def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def gpu_names() -> list[str]:
    """Return the names of this machine's GPUs, as the driver tells them; none without one."""
    return _asked("name")


def _compute_capabilities() -> list[str]:
    return [line for line in _asked("compute_cap") if line.replace(".", "").isdecimal()]


def _asked(field: str) -> list[str]:
    try:
        asked = subprocess.run(  # noqa: S603  # its words are constants
            [*_QUERY, f"--query-gpu={field}"], capture_output=True, check=True, text=True,
            timeout=_PATIENCE_S,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in asked.stdout.splitlines() if line.strip()]
