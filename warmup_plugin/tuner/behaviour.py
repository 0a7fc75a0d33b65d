# SPDX-License-Identifier: Apache-2.0
"""Whether a FlashInfer that no test has run on does what this package relies on: tried, not named.

Owns the laws, each with the words for a release that breaks it. They are tried on tuners of their
own, with a clock of their own, on a toy op: no GPU is asked and nothing of the process's tuner is
touched but its stack of options, for a moment. A law that cannot be tried counts as broken.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from warmup_plugin.cache.table import Entry, Table, parse_entry, render_table
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.recorded import narrow

_OP = "warmup_plugin::toy"
_BUCKETS = (1, 2)
#: What a tactic of the toy takes, in milliseconds; the second is the winner.
_TIMES = {0: 3.0, 1: 1.0, 2: 2.0}
_WINNER = 1
_EXTRAS = ("a", 1)
_STAMP = {"flashinfer_version": "tried by warmup-plugin"}
#: An entry is runner, tactic, policy and how it was chosen; nobody knows what a fifth would serve.
_MOST_ELEMENTS = 4
#: The methods that may measure: `choose_one` is intercepted, and the others are called by it or by
#: ops with a loop of their own.
_MEASURING = {"choose_one", "rank_tactics", "profile_tactic", "_retime_candidate"}


def broken(keys: compat.Keys) -> tuple[str, ...]:
    """Return what this release does otherwise, in the order of `LAWS`; nothing where all hold."""
    found = []
    with compat.apart():
        for law in LAWS:
            try:
                said = law(keys)
            except Exception as error:  # noqa: BLE001  # whatever an unknown release raises: it is not proven
                said = f"{law.__name__.replace('_', ' ')}: {type(error).__name__}: {error}"[:300]
            if said:
                found.append(said)
    return tuple(found)


def _tune(configs: list[Any], extras: tuple[Any, ...] = _EXTRAS) -> tuple[Any, list[Any]]:
    """Have FlashInfer tune the toy; return its tuner and the tactics that were timed."""
    asked: list[Any] = []

    def clock(tactic: Any) -> float:
        asked.append(tactic)
        return _TIMES[tactic]

    tuner = compat.own_tuner(clock)
    with compat.tuning_alone(tuner):
        for config in configs:
            tuner.choose_one(_OP, [_runner(extras)], config, _inputs(max(_BUCKETS)))
    return tuner, asked


def _runner(extras: tuple[Any, ...] = _EXTRAS) -> Any:
    return compat.ToyRunner(extras, tuple(_TIMES))


def _inputs(size: int) -> list[Any]:
    return [torch.zeros(size, 1)]


def _winners(tuner: Any, keys: compat.Keys) -> dict[str, list[Any]]:
    found = compat.winners_since(tuner, 0, keys)
    return {winner.key: [winner.runner, winner.tactic] for winner in found}


def _expected(keys: compat.Keys, extras: tuple[Any, ...] = _EXTRAS) -> dict[str, list[Any]]:
    """Return the toy's winners as they stand in a table."""
    name = compat.ToyRunner.__name__
    return {keys.file_key(_OP, name, ((size, 1),), extras): [name, _WINNER] for size in _BUCKETS}


def _saved(tuner: Any) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="warmup-plugin-") as folder:
        path = Path(folder, "table.json")
        tuner.save_configs(str(path))
        document: dict[str, Any] = json.loads(path.read_bytes())
    return document


def choose_one_tunes(_keys: compat.Keys) -> str:
    """Each candidate is timed once in each bucket by the tuner itself, and the fastest is kept."""
    _, asked = _tune([compat.toy_config(_BUCKETS)])
    if asked != [*_TIMES] * len(_BUCKETS):
        return f"choose_one does not time each candidate once by its own tuner (it timed {asked})"
    measuring = compat.measuring_methods() - _MEASURING
    return f"another method measures: {', '.join(sorted(measuring))}" if measuring else ""


def winners_are_stored(keys: compat.Keys) -> str:
    """In the tuner's memory, under the keys that this package makes, with extras and without."""
    for extras in (_EXTRAS, ()):
        tuner, _ = _tune([compat.toy_config(_BUCKETS)], extras)
        found, expected = _winners(tuner, keys), _expected(keys, extras)
        if found != expected:
            return f"winners are stored as {found}, not as {expected}"
    return ""


def buckets_are_tuned_one_by_one(keys: compat.Keys) -> str:
    """As the replay has them tuned, with the outcome of the whole call."""
    whole, _ = _tune([compat.toy_config(_BUCKETS)])
    ours, asked = _tune([narrow(compat.toy_config(_BUCKETS), (size,)) for size in _BUCKETS])
    found, expected = (_winners(each, keys) for each in (ours, whole))
    is_once = asked == [*_TIMES] * len(_BUCKETS)
    return "" if found == expected and is_once else f"buckets tuned one by one give {found}"


