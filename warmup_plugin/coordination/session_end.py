# SPDX-License-Identifier: Apache-2.0
"""The end of a session, before its last round or after it: one record, of which all ranks hear.

Owns that record, `messages.Lost`, and the order in which ranks leave the store. A rank that is
lost ends the session for all that are left; so does one that lives and cannot go on, and then all
of them may go on without this package.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from warmup_plugin.coordination import messages
from warmup_plugin.coordination.failure_detector import RESTORED_S
from warmup_plugin.coordination.messages import BYE, LOST, Lost, said
from warmup_plugin.errors import RankLostError, SessionError
from warmup_plugin.runtime.polling import wait_until, within

if TYPE_CHECKING:
    from warmup_plugin.coordination.failure_detector import FailureDetector
    from warmup_plugin.coordination.heartbeat import Heartbeat
    from warmup_plugin.coordination.links import Link
    from warmup_plugin.settings import Settings

#: How long a rank that was stopped gives the store to read what arrived meanwhile, seconds.
_CATCH_UP_S = 0.5


class SessionEnd:
    """The end of one session, as one rank tells it and hears of it.

    Raises `RankLostError` from any call once a rank is given up, by this rank or another.
    """

    def __init__(
        self, link: Link, settings: Settings, detector: FailureDetector, heartbeat: Heartbeat
    ) -> None:
        self.rank = link.rank
        self.size = link.size
        self._link = link
        self._settings = settings
        self._detector = detector
        self._heartbeat = heartbeat
        #: All ranks have heard of the last round: nobody need be told of an end.
        self._is_over = False
        #: This rank has heard that the session ends since a rank is lost.
        self._has_lost = False
        #: The record of the end that this rank has heard: it says no other, as where a stranger
        #: takes that one away.
        self._word = ""

    def _end(self, record: Lost) -> NoReturn:
        """End the session, for ranks at another step too: they find this before they act."""
        raise self._heard(self._link.compare_set(LOST, self._word or said(LOST, record)))

    def _heard(self, body: bytes) -> RankLostError | SessionError:
        """Return the error by which the session ends."""
        found, self._word = _as_error(body), body.decode()
        self._has_lost |= isinstance(found, RankLostError)
        return found

    def abandon(
        self, reason: str, *, of: int | None = None, lives: bool = False
    ) -> RankLostError | None:
        """Tell the others that this rank leaves without having finished, unless all do.

        ``of``: since that other one is lost. ``lives``: this one goes on without this package, and
        so may they. Returns the loss by which the session ends, where that has been recorded
        before, or the store is not there any more: then this rank must not go on either.
        """
        if self._is_over:
            return None
        try:
            found = self._heard(
                self._tell_lost(self.rank if of is None else of, reason, lives=lives)
            )
        except RankLostError as error:  # a record that cannot be read
            return error
        return found if isinstance(found, RankLostError) else None

    def _tell_lost(self, rank: int, reason: str, *, lives: bool = False) -> bytes:
        """Record the end of the session unless it has ended; return the record in force."""
        record = self._word or said(LOST, Lost(rank, reason, lives=lives))
        try:
            return self._link.compare_set(LOST, record)
        except RankLostError as gone:
            return self._leave_word(said(LOST, lost_by(gone)))
        except SessionError:  # strangers write there all the time
            return self._leave_word(record)

    def _leave_word(self, record: str) -> bytes:
        """Write the end of the session without an answer of the store; return the record."""
        body = record.encode()
        with contextlib.suppress(RankLostError):  # rank 0 may only be stopped, and wake up
            self._link.set(LOST, body)
        return body

    def _tell_last(self, rank: int, reason: str, *, misses_store: bool = False) -> None:
        """Tell that a rank is lost before this process ends, with the store if it is rank 0's.

        ``misses_store``: the store has not answered for a silence, and is not asked once more.
        """
        if misses_store:
            self._leave_word(said(LOST, Lost(rank, reason)))
        else:
            self._tell_lost(rank, reason)
        if self.rank == 0:
            others = range(1, self.size)
            with contextlib.suppress(TimeoutError, RankLostError):  # it ends either way
                wait_until(lambda: _have_left(self._link, others), within(_CATCH_UP_S))

    def confirm(self) -> None:
        """Make sure, before this rank writes or installs, that the others have not gone on.

        A process that was stopped wakes up where it was; by then it may have been given up. Raises
        `RankLostError` if so. A stop between this call and the write is not found out; what is
        written then is what all had agreed on.
        """
        self._obey()
        while self.rank == 0 and self._heartbeat.overslept():
            # Its store was stopped with it, and has the others' last words still to read.
            with contextlib.suppress(TimeoutError):  # nobody has given it up
                wait_until(lambda: self._link.has([LOST]), within(_CATCH_UP_S))
            self._obey()

    def _obey(self) -> None:
        if (body := self._link.get_now(LOST)) is not None:
            raise self._heard(body)

    @property
    def strangers(self) -> str:
        """What others than the ranks have done to the store, as this rank has seen it."""
        return self._link.seal.told

    def _withstand(self) -> None:
        """Write again what strangers have taken away; `SessionError` once they do not stop."""
        self._link.restore()
        limit_s = self._settings.silence_s
        if self._link.seal.lasted_s() > limit_s:
            raise SessionError(f"{self.strangers} (for more than {limit_s:g} s)")

    def close(self) -> None:
        """Stop the heartbeat and close the store.

        Rank 0 holds the store, so it leaves last: see `_see_off`.
        """
        if self.rank:  # else its next beat might find the store gone
            self._heartbeat.stop()
        try:
            self._link.set(f"{BYE}/{self.rank}", b"1")
            if self.rank == 0 or self._link.seal.told:  # what it has left may have to be restored
                self._see_off()
        except (SessionError, RankLostError, TimeoutError):
            pass  # the session is over either way, and its outcome is recorded already
        finally:
            self._heartbeat.stop()
            if (
                self._link.sweeps
            ):  # else the store goes with this rank, and a late one hears of it so
                self._tell_lost(0, "has left")
            self._link.close()

    def _see_off(self) -> None:
        """Wait until every rank has said goodbye or is lost, for one silence at most.

        After a loss one that is stuck in its forward ends within the grace period, without a word.
        A rank that does not hold the store has but its goodbye to look after, where nothing else of
        the session's end is its word.
        """
        limit_s = self._settings.silence_s
        if self.rank and not self._word:
            limit_s = min(limit_s, RESTORED_S)
        if self._has_lost:
            limit_s = min(limit_s, max(self._settings.grace_s, _CATCH_UP_S))
        missing, limit = {*range(self.size)} - {self.rank}, within(limit_s)

        def look(waited_s: float) -> None:
            limit(waited_s)
            self._link.restore()
            for rank in sorted(missing):
                try:
                    self._detector.look({rank})
                except RankLostError:
                    missing.discard(rank)

        def is_done() -> bool:
            return not missing or _have_left(self._link, sorted(missing))

        wait_until(is_done, look)


def turn_away(link: Link, reason: str, limit_s: float) -> None:
    """Tell the others that this rank lives and cannot take part, before it has a `Coordinator`.

    Closes the store, on rank 0 when the others have, ``limit_s`` later at the latest.
    """
    try:
        link.compare_set(LOST, said(LOST, unable(link.rank, reason)))
        link.set(f"{BYE}/{link.rank}", b"1")
        if link.rank == 0:
            wait_until(lambda: _have_left(link, range(1, link.size)), within(limit_s))
    except (SessionError, RankLostError, TimeoutError):
        pass  # there is nobody left to tell
    finally:
        link.close()


def _have_left(link: Link, ranks: Iterable[int]) -> bool:
    """Return whether all of these ranks have said so, and not strangers for them."""
    byes = [f"{BYE}/{rank}" for rank in ranks]
    return link.has(byes) and all(link.get_now(bye) is not None for bye in byes)


def _as_error(body: bytes) -> RankLostError | SessionError:
    """Return the error by which a session ends."""
    found = messages.read(Lost, body, 0, "record of the session's end")
    if found.lives:
        return SessionError(f"rank {found.lost} cannot go on: {found.reason}")
    return RankLostError(found.lost, found.reason)


def unable(rank: int, reason: str) -> Lost:
    """Return the record that a rank lives and cannot go on."""
    return Lost(rank, reason, lives=True)


def lost_by(error: RankLostError) -> Lost:
    """Return the record that a rank is given up."""
    return Lost(error.rank, error.reason)
