# SPDX-License-Identifier: Apache-2.0
"""What the device is told after a tactic has failed, as FlashInfer tells it after its own.

Owns two calls of CUDA, neither of which raises.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch


def free_memory() -> None:
    """Give cached device memory back, as FlashInfer does when a tactic finds none."""
    with contextlib.suppress(Exception):  # no device, or one that is lost: the tactic has failed
        torch.cuda.empty_cache()


def clear_error() -> None:
    """Take back the error flag that a failed kernel leaves, as FlashInfer does after a tactic.

    It would come up again at the next call of CUDA, in a graph capture for instance.
    """
    with contextlib.suppress(Exception):  # to wait for the device is what raises that error
        torch.cuda.synchronize()
    with contextlib.suppress(Exception):  # as above, where the device is lost
        cudart: Any = torch.cuda.cudart  # untyped in torch
        cudart().cudaGetLastError()
