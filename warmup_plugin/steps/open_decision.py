# SPDX-License-Identifier: Apache-2.0
"""What the ranks decide of a session before step 1: whether they are one job, and may share. Pure.

Owns what must be equal on all ranks, what may differ, and which difference keeps them from sharing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from warmup_plugin.cache.stamps import FINGERPRINT, INDETERMINATE, PACKAGES, by_content
from warmup_plugin.coordination.decisions import OpenDecision
from warmup_plugin.coordination.rounds import VoteError
from warmup_plugin.coordination.votes import OpenVote
from warmup_plugin.errors import IdentityError
from warmup_plugin.identity import Difference, Factors, Identity, diff
from warmup_plugin.steps.decisions import Votes

#: Settings of which rank 0's are used by all.
RANK_0S_SETTINGS = ("mode", "strategy", "on_hit", "budget_s", "margin", "race")


#: Factors that say which tactics there are: ranks that differ in one cannot exchange theirs.
_ENVIRONMENT = ("stamp", "gpu", "switches")
#: Those of them that take tactics away or add some: ranks that differ in one cannot time in lock
#: step, tactic by tactic. What a switch of ``_TIMES_ONLY`` changes is how each is timed.
_LIMITS, _TIMES_ONLY = ("gpu.capability", "switches."), ("switches.FLASHINFER_AUTOTUNE_TIMER",)


_MAY_DIFFER = (
    "each rank tunes for itself: from now on ranks may serve different tactics for one call; "
    "WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 forbids that, and all ranks serve FlashInfer's defaults then"
)


def decide_open(votes: Votes[OpenVote]) -> OpenDecision:
    """Decide who is here, on which nodes, and how far they can share.

    Ranks that see all that some fields of the stamp depend on alike take these from one another.
    """
    looked_up = _looked_up(votes)
    votes = {rank: _by_content(_completed(vote, looked_up)) for rank, vote in votes.items()}
    nodes: dict[str, list[int]] = {}
    for rank in sorted(votes):
        nodes.setdefault(votes[rank].ranks.node, []).append(rank)
    first = [votes[ranks[0]] for ranks in nodes.values()]
    require_agreement = any(vote.require_agreement for vote in votes.values())
    warnings = _other_settings(votes)
    go, reason = "refuse", _refusal(votes)
    if not reason:
        go, reason = _how_far(votes, require_agreement=require_agreement)
        if go == "per_rank" and len(votes) > 1:
            warnings.append(_MAY_DIFFER)
        if votes[0].mode == "require-complete" and go != "share":
            # Nothing would be read from a table, and most of these time.
            go, reason = "refuse", f"mode require-complete: {reason}"
    rank_0 = votes[0]
    return OpenDecision(
        go=go, reason=reason, plugin=rank_0.plugin, nodes=list(nodes.values()),
        writers=[ranks[0] for ranks in nodes.values()], hosts=[vote.host for vote in first],
        coordinates=[(v.ranks.tp_rank, v.ranks.pp_rank, v.ranks.dp_rank) for v in first],
        require_agreement=require_agreement, factors=_common_factors(votes), looked_up=looked_up,
        session=rank_0.session, mode=rank_0.mode, strategy=rank_0.strategy, on_hit=rank_0.on_hit,
        budget_s=rank_0.budget_s, margin=rank_0.margin, race=rank_0.race, warnings=warnings,
    )  # fmt: skip


def _looked_up(votes: Votes[OpenVote]) -> dict[str, str]:
    """Return what ranks that see alike have looked up for each other."""
    alike = [vote for vote in votes.values() if vote.alike]
    found: dict[str, str] = {}
    for name in sorted({name for vote in alike for name in vote.takes}):
        stamp = next(vote.factors["stamp"] for vote in alike if name not in vote.takes)
        found[name] = stamp[name]
        if name == FINGERPRINT and PACKAGES in stamp:
            found[PACKAGES] = stamp[PACKAGES]
    return found


def _completed(vote: OpenVote, looked_up: Mapping[str, str]) -> OpenVote:
    """Return a vote with those fields of the stamp that its rank takes."""
    if not (vote.alike and vote.takes):
        return vote
    return _with_stamp(vote, {**vote.factors["stamp"], **taken_from(looked_up, vote.takes)})


def taken_from(looked_up: Mapping[str, str], takes: Collection[str]) -> dict[str, str]:
    """Return the fields that a rank takes from others, with what belongs to them."""
    names = [*takes, *([PACKAGES] if FINGERPRINT in takes and PACKAGES in looked_up else [])]
    return {name: looked_up[name] for name in names}


def _by_content(vote: OpenVote) -> OpenVote:
    """Return a vote with the stamp that is equal wherever equal packages are installed."""
    stamp = vote.factors["stamp"]
    return _with_stamp(vote, by_content(stamp)) if PACKAGES in stamp else vote


def _with_stamp(vote: OpenVote, stamp: Mapping[str, str]) -> OpenVote:
    return msgspec.structs.replace(vote, factors={**vote.factors, "stamp": stamp})


def _how_far(votes: Votes[OpenVote], *, require_agreement: bool) -> tuple[str, str]:
    """Return how far the ranks share, and why not further."""
    if reason := next((vote.lack for vote in votes.values() if vote.lack), ""):
        return "unguarded", reason
    if reason := _cannot_share(votes):
        if any(vote.must_share for vote in votes.values()) or (
            any(vote.may_keep_step for vote in votes.values()) and _can_keep_step(votes)
        ):
            return "refuse", reason
        return "defaults" if require_agreement else "per_rank", reason
    if votes[0].strategy == "per_rank":
        return "per_rank", "strategy per_rank"
    return "share", ""


def _refusal(votes: Votes[OpenVote]) -> str:
    for rank, vote in votes.items():
        if vote.tuning:
            return f"rank {rank}: a FlashInfer tuning context is open already; close it first"
        said = (vote.ranks.rank, vote.ranks.world_size)
        if said != (rank, len(votes)):
            return f"rank {rank} of {len(votes)} says that it is rank {said[0]} of {said[1]}"
    return ""


def _cannot_share(votes: Votes[OpenVote]) -> str:
    """Return why the ranks' tactics cannot be exchanged, or an empty string."""
    for rank, vote in votes.items():
        if not vote.keys_tell_options_apart:
            return (
                f"rank {rank}: the file keys of FlashInfer {vote.version} "
                "cannot tell runner options apart"
            )
    for rank, found in _differences(votes).items():
        if environment := [d for d in found if d.path.split(".")[0] in _ENVIRONMENT]:
            return _say(rank, environment)
    return ""


