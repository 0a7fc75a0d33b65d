# SPDX-License-Identifier: Apache-2.0
"""What the fork server has ready for every rank: imported there, and nowhere else.

Owns the choice of what a rank need not load or look up again: torch, FlashInfer, this engine, and
FlashInfer's environment stamp, for which it searches the installed packages.
"""

from __future__ import annotations

import importlib

# In this order: the engine imports FlashInfer in a way that every release can bear without a GPU.
for _name in ("engines.embedded.worker", "kernel_warmup"):
    importlib.import_module(f"warmup_plugin.{_name}")
importlib.import_module("warmup_plugin.tuner.compat").stamp()
