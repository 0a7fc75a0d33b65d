# SPDX-License-Identifier: Apache-2.0
"""Which rank is lost, and how that is known.

Owns the rule by which a rank is given up, by name: from its heartbeat, from what its machine knows
of its process, and from the step and task that it says it is at.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.messages import BYE, FORWARD
from warmup_plugin.coordination.sockets import other_ends
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.process_info import ProcessCard, View, view

if TYPE_CHECKING:
    from warmup_plugin.coordination.links import BeatLink
    from warmup_plugin.settings import Settings


#: Silences after which a rank is given up that nobody sees from its own machine.
_UNSEEN_SILENCES = 5


#: How often rank 0 looks which ranks are connected to its store, seconds.
_CONNECTIONS_S = 1.0


#: Within how many seconds a last word is there again that a stranger has taken away.
RESTORED_S = 3.0


#: How often is asked whether the first connection is there, seconds.
CONNECTING_S = 0.01


class FailureDetector:
    """What this rank makes of the others' heartbeats. Used by one thread, over its own link.

    ``hears``: that thread reads the words with which ranks leave. None leaves without, so where it
    finds no such word a stranger has taken it away, and it will be there again.
    """

    def __init__(self, link: BeatLink, settings: Settings, *, hears: bool = False) -> None:
        self.link = link
        self._hears = hears
        self._silence_s = settings.silence_s
        self._task_limit_s = settings.task_limit_s
        self._began = time.monotonic()
        self._states: dict[int, messages.Beat] = {}
        self._beats: dict[int, tuple[int, float]] = {}
        self._tasks: dict[int, tuple[int, float]] = {}
        self._cards: dict[int, ProcessCard] = {}
        self._hosts: dict[int, str] = {}
        self._ends: dict[int, str] = {}
        self._connected: dict[int, float] = {}
        self._left: dict[int, float] = {}
        self._looked_at = -math.inf
        self._bounds_forward = settings.forward_failure == "end"
        #: Whether this rank is back from a forward in which the others may still be.
        self.is_back = False

    @property
    def is_cut_off(self) -> bool:
        """Return whether it was the store that failed, where a link can tell (`RenewedLink`)."""
        return bool(getattr(self.link, "is_cut_off", False))

    def look(self, ranks: set[int]) -> None:
        """Read the heartbeats of these ranks; raises `RankLostError` for one that is given up."""
        self.look_at_connections()
        for rank in sorted(ranks):
            self._look(rank, time.monotonic())

    def describe(self, rank: int) -> str:
        """Return what a rank was at when it was last heard of."""
        state = self._state(rank)
        if state is None:
            return "has not joined"
        if self._is_alone_in_forward(state):
            return "in its forward, from which this rank is back"
        return f"in step {state.step}" + (f", at {state.task}" if state.task else "")

    def _state(self, rank: int) -> messages.Beat | None:
        """Return a rank's latest heartbeat, not one that a stranger has taken away or put back."""
        body, known = self.link.get_now(f"beat/{rank}"), self._states.get(rank)
        if body is None:
            return known
        found = messages.read(messages.Beat, body, rank, "heartbeat")
        if known is not None and found.beats < known.beats:
            return known
        self._states[rank] = found
        return found

    def _look(self, rank: int, now: float) -> None:
        state = self._state(rank)
        beats, notes = (-1, -1) if state is None else (state.beats, state.notes)
        if self._has_left(rank, now):
            raise RankLostError(rank, f"{self.describe(rank)}, has left")
        if self._beats.get(rank, (-2, 0.0))[0] != beats:
            self._beats[rank] = (beats, now if state is not None else self._began)
        if self._tasks.get(rank, (-2, 0.0))[0] != notes:
            self._tasks[rank] = (notes, now)
        silence_s, at_task_s = now - self._beats[rank][1], now - self._tasks[rank][1]
        if silence_s > self._silence_s and (seen := self.view(rank)) != "runs":
            limit = self._silence_s * (_UNSEEN_SILENCES if seen == "unseen" else 1)
            if silence_s > limit:
                raise RankLostError(
                    rank, f"{self.describe(rank)}, process {seen}, silent for {silence_s:.1f} s"
                )
        is_alone = self._is_alone_in_forward(state)
        stuck_s = silence_s if state is None or state.idle else at_task_s
        if is_alone and at_task_s > self._task_limit_s:
            raise RankLostError(
                rank, f"still in its forward {at_task_s:.0f} s after another rank is back from its "
                "own (a collective that others do not enter?): task_limit_s",
            )  # fmt: skip
        if stuck_s > self._task_limit_s:
            raise RankLostError(rank, f"{self.describe(rank)} for {stuck_s:.0f} s: task_limit_s")

    def _has_left(self, rank: int, now: float) -> bool:
        """Return whether a rank has left, and nothing that it has said is still to be heard."""
        if self.link.get_now(f"{BYE}/{rank}") is None:
            return False
        if not (self._hears and self.link.seal.is_in_force):
            return True
        since = self._left.setdefault(rank, now)
        return now - since > RESTORED_S and not self.link.seal.is_recent(RESTORED_S)

    def _is_alone_in_forward(self, state: messages.Beat | None) -> bool:
        """Return whether a rank is in a forward from which this one is back.

        It may be compiling what the others had at hand, so it gets as long as a task.
        """
        is_there = state is not None and state.idle and state.step == FORWARD
        return self.is_back and is_there and self._bounds_forward

    def view(self, rank: int) -> View:
        """Return what is seen of a rank's process, from here or by a rank of its machine."""
        card = self._card(rank)
        if card is None:
            return "unseen"
        seen = view(card)
        if seen != "unseen":
            return seen
        for mate in range(self.link.size):
            other = self._card(mate)
            if mate != rank and other is not None and other.place == card.place:
                state = self._state(mate)
                if state is not None and self._is_fresh(mate, state.beats):
                    found: View = state.mates.get(str(rank), "unseen")
                    return found
        return self._view_of_connection(rank)

    def _view_of_connection(self, rank: int) -> View:
        """Return whether a rank of another host is cut off from rank 0, who holds the store."""
        if self.link.rank == 0:
            self.look_at_connections()
            is_cut_off = self._connected.get(rank, math.inf) < self._looked_at
            return "cut off" if is_cut_off else "unseen"
        state = self._state(0)
        is_told = rank != 0 and state is not None and self._is_fresh(0, state.beats)
        found: View = state.mates.get(str(rank), "unseen") if is_told and state else "unseen"
        return found

    def look_at_connections(self) -> None:
        """See on rank 0, once a second, which ranks of other hosts are connected to its store."""
        now = time.monotonic()
        if self.link.rank or not self.link.port or now - self._looked_at < _CONNECTIONS_S:
            return
        for rank in range(1, self.link.size):
            self._card(rank)
        ends = {end: rank for rank, end in self._ends.items() if end}
        if ends:
            found = other_ends(self.link.port, ends, self._silence_s)
            self._connected |= {ends[end]: now for end in found}
        self._looked_at = now

    def _is_fresh(self, rank: int, beats: int) -> bool:
        now = time.monotonic()
        if self._beats.get(rank, (-2, 0.0))[0] != beats:
            self._beats[rank] = (beats, now)
        return now - self._beats[rank][1] <= self._silence_s

    def host_of(self, rank: int) -> str:
        """Return the name of a rank's machine, empty where the rank has not joined."""
        self._card(rank)
        return self._hosts.get(rank, "")

    def mates(self) -> dict[str, View]:
        """Return what this process sees of the other ranks on its machine."""
        others = (rank for rank in range(self.link.size) if rank != self.link.rank)
        cards = {rank: card for rank in others if (card := self._card(rank)) is not None}
        seen = {str(rank): view(card) for rank, card in cards.items()}
        for rank, found in seen.items():
            if found == "unseen" and self.link.rank == 0:
                seen[rank] = self._view_of_connection(int(rank))
        return {rank: found for rank, found in seen.items() if found != "unseen"}

    def _card(self, rank: int) -> ProcessCard | None:
        if rank not in self._cards:
            body = self.link.get_now(f"card/{rank}")
            if body is None:
                return None
            card = messages.read(messages.Card, body, rank, "process card")
            self._hosts[rank], self._ends[rank] = card.host, card.end
            self._cards[rank] = ProcessCard(card.pid, card.started, card.place)
        return self._cards[rank]
