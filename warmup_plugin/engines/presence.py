# SPDX-License-Identifier: Apache-2.0
"""Who has come to the meeting before the first, and what becomes of who has not.

Owns what ranks leave about themselves on the store of the job (whose process it is, at which
meeting it is) and what a rank that waits makes of it: another one is lost, is elsewhere, or has
left nothing at all. Refuses to decide: `readiness.py` does.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.process_info import ProcessCard, View, own_card, view
from warmup_plugin.topology import host_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from warmup_plugin.coordination.kv_client import StoreLink


class Presence:
    """What one rank knows of the others at one meeting. ``key`` names what is kept of a rank there.

    ``prefix``: of what is kept of a rank at all meetings of these ranks.
    """

    def __init__(
        self, link: StoreLink, rank: int, prefix: str, key: Callable[[str, int], str]
    ) -> None:
        self._link, self._rank, self._prefix, self._key = link, rank, prefix, key
        self._number = link.add(f"{prefix}/meetings/{rank}")
        self._cards: dict[int, dict[str, Any]] = {}
        self._unwell: dict[int, float] = {}
        card = {**own_card().to_json(), "host": host_name()[:64]}
        link.set(key("card", rank), json.dumps(card).encode())

    def say_where(self, session: str) -> None:
        """Say at which meeting this rank is; to be called once its word is there."""
        self._link.set(f"{self._prefix}/at/{self._rank}", f"{self._number} {session}".encode())

    def look(self, rank: int, silence_s: float) -> None:
        """Give a rank up whose process is gone or stopped, once it has been for a silence."""
        seen = self.view(rank)
        if seen not in ("gone", "stopped"):
            self._unwell.pop(rank, None)
            return
        silent_s = time.monotonic() - self._unwell.setdefault(rank, time.monotonic())
        if silent_s > silence_s:
            where = f"before the warm-up, process {seen}, silent for {silent_s:.1f} s"
            raise RankLostError(rank, where)

    def view(self, rank: int) -> View:
        """Return what is seen of a rank's process."""
        card = self.card(rank)
        return view(ProcessCard(card["pid"], card["started"], card["place"])) if card else "unseen"

    def card(self, rank: int) -> dict[str, Any]:
        """Return what a rank has left of itself, nothing where it has not come."""
        if rank not in self._cards:
            body = self._link.get_now(self._key("card", rank))
            if body is None:
                return {}
            self._cards[rank] = json.loads(body)
        return self._cards[rank]

    def host(self, rank: int) -> str:
        """Return the name of a rank's machine, as far as this rank has heard of it."""
        return str(self._cards.get(rank, {}).get("host", ""))

    def elsewhere(self, missing: list[int]) -> str:
        """Return which rank has passed by this meeting, this rank's n-th, if one has."""
        for rank in missing:
            if (place := self._link.get_now(f"{self._prefix}/at/{rank}")) is None:
                continue
            number, _, session = place.decode().partition(" ")
            # In this order: a rank leaves its word at a meeting before it says that it is there.
            is_here = self._link.has([self._key("word", rank)])
            if int(number) >= self._number and not is_here:
                return f"rank {rank} is at {session} and not here"
        return ""