def _can_keep_step(votes: Votes[OpenVote]) -> bool:
    """Return whether all ranks have the same tactics, as far as their environments tell."""
    differences = [d.path for found in _differences(votes).values() for d in found]
    return not any(p.startswith(_LIMITS) and p not in _TIMES_ONLY for p in differences)


def _differences(votes: Votes[OpenVote]) -> dict[int, list[Difference]]:
    """Return by rank the factors in which it differs from what all have in common."""
    factors = _common_factors(votes)
    common, found = Identity(factors), {}
    for rank, vote in votes.items():
        if vote.factors == factors:  # as good as always, and a thousand ranks are compared here
            continue
        stamp = _known_first(vote.factors, factors)
        found[rank] = diff(common, _identity_of(rank, {**vote.factors, "stamp": stamp}))
    return {rank: differences for rank, differences in found.items() if differences}


def _identity_of(rank: int, factors: Factors) -> Identity:
    """Return the identity of a rank's factors; what is none is named, with the rank."""
    try:
        return Identity(factors)
    except IdentityError as error:
        raise VoteError(rank, f"its vote at step open has factors of which {error}") from error


def foreseen_factors(mine: Factors) -> Factors:
    """Return what the ranks will have in common if these are rank 0's, and it knows all of them."""
    alike = {**mine, "stamp": by_content(mine["stamp"])}
    return {**alike, "stamp": _known_first(alike, alike)}


def _common_factors(votes: Votes[OpenVote]) -> Factors:
    """Return rank 0's factors; a stamp field it does not know is taken from the first that does."""
    common = dict(votes[0].factors)
    for vote in votes.values():
        common["stamp"] = _known_first(common, vote.factors)
    return common


def _known_first(one: Factors, other: Factors) -> Factors:
    """Return one's stamp, fields unknown to it taken from the other."""
    mine, theirs = one.get("stamp", {}), other.get("stamp", {})
    names = mine.keys() | theirs.keys()
    known = {n: theirs.get(n) if mine.get(n) in INDETERMINATE else mine.get(n) for n in names}
    return {name: "unknown" if value in INDETERMINATE else value for name, value in known.items()}


def _other_settings(votes: Votes[OpenVote]) -> list[str]:
    """Return what ranks were told differently; file keys are exact, so they share all the same."""
    said = [
        f"rank {rank} has {name}={getattr(vote, name)}, rank 0's {getattr(votes[0], name)} is used"
        for rank, vote in votes.items()
        for name in RANK_0S_SETTINGS
        if getattr(vote, name) != getattr(votes[0], name)
    ]
    return said + [_say(rank, found) for rank, found in _differences(votes).items()]


def _say(rank: int, differences: list[Difference]) -> str:
    said = [f"{d.path} is {d.b!r}, not {d.a!r} as on rank 0" for d in differences[:3]]
    return f"rank {rank}: {'; '.join(said)}"
