# SPDX-License-Identifier: Apache-2.0
"""What the ranks decide of a session before step 1: whether they are one job, and may share. Pure.

Owns what must be equal on all ranks, what may differ, and which difference keeps them from sharing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from warmup_plugin.cache.stamps import FINGERPRINT, INDETERMINATE, PACKAGES, by_content
from warmup_plugin.coordination.votes import VERSION
from warmup_plugin.identity import Difference, Identity, diff
from warmup_plugin.steps.decisions import Word, Words

#: Settings of which rank 0's are used by all.
RANK_0S_SETTINGS = ("mode", "strategy", "on_hit", "budget_s", "margin")


#: Factors that say which tactics there are: ranks that differ in one cannot exchange theirs.
_ENVIRONMENT = ("stamp", "gpu", "switches")


_MAY_DIFFER = (
    "each rank tunes for itself: from now on ranks may serve different tactics for one call; "
    "WARMUP_PLUGIN_REQUIRE_AGREEMENT=1 forbids that, and all ranks serve FlashInfer's defaults then"
)


def decide_open(words: Words) -> Word:
    """Who is here, on which nodes, and how far they can share.

    go: share | per_rank | defaults | unguarded | refuse. ``looked_up``: the fields of
    the stamp that ranks take from one another, since they see all that these depend on alike.
    """
    looked_up = _looked_up(words)
    words = {rank: _by_content(_completed(word, looked_up)) for rank, word in words.items()}
    nodes: dict[str, list[int]] = {}
    for rank in sorted(words):
        nodes.setdefault(words[rank]["ranks"]["node"], []).append(rank)
    record: Word = {
        "nodes": list(nodes.values()),
        "writers": [ranks[0] for ranks in nodes.values()],
        "hosts": [words[ranks[0]]["host"] for ranks in nodes.values()],
        VERSION: words[0][VERSION],
        "coordinates": [_coordinates(words[ranks[0]]) for ranks in nodes.values()],
        "require_agreement": any(word["require_agreement"] for word in words.values()),
        "factors": _common_factors(words),
        "looked_up": looked_up,
        **{name: words[0][name] for name in ("session", *RANK_0S_SETTINGS)},
        "warnings": _other_settings(words),
    }
    if refusal := _refusal(words):
        return {**record, "go": "refuse", "reason": refusal}
    found = _how_far(words, require_agreement=record["require_agreement"])
    if found["go"] == "per_rank" and len(words) > 1:
        record["warnings"].append(_MAY_DIFFER)
    if record["mode"] == "require-complete" and found["go"] != "share":
        # Nothing would be read from a table, and most of these time.
        found = {"go": "refuse", "reason": f"mode require-complete: {found['reason']}"}
    return {**record, **found}


def _looked_up(words: Words) -> dict[str, str]:
    """Return what ranks that see alike have looked up for each other."""
    alike = [word for word in words.values() if word["alike"]]
    found: dict[str, str] = {}
    for name in sorted({name for word in alike for name in word["takes"]}):
        stamp = next(w["factors"]["stamp"] for w in alike if name not in w["takes"])
        found[name] = stamp[name]
        if name == FINGERPRINT and PACKAGES in stamp:
            found[PACKAGES] = stamp[PACKAGES]
    return found


def _completed(word: Word, looked_up: Mapping[str, str]) -> Word:
    """Return a word with those fields of the stamp that its rank takes."""
    if not (word["alike"] and word["takes"]):
        return word
    return _with_stamp(word, {**word["factors"]["stamp"], **taken_from(looked_up, word["takes"])})


def taken_from(looked_up: Mapping[str, str], takes: Collection[str]) -> dict[str, str]:
    """Return the fields that a rank takes from others, with what belongs to them."""
    names = [*takes, *([PACKAGES] if FINGERPRINT in takes and PACKAGES in looked_up else [])]
    return {name: looked_up[name] for name in names}


def _by_content(word: Word) -> Word:
    """Return a word with the stamp that is equal wherever equal packages are installed."""
    stamp = word["factors"]["stamp"]
    return _with_stamp(word, by_content(stamp)) if PACKAGES in stamp else word


def _with_stamp(word: Word, stamp: Mapping[str, str]) -> Word:
    return {**word, "factors": {**word["factors"], "stamp": stamp}}


def _how_far(words: Words, *, require_agreement: bool) -> Word:
    if reason := next((word["lack"] for word in words.values() if word["lack"]), ""):
        return {"go": "unguarded", "reason": reason}
    if reason := _cannot_share(words):
        if any(word["must_share"] for word in words.values()):
            return {"go": "refuse", "reason": reason}
        return {"go": "defaults" if require_agreement else "per_rank", "reason": reason}
    if words[0]["strategy"] == "per_rank":
        return {"go": "per_rank", "reason": "strategy per_rank"}
    return {"go": "share", "reason": ""}


def _coordinates(word: Word) -> list[int]:
    """Return (tp, pp, dp) of a rank: the name of the table it writes."""
    return [word["ranks"].get(f"{axis}_rank", 0) for axis in ("tp", "pp", "dp")]


def _refusal(words: Words) -> str:
    for rank, word in words.items():
        if word["tuning"]:
            return f"rank {rank}: a FlashInfer tuning context is open already; close it first"
        said = (word["ranks"]["rank"], word["ranks"]["world_size"])
        if said != (rank, len(words)):
            return f"rank {rank} of {len(words)} says that it is rank {said[0]} of {said[1]}"
    return ""


def _cannot_share(words: Words) -> str:
    """Return why the ranks' tactics cannot be exchanged, or an empty string."""
    for rank, word in words.items():
        if not word["keys_tell_options_apart"]:
            return (
                f"rank {rank}: the file keys of FlashInfer {word['version']} "
                "cannot tell runner options apart"
            )
    for rank, found in _differences(words).items():
        if environment := [d for d in found if d.path.split(".")[0] in _ENVIRONMENT]:
            return _say(rank, environment)
    return ""


