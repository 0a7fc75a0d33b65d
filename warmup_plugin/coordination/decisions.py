# SPDX-License-Identifier: Apache-2.0
"""The decision of each round, a struct on which all ranks act; and the rounds themselves.

Owns the fields and their types. The rules that make a decision out of the votes are in
`steps/decisions.py` and `steps/open_decision.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from warmup_plugin.coordination.rounds import Decision, Round
from warmup_plugin.coordination.votes import (
    AgreeVote,
    CertifyVote,
    EmptyVote,
    Heading,
    LoadVote,
    MergeVote,
    OpenVote,
    PlanVote,
    ReadyVote,
    ShareVote,
    SurveyVote,
)
from warmup_plugin.identity import Factors
from warmup_plugin.settings import Mode, OnHit, Strategy


class OpenDecision(Decision, frozen=True, kw_only=True):
    """go: share | per_rank | defaults | unguarded | refuse.

    ``nodes``: the ranks of each, of which the first are the ``writers``; ``hosts``, ``coordinates``
    (tp, pp, dp): of these. ``looked_up``: fields of the stamp that ranks take from one another.
    ``mode`` to ``race``: the settings of rank 0.
    """

    plugin: str
    nodes: list[list[int]]
    writers: list[int]
    hosts: list[str]
    coordinates: list[tuple[int, int, int]]
    require_agreement: bool
    factors: Factors
    looked_up: dict[str, str]
    session: str
    mode: Mode
    strategy: Strategy
    on_hit: OnHit
    budget_s: float | None
    margin: float
    race: bool
    warnings: list[str]


class AgreeDecision(Decision, frozen=True, kw_only=True):
    """go: one (the table of ``heading``, which rank ``source`` has) | merge | none.

    ``held_by``: the ranks that have that table; ``want``: those whose tables are merged.
    ``deaths``: the union of what the nodes have read.
    """

    mark: str = ""
    warnings: list[str] = msgspec.field(default_factory=list)
    heading: Heading | None = None
    source: int = 0
    held_by: list[int] = msgspec.field(default_factory=list)
    want: list[int] = msgspec.field(default_factory=list)
    deaths: dict[str, tuple[str, list[str]]] = msgspec.field(default_factory=dict)


class LoadDecision(Decision, frozen=True, kw_only=True):
    """go: loaded | empty. ``redundant``: first ranks of nodes whose directory is rank 0's."""

    redundant: list[int]


class CertifyDecision(Decision, frozen=True, kw_only=True):
    """go: serve (with its ``certificate``) | defaults | end (since ``rank`` leaves).

    ``published``: the paths that were written. ``differ``: labels of the tasks of which ranks serve
    different tactics.
    """

    rank: int = 0
    certificate: str = ""
    published: list[str] = msgspec.field(default_factory=list)
    differ: list[str] = msgspec.field(default_factory=list)


class SurveyDecision(Decision, frozen=True, kw_only=True):
    """go: warm | plan | rerun | retry | abort.

    ``rank``: of the error that is the reason. ``op``: what the next run passes through, unless it
    shall ``distrust`` stored tactics first; ``unrecorded``: since a call of it cannot be recorded.
    ``is_empty``: nothing tunable was called. ``skipped``: ops on their default on all ranks, of
    which some ranks would have tuned the ``overruled``. ``certified``: the decision of step 9.
    """

    rank: int = 0
    op: str = ""
    distrust: bool = False
    unrecorded: bool = False
    is_empty: bool = False
    skipped: list[str] = msgspec.field(default_factory=list)
    overruled: list[str] = msgspec.field(default_factory=list)
    certified: CertifyDecision | None = None


class PlanDecision(Decision, frozen=True, kw_only=True):
    """go: tune | wait (for the engine that the reason names, then plan again) | refuse.

    ``plan``: the sha256 of the plan. ``refused``: stored tactics, and why.
    """

    plan: str = ""
    refused: list[str] = msgspec.field(default_factory=list)


class ShareDecision(Decision, frozen=True, kw_only=True):
    """go: install. ``table``, ``manifest``: the sha256 of each.

    ``left``: the tasks that are not settled, as spans of places in the plan. ``failed``, ``apart``:
    tasks without a winner, and those that no table can hold, with reasons. ``errors``: by rank.
    """

    table: str
    manifest: str
    left: list[tuple[int, int]]
    failed: dict[str, str]
    apart: dict[str, str]
    errors: dict[int, str]


class ReadyDecision(Decision, frozen=True, kw_only=True):
    """go: serve | defaults. ``drop``: task id -> reason; ``refused``: which of them for good."""

    drop: dict[str, str]
    refused: list[str]


class GoOn(Decision, frozen=True):
    """go: on."""


OPEN: Final = Round("open", OpenVote, OpenDecision, opens=True)
#: The forward is tuned by FlashInfer itself: all ranks have run it.
UNGUARDED: Final = Round("unguarded", EmptyVote, GoOn)
AGREE: Final = Round("agree", AgreeVote, AgreeDecision)
MERGE: Final = Round("merge", MergeVote, AgreeDecision)
LOAD: Final = Round("load", LoadVote, LoadDecision)
#: Held as ``survey0``, ``survey1``, once for each run of the forward.
SURVEY: Final = Round("survey", SurveyVote, SurveyDecision)
PLAN: Final = Round("plan", PlanVote, PlanDecision)
SHARE: Final = Round("share", ShareVote, ShareDecision)
READY: Final = Round("ready", ReadyVote, ReadyDecision)
CERTIFY: Final = Round("certify", CertifyVote, CertifyDecision)
