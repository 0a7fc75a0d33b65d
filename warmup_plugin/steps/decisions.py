# SPDX-License-Identifier: Apache-2.0
"""What the ranks decide together: from every rank's word to one record for all. Pure.

Owns the rules of the meetings, one function each. A record's ``go`` names what happens next and
``reason`` says why, for log and report. Rank 0 runs these; the others obey.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

Word = dict[str, Any]
Words = Mapping[int, Word]


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
