# SPDX-License-Identifier: Apache-2.0
"""The meeting before the first: are all ranks of an engine about to warm up together?

Owns that question, asked on the store of the job (the one that torch was initialised with) and in
no collective: a rank without this package would not join one, and a rank that has died would let
the others wait in it for as long as the engine's time-out. Each rank says whose process it is, then
whether it can; rank 0 also opens the session's store, and the others join that one before they say
so. The answer is **one record, written by compare-and-set**: all ranks go on into the session, or
none does and all know why, or one of them is lost and all that live name it. Ranks of which some
may never come, as a pipeline's other stages, also say which warm-up they are about to begin, and
wait for each other for seconds. Every question to the store is bounded. Refuses to know what the
engine makes of the answer.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from warmup_plugin.coordination.heartbeat import announce
from warmup_plugin.coordination.kv_client import StoreLink, innermost, link_beside
from warmup_plugin.coordination.offers import Offer, read_offer
from warmup_plugin.coordination.opening import Answer, Opening
from warmup_plugin.coordination.versions import BUILD, find_older, other_version, tell_older
from warmup_plugin.engines.presence import Presence
from warmup_plugin.errors import RankLostError
from warmup_plugin.runtime.needs import lacking
from warmup_plugin.runtime.polling import wait_until

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: How long ranks wait for each other before the first forward, seconds. A rank without this package
#: never comes, so this is what one installation mistake costs each start.
MEET_S = 300.0
#: How long ranks wait for others to come at all that may have no such warm-up, seconds: what it
#: costs each start where some do not have it.
GATHER_S = 5.0
#: How long the job's store may take for the word that a rank is lost, seconds: its process may be
#: the one whose other store has been waited for.
_LAST_WORD_S = 2.0
#: The longest pause between two questions, seconds, while the wait is brief.
_EACH_ASKS_S = 0.002
#: All have answered rank 0's offer; what all can use of it says whether another one follows.
_ANSWERED = f"answered {BUILD}"

#: One connection to the store of the job for all meetings of a process, by that store.
_connections: dict[int, tuple[Any, StoreLink | None]] = {}


class Readiness:
    """One rank at one such meeting, ``session`` among those of the same ranks, the group ``of``.

    ``may_stay_away``: some of these ranks may have no such warm-up, and then do not come.
    """

    def __init__(
        self,
        store: Any,
        session: str,
        rank: int,
        size: int,
        settings: Settings,
        *,
        of: str = "",
        may_stay_away: bool = False,
    ) -> None:
        self._may_stay_away, self._about = may_stay_away, ""
        self._store, self._round = store, 0
        self._rank, self._size, self._settings = rank, size, settings
        self._session, self._prefix = session, f"warmup_plugin/{of}"
        self._link = _linked(store, rank, size, settings.silence_s)
        try:
            self._presence = Presence(self._link, rank, self._prefix, self._key)
        except RankLostError as error:  # rank 0, with its store
            error.name_host(self._link.leader)
            raise

    def _key(self, kind: str, rank: int | str = "") -> str:
        return f"{self._prefix}/{self._session}/{kind}/{rank}"

    def meet(
        self, reason: str, greeting: str = "", about: str = ""
    ) -> tuple[StoreLink | None, str]:
        """Return the session's store, or why the ranks do not warm up together, on every rank.

        ``reason``: why this rank cannot, or empty. ``about``: what this warm-up is, where it need
        not be the others'. Raises `RankLostError` where a rank is lost.
        """
        usable: Sequence[bool] | None = None
        self._about = about
        opening = Opening(self._rank, self._size, self._settings, self._store, greeting)
        with self._naming_hosts(), contextlib.closing(opening):
            while True:
                found = self._met(opening, reason, usable)
                if found.get("go") != _ANSWERED:
                    break
                usable = found["usable"]
                if (link := opening.settled(usable)) is not None:
                    return link, ""
                self._round += 1
            if "lost" in found:
                raise RankLostError(found["lost"], found["reason"])
        return None, str(found["reason"])

    def _met(self, opening: Opening, reason: str, usable: Sequence[bool] | None) -> dict[str, Any]:
        """Try rank 0's next offer; return the one record of what has come of it."""
        try:
            answer = self._answered(opening, reason, usable)
            word = {
                "reason": answer.failure, "version": BUILD, "about": self._about,
                "usable": list(answer.usable),
            }  # fmt: skip
            self._link.set(self._of_round("word", self._rank), json.dumps(word).encode())
            if self._round == 0:
                tell_older(self._store, f"{self._prefix}/{self._session}", self._rank)
                self._presence.say_where(self._session)
            return self._decided()
        except RankLostError as error:
            found = {"lost": error.rank, "reason": error.reason}
            self._link.hurry(_LAST_WORD_S)
            with contextlib.suppress(RankLostError):  # the store may be what is lost
                found = self._decide(found)
            return found

    def _answered(self, opening: Opening, reason: str, usable: Sequence[bool] | None) -> Answer:
        """Return what this rank can use of the offer, or why it can do nothing; rank 0 makes it."""
        try:
            reason = reason or (lacking(self._rank, self._size) if self._round == 0 else "")
        except Exception as error:  # noqa: BLE001  # no descriptor, no memory: its word to the others
            reason = f"{type(error).__name__}: {error}"[:400]
        if self._rank == 0:
            offer = Offer(error=reason) if reason else opening.offer(usable)
            self._link.set(self._of_round("offer"), json.dumps(offer.to_json()).encode())
        else:
            offer = Offer() if reason else self._offered()
        if reason or not (offer.way or self._rank == 0):
            return Answer((), reason or offer.error)  # rank 0 says it, too, and is heard first
        answer = opening.answer(offer)
        if opening.link is not None:
            announce(opening.link)
        return answer

    def _offered(self) -> Offer:
        """Return rank 0's offer, once it is there; none where the answer is there already."""
        offer = self._of_round("offer")
        self._wait([offer], {0})
        self._presence.card(0)  # its host, while there is somebody to ask
        body = self._link.get_now(offer)
        if self._link.has([self._of_round("decision")]) or body is None:
            return Offer()  # it is too late to join, and rank 0's store may be gone already
        return read_offer(json.loads(body))

    def _of_round(self, kind: str, rank: int | str = "") -> str:
        """Return the key of a value that each offer has anew."""
        return self._key(f"{kind}{self._round or ''}", rank)

    def _decided(self) -> dict[str, Any]:
        if self._rank == 0:
            words = [self._of_round("word", rank) for rank in range(self._size)]
            self._wait(words, set(range(self._size)))
        else:
            self._wait([self._of_round("decision")], self._neighbours())
        body = self._link.get_now(self._of_round("decision"))
        return self._decide(self._judged()) if body is None else dict(json.loads(body))

    def _judged(self) -> dict[str, Any]:
        """Return what this rank makes of the words that are there; the record may say otherwise."""
        usable: list[bool] | None = None
        for rank in range(self._size):
            body = self._link.get_now(self._of_round("word", rank))
            if body is None:
                continue
            word = json.loads(body)
            if reason := other_version(word.get("version")):
                return {"go": "without", "reason": f"rank {rank}: {reason}"}
            if word["reason"]:
                return {"go": "without", "reason": f"rank {rank}: {word['reason']}"}
            if word["about"] != self._about:
                reason = f"rank {rank} is about to begin another warm-up than rank {self._rank}"
                return {"go": "without", "reason": reason}
            theirs = word["usable"]
            usable = theirs if usable is None else [*map(all, zip(usable, theirs, strict=False))]
        return {"go": _ANSWERED, "usable": usable}

    def _decide(self, record: dict[str, Any]) -> dict[str, Any]:
        body = self._link.compare_set(
            self._of_round("decision"), json.dumps(record, sort_keys=True)
        )
        found: dict[str, Any] = json.loads(body)
        return found

    # -- who does not come -------------------------------------------------------------------------

    def _neighbours(self) -> set[int]:
        """Return whom this rank looks after: rank 0, and who is likely to be of its machine."""
        return {0, (self._rank - 1) % self._size, (self._rank + 1) % self._size}

    def _wait(self, keys: list[str], ranks: set[int]) -> None:
        """Wait for these keys, or for the decision, and look after these ranks meanwhile."""
        others, decision = sorted(ranks - {self._rank}), [self._of_round("decision")]

        def look(waited_s: float) -> None:
            missing = [r for r in others if not self._link.has([self._of_round("word", r)])]
            for rank in missing:
                self._presence.look(rank, self._settings.silence_s)
            # Of the engine's own connection, which has no bound: the store has answered just now.
            if older := find_older(self._store, f"{self._prefix}/{self._session}", missing):
                self._decide({"go": "without", "reason": older})
            elif elsewhere := self._presence.elsewhere(missing):
                self._decide({"go": "without", "reason": elsewhere})
            elif self._may_stay_away and waited_s > GATHER_S and (away := self._away(missing)):
                named = ", ".join(map(str, away))
                reason = f"rank {named} has not come within {GATHER_S:.0f} s"
                self._decide({"go": "without", "reason": reason})
            elif waited_s > MEET_S:
                self._decide(self._absent(missing))

        def is_over() -> bool:
            return self._link.has(keys) or (keys != decision and self._link.has(decision))

        wait_until(is_over, look, brief_pause_s=_EACH_ASKS_S)

    def _away(self, missing: list[int]) -> list[int]:
        """Return the ranks that have not even left a card: they may never come."""
        return [rank for rank in missing if not self._presence.card(rank)]

    def _absent(self, missing: list[int]) -> dict[str, Any]:
        """Return the record of a meeting to which not all have come in time.

        A rank that has been here and that no rank can see any more may be dead: it is lost.
        """
        for rank in missing:
            if self._presence.card(rank) and self._presence.view(rank) != "runs":
                reason = f"before the warm-up, has not got ready within {MEET_S:.0f} s"
                return {"lost": rank, "reason": reason}
        named = ", ".join(map(str, missing))
        reason = f"rank {named} did not come within {MEET_S:.0f} s: is the plugin there?"
        return {"go": "without", "reason": reason}

    @contextlib.contextmanager
    def _naming_hosts(self) -> Iterator[None]:
        """Have the loss of a rank name its host, as far as this rank has heard of it."""
        try:
            yield
        except RankLostError as error:
            with contextlib.suppress(RankLostError):
                self._presence.card(error.rank)
            host = self._presence.host(error.rank)
            error.name_host(host or (self._link.leader if error.rank == 0 else ""))
            raise


def _linked(store: Any, rank: int, size: int, silence_s: float) -> StoreLink:
    """Return a connection of our own to the job's store, on which every answer is bounded.

    The engine's own has no bound, and must keep what it has. Where no other can be made, as with no
    descriptor left, that one serves, so that this rank can say so.
    """
    inner = innermost(store)
    if inner is None:
        return StoreLink(store, rank, size)
    held, link = _connections.get(id(inner), (None, None))
    if held is not inner:
        link = None
        with contextlib.suppress(OSError):
            try:
                link = link_beside(inner, rank, size, silence_s)
            except RankLostError as error:
                raise RankLostError(0, error.reason, inner.host) from error
            _connections[id(inner)] = inner, link
    return link or StoreLink(inner, rank, size)
