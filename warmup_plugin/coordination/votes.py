# SPDX-License-Identifier: Apache-2.0
"""The vote of each round, a struct of typed fields. Sizes are in bytes, times in seconds.

Owns the fields and their types. Every field must be there: a rank of another build is found out by
the first that is not (`messages.read_vote`). Whether values make sense is for `steps/decisions.py`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from warmup_plugin.coordination.rounds import Vote
from warmup_plugin.identity import Factors
from warmup_plugin.observability.report_rows import Winner
from warmup_plugin.settings import Mode, OnHit, Strategy


class Place(msgspec.Struct, frozen=True):
    """Where a rank stands, as it says itself: those fields of `RankInfo` that ranks compare."""

    rank: int
    world_size: int
    node: str
    tp_rank: int = 0
    pp_rank: int = 0
    dp_rank: int = 0


class OpenVote(Vote, frozen=True):
    """Before step 1: a rank's place, its settings and its environment.

    ``plugin``, ``version``: those of this package and of FlashInfer. ``lack``: what FlashInfer has
    not. ``tuning``: a context is open already. ``alike``, ``takes``: whether this rank sees the
    packages as rank 0 does, and the fields of the stamp that it takes from another rank.
    """

    plugin: str
    host: str
    ranks: Place
    tuning: bool
    version: str
    lack: str
    keys_tell_options_apart: bool
    factors: Factors
    alike: bool
    takes: list[str]
    must_share: bool
    may_keep_step: bool
    require_agreement: bool
    session: str
    mode: Mode
    strategy: Strategy
    on_hit: OnHit
    budget_s: float | None
    margin: float
    race: bool

    def __post_init__(self) -> None:
        """Refuse factors without the stamp; the rest of them is checked where ranks differ."""
        if not isinstance(self.factors.get("stamp"), dict):
            raise ValueError("factors: must have an object 'stamp'")  # noqa: TRY004  # of a message


class Heading(Vote, frozen=True):
    """The facts about a table that ranks compare.

    ``table``, ``manifest``: the sha256 of each, empty without one. ``defaults``: ids of the tasks
    that serve FlashInfer's default. ``complete``: it answers all that this engine asked for last.
    ``vouched``: a manifest names every entry. ``trusted``: and its files are as they were written.
    """

    table: str
    manifest: str
    defaults: list[str]
    complete: bool
    trusted: bool
    vouched: bool


#: Of no table.
NO_HEADING: Final = Heading("", "", [], complete=False, trusted=False, vouched=False)


class MergeVote(Heading, frozen=True):
    """Step 2, where nodes have different tables: this rank's own."""

    warnings: list[str]


class AgreeVote(MergeVote, frozen=True):
    """Step 2: the table that this rank has read.

    ``mark``: the file by which others see rank 0's directory. ``deaths``: by task id, its label and
    the journals of the processes that have died in it.
    """

    mark: str
    deaths: dict[str, tuple[str, list[str]]]


class LoadVote(Vote, frozen=True):
    """Step 2: whether FlashInfer has taken the agreed table here; ``error`` is empty if so."""

    error: str
    shares_disk: bool


class RankRow(msgspec.Struct, frozen=True):
    """A rank's row in the receipt, as of `RankStats`, with the tasks that it has tuned."""

    rank: int
    steps: list[tuple[str, float, float]]
    waits: list[tuple[str, float, float]]
    tactics_timed: int
    passed_through_tactics: int
    inputs_synthesised: int
    bytes_sent: int
    bytes_received: int
    ops: dict[str, dict[str, int]]
    winners: list[Winner]


class CertifyVote(Vote, frozen=True):
    """Step 9: the answers of this rank's tuner.

    ``served``: the digest of all its answers. ``deviates``: labels of the tasks that it serves
    otherwise than agreed. ``published``: the paths that it has written. ``apart``: label and answer
    of each task that it tuned for itself, by id and by file key. ``leaves``: why its process ends.
    """

    served: str
    deviates: list[str]
    published: list[str]
    row: RankRow
    apart: dict[str, tuple[str, str]]
    leaves: str


class SurveyVote(Vote, frozen=True):
    """Step 3: the calls of this rank's forward.

    ``error``: what it raised, and then ``last_answered``: the op at which, ``stored``: whether it
    was served a stored tactic there. ``unrecorded``: ops of which a call cannot be recorded, with
    the reason. ``missing``, ``unshared``, ``asked``: numbers of tasks. ``heal``: the files are to
    be written anew. ``sealed``: the vote of step 9, where nothing is left to be done before it.
    """

    error: str
    last_answered: str
    stage: int
    unrecorded: dict[str, str]
    missing: int
    stored: bool
    unshared: int
    skipped: list[str]
    ops: list[str]
    asked: int
    heal: bool
    sealed: CertifyVote | None


class PlanVote(Vote, frozen=True):
    """Step 4: the sha256 of each part of this rank's inventory."""

    inventory: list[str]


class ShareVote(Vote, frozen=True):
    """Step 6: the sha256 of this rank's results, and why it has not tuned all that it should."""

    results: str
    error: str


class ReadyVote(Vote, frozen=True):
    """Step 7: the winners that cannot be built here, by task id, with the reason.

    ``refused``: those of them of which a runner says that it does not offer the tactic.
    """

    failed: dict[str, str]
    refused: list[str]
    error: str


class EmptyVote(Vote, frozen=True):
    """A round that only waits for all ranks."""
