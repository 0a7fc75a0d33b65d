# SPDX-License-Identifier: Apache-2.0
"""What the ranks of a group tell each other over the group itself, before they have a store.

Owns the two collectives of a session, both at its beginning and of a fixed size: rank 0's card, by
which the others find its store, and the roll call, whether each has joined, or which of the choices
on the card it could use. They are repeated until all have joined. What a rank lacks
by then (a descriptor, a thread, a route to rank 0) it takes part in both, and so every rank hears
of it at once; a rank that left instead would have the others wait for it. Imports nothing but what
is loaded already. Fails as torch.distributed does: each is bounded by the group's time-out.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

import torch
import torch.distributed as dist

from warmup_plugin.coordination.versions import no_answer
from warmup_plugin.errors import SessionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.distributed import ProcessGroup

#: Of how many choices a card may have a rank can say whether it has use for them.
MOST_CHOICES: Final = 4
_CARD_BYTES: Final = 1024
_REASON_BYTES: Final = 400


def tell(card: Mapping[str, Any] | None, group: ProcessGroup | None, *, source: int = 0) -> Any:
    """Send the card of one rank of the group, the ``source``, to every rank; return it."""
    raw = b"" if card is None else json.dumps(card).encode()
    tensor = torch.frombuffer(bytearray(raw.ljust(_CARD_BYTES, b"\0")), dtype=torch.uint8)
    tensor = tensor.to(_device(group))
    try:
        dist.broadcast(tensor, src=_global(group, source), group=group)
    except RuntimeError as error:  # the group's own: its time-out, a connection that was closed
        raise SessionError(
            "not every rank of the group has begun this session within the group's time-out, or "
            f"one of them has ended: {error}"
        ) from error
    return json.loads(tensor.cpu().numpy().tobytes().rstrip(b"\0"))


def call_the_roll(
    failure: str, usable: Sequence[bool], group: ProcessGroup | None
) -> tuple[str, list[bool]]:
    """Return why a session cannot open, empty where it can, and what is of use to all ranks.

    Both are the same on every rank. ``failure``: what this rank cannot do ("cannot ..."), or empty.
    ``usable``: which of the choices on rank 0's card are of use to this rank.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    answers = [int(found) for found in usable] + [0] * (MOST_CHOICES - len(usable))
    said = torch.tensor(
        [rank if failure else size, *answers], dtype=torch.int64, device=_device(group)
    )
    try:
        dist.all_reduce(said, op=dist.ReduceOp.MIN, group=group)
    except RuntimeError as error:
        raise no_answer(error) from error
    failing, *found = (int(number) for number in said.tolist())
    if failing == size:
        return "", [bool(number) for number in found]
    card = {"failure": ascii(failure)[1:-1][:_REASON_BYTES]} if rank == failing else None
    return f"rank {failing} {tell(card, group, source=failing)['failure']}", []


def stay_away(failure: str, group: ProcessGroup | None) -> NoReturn:
    """Take part in both collectives for a rank that can do no more; raises `SessionError`."""
    error = {"error": ascii(failure)[1:-1][:_REASON_BYTES]}
    tell(error if dist.get_rank(group) == 0 else None, group)
    raise SessionError(call_the_roll(f"cannot take part: {failure}", (), group)[0])


def _device(group: ProcessGroup | None) -> torch.device:
    on_cpu = "gloo" in str(dist.get_backend(group)).lower()
    return torch.device("cpu") if on_cpu else torch.device("cuda", torch.cuda.current_device())


def _global(group: ProcessGroup | None, rank: int) -> int:
    return dist.get_global_rank(group, rank) if group is not None else rank
