# SPDX-License-Identifier: Apache-2.0
"""A round between the ranks: its name, the vote of each rank, the decision that all act on.

Owns the three kinds of which `votes.py` and `decisions.py` have one for each round. A round is a
vote of every rank and one decision of rank 0; both cross ranks as JSON objects of exactly these
fields, every field of a vote among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec


class Vote(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rank's part of a round. ``step``: the round's name, set where the vote is sent."""

    step: str = ""


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rank 0's decision at a round; all ranks act on it.

    ``go`` names what happens next, ``reason`` says why, for log and report; ``step`` as above.
    """

    go: str
    reason: str = ""
    step: str = ""


class VoteError(Exception):
    """A rank that lives has handed in a vote that is not one of this round, or decided one."""

    def __init__(self, rank: int, reason: str) -> None:
        super().__init__(rank, reason)
        self.rank = rank
        self.reason = reason


V = TypeVar("V", bound=Vote)
D = TypeVar("D", bound=Decision)
#: From every rank's vote, by rank, to the decision.
Decide = Callable[[Mapping[int, V]], D]


class Round(Generic[V, D]):
    """One round by its name, with the types of its votes and of its decision.

    ``opens``: it is the first of a session, whose messages say of which version their rank is.
    """

    __slots__ = ("decision", "name", "opens", "vote")

    def __init__(self, name: str, vote: type[V], decision: type[D], *, opens: bool = False) -> None:
        self.name = name
        self.vote = vote
        self.decision = decision
        self.opens = opens

    def again(self, number: int) -> Round[V, D]:
        """Return this round as it is held for the ``number``-th time in one session, from 0 on."""
        return Round(f"{self.name}{number}", self.vote, self.decision)
