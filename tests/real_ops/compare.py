# SPDX-License-Identifier: Apache-2.0
"""A case in four ways, each in a process of its own, and how what they came to compares.

A  alone   the case inside FlashInfer's own context
B  cold    `warm_up` around the same case and context, on an empty root
C  warm    the same once more, on B's root
D  loaded  FlashInfer alone, with B's table loaded from its file, serving

Owns the rules of the comparison, which are exact (docs/differences.md says them to users):

- without a margin, keys, winners, what was profiled and what is served are A's;
- with one, an entry of B differs from A's only where it is the default's, and then the winner was
  not faster than the default by the margin, in times that A's profiler has seen too;
- FlashInfer 0.7.2.post1 loses cuDNN's winners in the process that tuned under buckets of a context
  (its runner's hash holds the bucket mapper): there B serves what D, which has loaded, does;
- C times nothing, makes nothing and serves as B does; so does D.
"""

from __future__ import annotations

import logging
import re
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import flashinfer
import torch
from flashinfer.autotuner import AutoTuner

from tests.logs import logged
from tests.real_ops.cases.case import Case
from tests.real_ops.cases.catalogue import CASES
from tests.real_ops.contexts import CONTEXTS
from tests.real_ops.gpu import clock
from tests.real_ops.inside import (
    ChildFailedError,
    alone,
    entries,
    in_child,
    ours,
    served,
    tasks,
)  # fmt: skip
from tests.real_ops.keys import place_of, runner_of
from tests.real_ops.reached import note_sites

DEFAULT = -1
#: The manifest has times to the microsecond.
ROUNDED, MICROSECOND = 3, 0.001
RELEASE = str(flashinfer.__version__)
#: cuBLASLt's have the raw batch in their keys until 0.7.4: no other batch finds an entry of theirs.
BATCH_IN_KEY = ("CublasltBf16GemmRunner", "CuteDSLCublasltFallbackBf16Runner")


