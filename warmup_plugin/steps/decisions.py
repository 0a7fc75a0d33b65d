# SPDX-License-Identifier: Apache-2.0
"""What the ranks decide together: from every rank's word to one record for all. Pure.

Owns the rules of the meetings, one function each. A record's ``go`` names what happens next and
``reason`` says why, for log and report. Rank 0 runs these; the others obey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

from warmup_plugin.cache.stamps import FINGERPRINT, INDETERMINATE, PACKAGES, by_content
from warmup_plugin.coordination.votes import VERSION
from warmup_plugin.identity import Difference, Identity, diff

Word = dict[str, Any]
Words = Mapping[int, Word]

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


def _say(rank: int, differences: list[Difference]) -> str:
    said = [f"{d.path} is {d.b!r}, not {d.a!r} as on rank 0" for d in differences[:3]]
    return f"rank {rank}: {'; '.join(said)}"


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


def decide_agree(words: Words) -> Word:
    """Which tables there are and whose bodies are needed.

    go: one (all nodes that have a table have this one, ranks ``held_by``) | merge (``want``: ranks
    whose tables to merge) | none (memory only or cold). ``deaths``, where there are any: task id ->
    its label and the journals of the processes that died in it, each named once.
    """
    deaths = _deaths(words)
    return {**_tables(words), "deaths": deaths} if deaths else _tables(words)


def _deaths(words: Words) -> dict[str, Any]:
    """Return the union of what the nodes have read; they may have one disk or several."""
    found: dict[str, Any] = {}
    for word in words.values():
        for task, (label, journals) in word.get("deaths", {}).items():
            before = found[task][1] if task in found else []
            found[task] = [label, sorted({*before, *journals})]
    return found


def _tables(words: Words) -> Word:
    held = {rank: word["table"] for rank, word in words.items() if word["table"]}
    warnings = [f"rank {rank}: {text}" for rank, word in words.items() for text in word["warnings"]]
    mark = words[0]["mark"]
    if not held:
        return {"go": "none", "mark": mark, "warnings": warnings}
    if len({(word["table"], word["manifest"]) for word in words.values() if word["table"]}) == 1:
        rank = min(held)
        return {
            "go": "one", "from": rank, "held_by": sorted(held), "mark": mark, "warnings": warnings,
            **_heading(words[rank]),
        }  # fmt: skip
    digests = {rank: (words[rank]["table"], words[rank]["manifest"]) for rank in held}
    want = {digests[rank]: rank for rank in sorted(held, reverse=True)}
    return {"go": "merge", "want": sorted(want.values()), "mark": mark, "warnings": warnings}


def _heading(word: Word) -> Word:
    names = ("table", "manifest", "defaults", "complete", "trusted", "vouched")
    return {name: word[name] for name in names}


def decide_load(words: Words) -> Word:
    """Whether FlashInfer takes the agreed table on every rank. go: loaded | empty.

    ``redundant``: first ranks of other nodes whose directory is rank 0's.
    """
    redundant = [rank for rank, word in words.items() if word["shares_disk"]]
    errors = [f"rank {rank}: {word['error']}" for rank, word in words.items() if word["error"]]
    if errors:
        return {"go": "empty", "reason": errors[0], "redundant": redundant}
    return {"go": "loaded", "redundant": redundant}


def decide_survey(words: Words, *, last: bool = False) -> Word:
    """What the forwards have shown. go: warm | plan | rerun | abort.

    A rerun follows where all ranks failed at one op, or all of some pipeline stages at one that no
    other stage calls: without stored tactics in the forward (``distrust``) if it was served one,
    else with the ``op`` passed through. It is passed through
    as well where some rank could not record a call of it, unless this run was the ``last``.

    ``certified``, on a warm start where every rank has its word for that ready: the record of
    `decide_certify`, and the last one of the session.

    ``is_empty``: on no rank has the forward called anything that FlashInfer tunes.

    ``skipped``: ops that some rank's skip list takes out; they serve their default on all ranks,
    since ranks that differ in a tactic may deadlock. ``overruled``: those that others would tune.
    """
    skipped = sorted({op for word in words.values() for op in word["skipped"]})
    recorded = {op for word in words.values() for op in word.get("ops", ())}
    skips = {"skipped": skipped, "overruled": sorted(recorded & {*skipped})}
    errors = {rank: word["error"] for rank, word in words.items() if word["error"]}
    if errors:
        rank, op = min(errors), _to_blame(words, {*errors})
        found: Word = {"go": "rerun", "op": op} if op else {"go": "abort"}
        found["distrust"] = any(words[rank].get("stored") for rank in errors)
        return {**found, "rank": rank, "reason": errors[rank], **skips}
    unrecorded = {
        op: why for word in words.values() for op, why in word.get("unrecorded", {}).items()
    }
    if unrecorded and not last:
        op = min(unrecorded)
        reason = f"a call of it cannot be recorded: {unrecorded[op]}"
        return {
            "go": "rerun", "op": op, "unrecorded": True, "distrust": False, "rank": 0,
            "reason": reason, **skips,
        }  # fmt: skip
    if any(word["missing"] or word["unshared"] or word["heal"] for word in words.values()):
        return {"go": "plan", "reason": "", **skips}
    is_empty = not any(word["asked"] for word in words.values())
    return {"go": "warm", "reason": "", "is_empty": is_empty, **skips, **_certified(words)}


def _to_blame(words: Words, failing: set[int]) -> str:
    """Return the op at which a forward fails wherever it is called; empty: it is not an op's fault.

    By stages: an op that is passed through may tune in lock step with the other ranks of its own.
    """
    stages = {words[rank]["stage"] for rank in failing}
    ops = {words[rank]["last_answered"] for rank in failing}
    if len(ops) != 1 or any(words[r]["stage"] in stages for r in words.keys() - failing):
        return ""
    (op,) = ops
    sound = [words[rank] for rank in words.keys() - failing]
    is_called = any(op == word["last_answered"] or op in word.get("ops", ()) for word in sound)
    return "" if is_called else str(op)


def _certified(words: Words) -> Word:
    sealed = {rank: word["sealed"] for rank, word in words.items() if word.get("sealed")}
    record = decide_certify(sealed) if sealed.keys() == words.keys() else {"go": "defaults"}
    return {"certified": record} if record["go"] == "serve" else {}


def decide_only_survey(words: Words) -> Word:
    """As `decide_survey`, of a forward that cannot run again. go: warm | plan | retry | abort.

    A retry ends this session on every rank: another one may run the forward.
    """
    found = decide_survey(words, last=True)
    return {**found, "go": "retry"} if found["go"] == "rerun" else found


def decide_ready(words: Words) -> Word:
    """Which winners cannot be built on some rank, and whether the table is in force everywhere.

    go: serve | defaults. ``drop``: task id -> reason; ``refused``: those of them of which a runner
    says that it does not offer the tactic, wherever and whenever it is asked.
    """
    drop: dict[str, str] = {}
    for rank, word in words.items():
        for name, reason in word["failed"].items():
            drop.setdefault(name, f"rank {rank}: {reason}")
    refused = sorted({name for word in words.values() for name in word["refused"]})
    errors = [f"rank {rank}: {word['error']}" for rank, word in words.items() if word["error"]]
    if errors:
        return {"go": "defaults", "drop": {}, "refused": [], "reason": "; ".join(errors)}
    return {"go": "serve", "drop": drop, "refused": refused, "reason": ""}


def decide_certify(words: Words) -> Word:
    """Whether all ranks serve what was agreed. go: serve (with its ``certificate``) | defaults.

    go: end, where a rank ``leaves`` (a shutdown signal): nobody serves with a rank that is gone.

    A rank's digest covers its own tasks, and stages have different ones: the certificate is over
    the distinct digests, equal on every rank and at every start that serves the same. A rank that
    has no task has no digest; where no rank has one there is nothing to certify. ``differ``:
    the tasks, by label, that are in no table and of which ranks serve different tactics.
    """
    published = [path for word in words.values() for path in word["published"]]
    leaving = {rank: word["leaves"] for rank, word in words.items() if word.get("leaves")}
    if leaving:
        rank = min(leaving)
        return {"go": "end", "rank": rank, "reason": leaving[rank], "published": published}
    differ = _differ(words)
    deviates = {rank: word["deviates"] for rank, word in words.items() if word["deviates"]}
    if deviates:
        named = "; ".join(f"rank {rank}: {', '.join(tasks)}" for rank, tasks in deviates.items())
        reason = f"other tactics are served than agreed ({named})"
        return {"go": "defaults", "reason": reason, "published": published, "differ": []}
    served = sorted({word["served"] for word in words.values()} - {""})
    certificate = hashlib.sha256("".join(served).encode()).hexdigest() if served else ""
    return {
        "go": "serve", "certificate": certificate, "published": published, "differ": differ,
    }  # fmt: skip


def _differ(words: Words) -> list[str]:
    """Return the labels of the tasks that ranks tuned for themselves and serve differently."""
    answers: dict[str, dict[str, str]] = {}
    for word in words.values():
        for task, (label, answer) in word.get("apart", {}).items():
            answers.setdefault(task, {})[answer] = label
    return sorted(
        {label for found in answers.values() if len(found) > 1 for label in found.values()}
    )
