# SPDX-License-Identifier: Apache-2.0
"""Where a rank stands in the job.

Owns the facts an engine reports about one rank and the machine it runs on. Refuses coordinates
that contradict each other (`ValueError`). Sends nothing: ranks compare these facts when they meet
(`kernel_warmup.py`, step 2).
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import operator
import os
import socket
import struct
from pathlib import Path
from typing import Any

import msgspec

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MOUNTS = Path("/proc/self/ns/mnt")
_SIOCGIFHWADDR = 0x8927
_AXES = ("tp", "pp", "dp", "ep")
_NUMBERS = (
    "rank", "world_size", "local_rank", "device_index", "expert_offset",
    *(f"{axis}_{word}" for axis in _AXES for word in ("rank", "size")),
)  # fmt: skip


@functools.cache
def machine_id() -> str:
    """Return what all processes of one host have in common, and no other host: new at every boot.

    The boot id alone does not tell containers of one machine apart, nor clones of one snapshot, so
    the address of the first network card stands beside it.
    """
    return f"{boot_id()}-{_first_card()}"


def boot_id() -> str:
    """Return what all processes of one kernel have in common, in any container: new at every boot.

    Empty where the kernel offers none.
    """
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return ""


def node_id() -> str:
    """Return what processes of one host have in common that also see the same files."""
    mounts = 0
    with contextlib.suppress(OSError):
        mounts = _MOUNTS.stat().st_ino
    return f"{machine_id()}/{mounts}"


def _first_card() -> str:
    """Return the hardware address of the first network card that has one, else an empty text."""
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_one,
    ):
        for _, name in sorted(socket.if_nameindex()):
            with contextlib.suppress(OSError):  # it has gone meanwhile
                request = struct.pack("256s", name.encode()[:15])
                address = fcntl.ioctl(any_one.fileno(), _SIOCGIFHWADDR, request)[18:24]
                if any(address):
                    return address.hex()
    return ""


def host_name() -> str:
    """Return this machine's name as text: the kernel takes any bytes for one."""
    return os.fsencode(socket.gethostname()).decode(errors="replace")


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One rank's coordinates among the ranks that warm up together.

    A launcher such as torchrun gives the first three (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``),
    the engine's parallel layout the others.

    Args:
        rank: the rank in the group of the ranks that warm up together, from 0.
        world_size: the number of these ranks, that of the group handed to `warm_up`.
        local_rank: the rank on its node, from 0. Local rank 0 reads and writes the node's files.
        tp_rank: the tensor-parallel rank, from 0.
        tp_size: the number of tensor-parallel ranks.
        pp_rank: the pipeline stage, from 0.
        pp_size: the number of pipeline stages.
        dp_rank: the data-parallel rank, from 0.
        dp_size: the number of data-parallel ranks.
        ep_rank: the expert-parallel rank, from 0.
        ep_size: the number of expert-parallel ranks.
        device_index: the index of the rank's GPU, as in ``cuda:3``.
        expert_offset: the number of the first expert that this rank holds.
        node: what the ranks of one node have in common. None takes the machine on which this
            process runs; tests and simulations name another.

    Raises:
        ValueError: a coordinate is no whole number, or not within its size; the error names field,
            value and rule.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1
    dp_rank: int = 0
    dp_size: int = 1
    ep_rank: int = 0
    ep_size: int = 1
    device_index: int = 0
    expert_offset: int = 0
    node: str | None = None

    def __post_init__(self) -> None:
        """Check every coordinate against its size."""
        for name in _NUMBERS:
            value = getattr(self, name)
            try:
                msgspec.structs.force_setattr(self, name, operator.index(value))
            except TypeError:
                raise ValueError(f"{name}={value!r}: must be a whole number") from None
        if not isinstance(self.node, (str, type(None))):
            raise ValueError(f"node={self.node!r}: must be a text, or None for this machine")  # noqa: TRY004  # one kind of error for all of them
        pairs = [("rank", "world_size"), *((f"{axis}_rank", f"{axis}_size") for axis in _AXES)]
        for name, size_name in pairs:
            value, size = getattr(self, name), getattr(self, size_name)
            if size < 1:
                raise ValueError(f"{size_name}={size}: must be at least 1")
            if not 0 <= value < size:
                raise ValueError(f"{name}={value}: must be in [0, {size_name}={size})")
        for name in ("local_rank", "device_index", "expert_offset"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")

    @property
    def coordinates(self) -> tuple[int, int, int]:
        """The ranks (tp, pp, dp), which stand in a table's file name."""
        return (self.tp_rank, self.pp_rank, self.dp_rank)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values.

        Returns:
            Every field by name; ``node`` is this machine's where it is None.
        """
        return {**msgspec.structs.asdict(self), "node": self.node or node_id()}