def tables_come_back(keys: compat.Keys) -> str:
    """What a release saves this package reads, what it writes the release loads, and both serve."""
    config = compat.toy_config(_BUCKETS)
    tuner, _ = _tune([config])
    document = _saved(tuner)
    stamp = document.pop("_metadata", None)
    if not isinstance(stamp, dict):
        return "a saved table has no _metadata"
    saved = {key: value for key, value in document.items() if not key.startswith("_")}
    if said := _is_known(saved, _expected(keys), compat.policy_of(config)):
        return said
    entries = {key: parse_entry(json.dumps(value).encode()) for key, value in saved.items()}
    whole = {key: entry for key, entry in entries.items() if isinstance(entry, Entry)}
    ours = {key: entry._replace(more="") for key, entry in whole.items()}
    for content in (whole, ours):
        if said := _serves(render_table(Table(stamp, content)), config, keys):
            return said
    with compat.as_file(render_table(Table({**stamp, **_STAMP}, ours))) as path:
        is_refused = compat.own_tuner(_TIMES.__getitem__).load_configs(path) is False
    return "" if is_refused else "a table of another environment is loaded"


def _is_known(saved: dict[str, Any], expected: dict[str, list[Any]], policy: Any) -> str:
    """Return how saved entries are not of the form that is known."""
    for value in saved.values():
        entry = parse_entry(json.dumps(value).encode())
        if isinstance(entry, Miss):
            return f"an entry is {value}: {entry.reason}"
        if len(value) > _MOST_ELEMENTS:
            return f"an entry has {len(value)} elements: {value}"
        if entry.policy not in (None, policy):
            return f"an entry's policy is {entry.policy}, not {policy}"
    winners = {key: value[:2] for key, value in saved.items()}
    return "" if winners == expected else f"a saved table has {winners}, not {expected}"


def _serves(document: bytes, config: Any, keys: compat.Keys) -> str:
    """Return how a loaded table is not served: outside tuning, by look-up and by `choose_one`."""
    asked: list[Any] = []
    tuner, runner = compat.own_tuner(asked.append), _runner()
    with compat.as_file(document) as path:
        if tuner.load_configs(path) is False:
            return "a table with its own stamp is not loaded"
    for size in _BUCKETS:
        inputs = _inputs(size)
        found = compat.look_up(tuner, _OP, [runner], ((size, 1),), config, inputs=inputs)
        chosen = tuner.choose_one(_OP, [runner], config, inputs)
        if tuple(found) != (True, 0, _WINNER) or chosen != (runner, _WINNER):
            return f"a loaded winner is looked up as {found} and served as {chosen[1]}"
    held = {winner.key: winner.tactic for winner in compat.held(tuner, keys)}
    if asked or len(held) != len(_BUCKETS) or len(compat.loaded(tuner)) != len(_BUCKETS):
        return f"a loaded table is held as {held}, after {len(asked)} measurements"
    tuner.clear_cache()
    is_gone = (
        compat.is_empty(tuner)
        and not tuner.search_cache(_OP, [runner], ((1, 1),), config, inputs=_inputs(1))[0]
    )
    return "" if is_gone else "clear_cache leaves winners"


def nobody_votes_elsewhere(_keys: compat.Keys) -> str:
    """Ranks meet in FlashInfer while they tune, over its group, and nowhere that is relied upon."""
    config, runner = compat.toy_config(_BUCKETS), _runner()
    tuner, _ = _tune([config])
    document = _saved(tuner)
    with compat.group_that_fails():
        at: Callable[[], object]
        for name, at in {
            "choose_one, where it is answered": lambda: tuner.choose_one(
                _OP, [runner], config, _inputs(1)
            ),
            "choose_one, where it is not": lambda: tuner.choose_one(
                f"{_OP} missing", [runner], config, _inputs(1)
            ),
            "search_cache": lambda: _look_up_while_tuning(tuner, runner, config),
            "save_configs": lambda: _saved(tuner),
            "load_configs": lambda: _load(document),
            "clear_cache": tuner.clear_cache,
            "choose_one without a group": lambda: _tune_without_a_group(config),
        }.items():
            try:
                at()
            except Exception as error:  # noqa: BLE001  # of torch, which knows no such group
                return f"ranks meet in {name}: {type(error).__name__}: {error}"[:300]
    return ""


def _look_up_while_tuning(tuner: Any, runner: Any, config: Any) -> None:
    with compat.tuning_alone(tuner):
        tuner.search_cache(_OP, [runner], ((1, 1),), config, inputs=_inputs(1))


def _load(document: dict[str, Any]) -> None:
    with compat.as_file(json.dumps(document).encode()) as path:
        compat.own_tuner(_TIMES.__getitem__).load_configs(path)


def _tune_without_a_group(config: Any) -> None:
    with compat.no_process_group():
        _tune([config])


def options_are_known(_keys: compat.Keys) -> str:
    """A context's options stand in its stack in the order known, and there are no others."""
    found = compat.options_given()
    if len(found) > len(compat.OVERRIDES):
        return f"a tuning context has {len(found)} options: {found}"
    expected = compat.OPTIONS_TRIED[: len(found)]
    return "" if found == expected else f"a tuning context's options are {found}, not {expected}"


LAWS: tuple[Callable[[compat.Keys], str], ...] = (
    choose_one_tunes,
    winners_are_stored,
    buckets_are_tuned_one_by_one,
    tables_come_back,
    nobody_votes_elsewhere,
    options_are_known,
)