def _differences(words: Words) -> dict[int, list[Difference]]:
    """Return by rank the factors in which it differs from what all have in common."""
    factors = _common_factors(words)
    common, found = Identity(factors), {}
    for rank, word in words.items():
        if word["factors"] == factors:  # as good as always, and a thousand ranks are compared here
            continue
        stamp = _known_first(word["factors"], factors)
        found[rank] = diff(common, Identity({**word["factors"], "stamp": stamp}))
    return {rank: differences for rank, differences in found.items() if differences}


def _common_factors(words: Words) -> dict[str, Any]:
    """Return rank 0's factors; a stamp field it does not know is taken from the first that does."""
    common = dict(words[0]["factors"])
    for word in words.values():
        common["stamp"] = _known_first(common, word["factors"])
    return common


def _known_first(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return one's stamp, fields unknown to it taken from the other."""
    mine, theirs = one.get("stamp", {}), other.get("stamp", {})
    names = mine.keys() | theirs.keys()
    known = {n: theirs.get(n) if mine.get(n) in INDETERMINATE else mine.get(n) for n in names}
    return {name: "unknown" if value in INDETERMINATE else value for name, value in known.items()}


def _other_settings(words: Words) -> list[str]:
    """Return what ranks were told differently; file keys are exact, so they share all the same."""
    said = [
        f"rank {rank} has {name}={word[name]}, rank 0's {words[0][name]} is used"
        for rank, word in words.items()
        for name in RANK_0S_SETTINGS
        if word[name] != words[0][name]
    ]
    return said + [_say(rank, found) for rank, found in _differences(words).items()]


def _say(rank: int, differences: list[Difference]) -> str:
    said = [f"{d.path} is {d.b!r}, not {d.a!r} as on rank 0" for d in differences[:3]]
    return f"rank {rank}: {'; '.join(said)}"
