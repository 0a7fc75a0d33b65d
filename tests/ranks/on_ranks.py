# SPDX-License-Identifier: Apache-2.0
"""What the tests of this folder run on the ranks: functions of an engine, named to `launch`.

Most are `warm_up_rank` with something planted or watched, and return its result with what was seen.
Wrapping is done here, in processes that end with the test; the package is what is under test.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Iterator
from typing import Any

from warmup_plugin.engines.embedded import host_clock
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank


def plain(engine: Engine) -> tuple[Any, list[str]]:
    """Warm up as the engine does; see what is logged as a warning."""
    with logged() as lines:
        result = warm_up_rank(engine)
    return result, lines


def obeying_permissions(engine: Engine) -> tuple[Any, list[str]]:
    """As `plain`, with the rights of an ordinary user: a read-only directory is read-only."""
    give_up_overrides()
    return plain(engine)


@contextlib.contextmanager
def logged() -> Iterator[list[str]]:
    """Collect the package's warnings in the body."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("warmup_plugin")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


def give_up_overrides() -> None:
    """Give up root's right to write where the permissions forbid it, in this thread (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _CapHeader(0x20080522, 0), (_CapData * 2)()
    if libc.capget(ctypes.byref(header), data) or libc.capset(ctypes.byref(header), _lowered(data)):
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")


def _lowered(data: Any) -> Any:
    overrides = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    for field in ("effective", "permitted", "inheritable"):
        setattr(data[0], field, getattr(data[0], field) & ~overrides)
    return data


def tuning_as(engine: Engine, rank: int) -> tuple[Any, None]:
    """Warm up with the timings that another rank measures."""
    vars(engine.ops).update(timing=host_clock.timing(engine.config.timing, rank))
    return warm_up_rank(engine), None