@dataclass
class Outcome:
    """What one way of tuning a case came to."""

    entries: dict[str, list[Any]] = field(default_factory=dict)
    served: list[list[Any]] = field(default_factory=list)
    timed: int = 0
    synthesised: int = 0
    #: (runner, tactic, inputs, extras) that were profiled -> milliseconds.
    profiled: dict[str, float] = field(default_factory=dict)
    #: (runner, tactic) -> milliseconds, as the manifest has them too.
    times: list[list[Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    logged: list[str] = field(default_factory=list)
    sites: list[list[Any]] = field(default_factory=list)
    error: str = ""
    seconds: float = 0.0


def count(outcome: Outcome) -> None:
    """Note what FlashInfer's profiler is asked and answers, and let it work."""
    tuner: Any = AutoTuner
    profile, prepare = tuner._profile_single_kernel, tuner._prepare_input_tensors

    def counted(this: Any, runner: Any, inputs: Any, tactic: Any, *args: Any, **kw: Any) -> Any:
        outcome.timed += 1
        ms = profile(this, runner, inputs, tactic, *args, **kw)
        name = type(runner).__name__
        extras = str(runner.get_cache_key_extras(inputs))
        said = repr((clock.canonical((name, tactic, list(inputs))), extras))
        outcome.profiled[said] = ms
        outcome.times.append([name, tactic, ms])
        return ms

    def prepared(this: Any, *args: Any, **kwargs: Any) -> Any:
        outcome.synthesised += 1
        return prepare(this, *args, **kwargs)

    tuner._profile_single_kernel, tuner._prepare_input_tensors = counted, prepared


def run(
    case: Case, way: str, context: str, root: Path, margin: float, *, race: bool
) -> dict[str, Any]:
    """Tune, warm up or load in this process, then serve."""
    outcome, began = Outcome(), time.monotonic()
    count(outcome)
    torch.manual_seed(0)
    step = case.make()

    def forward() -> None:
        for size in (*case.sizes, *case.sizes[:2]):
            step(size)

    with logged(logging.WARNING) as outcome.logged, note_sites(outcome.sites):
        if way == "alone":
            alone(forward, context)
        elif way == "loaded":
            load(root)
        else:
            report = ours(forward, root, margin, race=race, tuning_context=CONTEXTS[context])
            outcome.report, outcome.tasks = report.to_json(), tasks(root)
    done = outcome.timed, outcome.synthesised
    outcome.entries = entries()
    with torch.inference_mode(context == "vllm"):  # in which vLLM serves, as it warms up
        outcome.served = served(step, case.served)
    outcome.timed, outcome.synthesised = done
    outcome.seconds = time.monotonic() - began
    return asdict(outcome)


def load(root: Path) -> None:
    """Load the published table with FlashInfer's own means."""
    found = [p for p in root.rglob("rank_*.json") if not p.name.endswith(".manifest.json")]
    if found:  # none where nothing was tuned
        assert AutoTuner.get().load_configs(str(found[0])), found


def outcome_of(
    case: Case, way: str, context: str, root: Path, margin: float, *, race: bool
) -> Outcome:
    try:
        return Outcome(**in_child(lambda: run(case, way, context, root, margin, race=race)))
    except ChildFailedError as error:
        return Outcome(error=str(error))


def compare(name: str, context: str, margin: float, *, race: bool = False) -> dict[str, Any]:
    """Run a case in all ways; return the verdict: a list of faults, and figures."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        ways = ("alone", "cold", "warm", "loaded")
        a, b, c, d = (outcome_of(case, way, context, root, margin, race=race) for way in ways)
    errors = {way: o.error for way, o in zip(ways, (a, b, c, d), strict=True) if o.error}
    faults = [f"{way}: {text.strip().splitlines()[-1][:300]}" for way, text in errors.items()]
    verdict: dict[str, Any] = {
        "reached": bool(a.timed or a.served), "errors": errors, "sites": a.sites,
        "ops": sorted({op for op, *_ in a.served}), "timed": [a.timed, b.timed, c.timed],
        "seconds": [round(o.seconds, 2) for o in (a, b, c, d)],
    }  # fmt: skip
    if not errors and case.left:
        verdict |= left_alone(a, b, c, context=context)
    elif not errors and case.apart:
        verdict |= tuned_apart(a, b, c, margin=margin)
    elif not errors:
        verdict |= checks(a, b, c, d, margin=margin, context=context)
    if race:
        verdict["race"] = b.report.get("race")
    faults += [f"{check}: {said}" for check, said in verdict.items() if check in CHECKS and said]
    return {**verdict, "faults": faults}


#: A default among what `count` notes.
IS_DEFAULT = re.compile(r"\(\('\w+', -1, ")
DEFAULT = -1
_SHARED_KEY = "one file key is used by two runner lists"
CHECKS = ("keys", "winners", "served", "profiled", "warm", "report")


def checks(
    a: Outcome, b: Outcome, c: Outcome, d: Outcome, *, margin: float, context: str
) -> dict[str, str]:
    """Return for each check what is wrong, "" where nothing is."""
    return {
        "keys": check_keys(a, b, margin),
        "winners": check_winners(a, b, margin),
        "served": check_served(a, b, d, margin, context),
        "profiled": "" if margin else check_profiled(a, b, context),
        "warm": check_warm(b, c),
        "report": check_report(b),
    }


def check_profiled(a: Outcome, b: Outcome, context: str) -> str:
    """Where defaults race, B has those of every order of the runners in the race."""
    ours = set(b.profiled)
    if context == "sglang":
        ours = {said for said in ours if said in a.profiled or not IS_DEFAULT.match(said)}
    return difference(a.profiled.keys(), ours)


def left_alone(a: Outcome, b: Outcome, c: Outcome, *, context: str) -> dict[str, str]:
    """Check that the plugin is not in the way of ops that it leaves to FlashInfer.

    What FlashInfer would save afterwards is not judged in SGLang's context, whose winners it keeps
    apart, in memory: there it differs, while what is timed and answered is the same.
    """
    is_saved = context != "sglang"
    ops = {op for op, *_ in a.served}
    left = set(b.report["passed_through"])
    times = (a.timed, b.timed, c.timed)
    return {
        "keys": difference(a.entries.keys(), b.entries.keys()) if is_saved else "",
        "winners": "" if a.entries == b.entries or not is_saved else "other winners",
        "served": "" if a.served == b.served == c.served else "other answers",
        "profiled": difference(a.profiled.keys(), b.profiled.keys()),
        "warm": "" if len(set(times)) == 1 else f"timed {times}, alone and at both starts",
        "report": "" if ops <= left else f"passed through {sorted(left)}, called {sorted(ops)}",
    }


def tuned_apart(a: Outcome, b: Outcome, c: Outcome, *, margin: float) -> dict[str, str]:
    """Check tasks that no table can hold: tuned at each start, in this process, and told.

    What serves is a winner wherever FlashInfer alone serves one, at the second start too; with a
    margin the default may serve, of those tasks that are stored.
    """
    reasons = {*b.report["unshared"].values(), *c.report["unshared"].values()}
    pairs = zip(a.served, b.served, c.served, strict=True)
    lost = [x for x, *ours in pairs if x[-1] != DEFAULT and DEFAULT in [y[-1] for y in ours]]
    said = {report["agreement"] for report in (b.report, c.report)}
    return {
        "keys": "",
        "winners": "",
        "profiled": "",
        "served": f"no winner of ours at {lost[:2]}" if lost and not margin else "",
        "warm": "" if c.timed <= b.timed else f"timed {b.timed}, then {c.timed}",
        "report": "" if reasons == {_SHARED_KEY} and said == {"certified"} else f"{reasons} {said}",
    }


def difference(a: Any, b: Any) -> str:
    only_a, only_b = sorted(map(str, a - b)), sorted(map(str, b - a))
    if not only_a and not only_b:
        return ""
    return f"only alone {len(only_a)} {only_a[:1]}, only ours {len(only_b)} {only_b[:1]}"


def is_kept(key: str) -> bool:
    """Return whether the key can be found again at another batch of its bucket."""
    return RELEASE != "0.7.2.post1" or runner_of(key) not in BATCH_IN_KEY


def check_keys(a: Outcome, b: Outcome, margin: float) -> str:
    kept = [[key for key in o.entries if is_kept(key)] for o in (a, b)]
    if margin:  # where the default wins, also over cuBLASLt, the entry is the first runner's
        mine, theirs = ({place_of(key) for key in o.entries} for o in (b, a))
        mine_kept, theirs_kept = ({place_of(key) for key in keys} for keys in reversed(kept))
        return difference(theirs_kept - mine, mine_kept - theirs)
    return difference(*(set(keys) for keys in kept))


def check_winners(a: Outcome, b: Outcome, margin: float) -> str:
    """Compare entry by entry; with a margin, the default's by the times that decided."""
    measured = {(name, repr(tactic), round(ms, ROUNDED)) for name, tactic, ms in a.times}
    reasons = {
        key: task for task in b.tasks for keys in task["keys"] for key in keys if margin
    }  # fmt: skip
    wrong = []
    for key, entry in b.entries.items():
        if not is_kept(key) or entry[:2] == a.entries.get(key, [])[:2]:
            continue
        task = reasons.get(key, {})
        if entry[1] != DEFAULT or not _default_is_right(task, margin):
            wrong.append(f"{key}: alone {a.entries.get(key)}, ours {entry}")
    for task in b.tasks if margin else ():
        theirs = [a.entries[key] for keys in task["keys"] for key in keys if key in a.entries]
        if task.get("ms") is not None and theirs:
            ms = round(task["ms"], ROUNDED)
            winner = {(name, repr(tactic), ms) for name, tactic, *_ in theirs}
            if not winner & measured:
                wrong.append(f"{task['op']}: {task['ms']} ms was not measured alone: {theirs}")
    return f"{len(wrong)} of {len(b.entries)}: {wrong[:2]}" if wrong else ""


def _default_is_right(task: dict[str, Any], margin: float) -> bool:
    ms, default_ms = task.get("ms"), task.get("default_ms")
    if ms is None or default_ms is None:
        return False
    return bool(ms > default_ms * (1 - margin) - MICROSECOND)


def check_served(a: Outcome, b: Outcome, d: Outcome, margin: float, context: str) -> str:
    loses_cudnn = RELEASE == "0.7.2.post1" and context == "vllm"
    wrong = []
    if not d.served:  # an op that asks the tuner only for what this process has met in tuning mode
        return "" if a.served == b.served or margin else "other answers"
    if len(a.served) != len(b.served) or len(d.served) != len(b.served):
        return f"{len(a.served)} answers alone, {len(b.served)} ours, {len(d.served)} loaded"
    for mine, ours_, loaded in zip(a.served, b.served, d.served, strict=True):
        is_lost = loses_cudnn and mine[3] == DEFAULT and "Cudnn" in ours_[2]
        is_default = bool(margin) and ours_[3] == DEFAULT
        if ours_ != mine and not is_default and not is_lost:
            wrong.append(f"alone {mine}, ours {ours_}")
        elif ours_ != loaded and (RELEASE != "0.7.2.post1" or ours_[2] not in BATCH_IN_KEY):
            wrong.append(f"ours {ours_}, FlashInfer with our table {loaded}")
    return f"{len(wrong)} of {len(a.served)}: {wrong[:2]}" if wrong else ""


def check_warm(b: Outcome, c: Outcome) -> str:
    if c.timed or c.synthesised:
        return f"{c.timed} timed, {c.synthesised} synthesised"
    if c.served != b.served:
        return f"serves otherwise than the cold start: {difference(_words(b), _words(c))}"
    return difference(b.entries.keys(), c.entries.keys())


def _words(outcome: Outcome) -> set[str]:
    return set(map(repr, outcome.served))


def check_report(b: Outcome) -> str:
    report = b.report
    found = {name: report[name] for name in ("passed_through", "unshared") if report[name]}
    if report["agreement"] != "certified":
        found["agreement"] = report["agreement"]
    return str(found) if found else ""
