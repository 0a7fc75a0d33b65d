# SPDX-License-Identifier: Apache-2.0
"""Which builds of this package understand each other, and what one says to a build that does not.

Owns the number of the protocol, which a test binds to the fields of all votes and decisions, since
two builds may have one version. And the words by which older builds are told why there is no
session: those from before that number, which read no other message of this one, and those of its
first value, 2, which read no card with a key. Each of them then warms up as without this package,
and so do the ranks of this build.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, NoReturn, Protocol

from warmup_plugin import __version__
from warmup_plugin.errors import RankLostError, SessionError

#: Counted up with every change of what crosses ranks.
PROTOCOL: Final = 3
#: The version of this rank, as the others are told it.
BUILD: Final = f"{__version__} (protocol {PROTOCOL})"
_REMEDY: Final = "must be the same: install one version on all ranks"
#: What an older build is told of this one; it puts the rank in front.
_TO_OLDER: Final = f"its warmup-plugin is {BUILD}, another rank's older: {_REMEDY}"
#: What an older rank is told in rank 0's card, and says.
_ON_CARD: Final = (
    f"rank 0's warmup-plugin is {BUILD}, this rank's is older (protocol 2, or without a number): "
    f"{_REMEDY}"
)
#: What ranks of this build say of an older one.
_OLDER: Final = f"its warmup-plugin is older than {BUILD}, which is another rank's: {_REMEDY}"


class Store(Protocol):
    """What an older build meets on: the job's store, as torch.distributed hands it out."""

    def set(self, key: str, value: str) -> None:
        """Set a key."""
        ...

    def get(self, key: str) -> bytes:
        """Return the value of a key."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys are there."""
        ...

    def compare_set(self, key: str, expected: str, value: str) -> Any:
        """Set a key unless it is there."""
        ...


def other_version(version: object) -> str:
    """Return that a message is of another build than this rank's, or an empty string."""
    if version == BUILD:
        return ""
    if version is None:
        return _OLDER
    return f"its warmup-plugin is {version!s:.60}, another rank's {BUILD}: {_REMEDY}"


# -- an engine's ranks, on the job's store --------------------------------------------------------


def tell_older(store: Store, meeting: str, rank: int) -> None:
    """Leave the word of an older build at a meeting: that this rank cannot, and why."""
    with contextlib.suppress(RuntimeError):  # a store that is gone is found out by what follows
        store.set(f"{meeting}/{rank}", json.dumps({"reason": _TO_OLDER, "plugin": BUILD}))


def find_older(store: Store, meeting: str, ranks: Iterable[int]) -> str:
    """Return which of these ranks is of an older build, and why that ends the meeting, or nothing.

    The older ones hear of it at once, by the decision that they wait for.
    """
    with contextlib.suppress(RuntimeError):
        for rank in ranks:
            word = f"{meeting}/{rank}"
            if store.check([word]) and "plugin" not in json.loads(store.get(word)):
                store.compare_set(f"{meeting}/decision", "", f"rank {rank}: {_OLDER}")
                return f"rank {rank}: {_OLDER}"
    return ""


# -- a runner of its own, on rank 0's card --------------------------------------------------------


def readable_by_older(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return rank 0's first card as one that an older build takes for an error, and says.

    What ``plugin`` holds it puts aside unread, so there is the card for the ranks of this build. It
    must stay there: in a later build, too, it is what tells a rank which build rank 0's is.
    """
    return {"error": _ON_CARD, "plugin": {"build": BUILD, "card": card}}


def no_answer(error: RuntimeError) -> SessionError:
    """Return what is raised where the group does not answer rank 0: an older build cannot."""
    return SessionError(
        "not every rank of the group answers rank 0's card within the group's time-out: one of "
        f"them has ended, or its warmup-plugin is older than {BUILD}, which is rank 0's: {_REMEDY} "
        f"({error})"
    )


def of_this_build(card: dict[str, Any], rank: int) -> dict[str, Any]:
    """Return a card as rank 0 of this build has made it, and of another build one with the error.

    Raises `SessionError` for the card of a build without a number, after its ranks have been told.
    """
    if "hosts" in card and "way" not in card:
        _refuse_older(card, rank)
    plugin = card.get("plugin")
    if plugin is None:  # not the first one
        return card
    build = plugin.get("build") if isinstance(plugin, dict) else plugin
    if reason := other_version(build):
        return {"error": f"rank 0: {reason}"}
    found: dict[str, Any] = plugin["card"]
    return found


def _refuse_older(card: Mapping[str, Any], rank: int) -> NoReturn:
    """End an older rank 0's first meeting on its own store, by the record that all ranks act on."""
    # No other start pays for these imports.
    from warmup_plugin.coordination.connecting import CONNECT_S, in_time, patient_client
    from warmup_plugin.coordination.sockets import connected

    reason, port = f"rank 0: {_OLDER}", int(card["port"])
    for host in ("127.0.0.1", *card["hosts"]):
        try:
            connect, before = partial(patient_client, str(host), port), frozenset(connected(port))
            store = in_time(connect, port, CONNECT_S, but=before)
            if not store.check(["nonce"]) or store.get("nonce").decode() != card["nonce"]:
                continue
            store.compare_set("open/record", "", json.dumps({"go": "refuse", "reason": reason}))
            store.set(f"open/{rank}", "{}")
            store.set(f"bye/{rank}", "1")
            store.check(["nonce"])  # by the answer all before it has been read
        except (RuntimeError, OSError, RankLostError):  # it waits for its own silence then
            continue
        break
    raise SessionError(reason)
