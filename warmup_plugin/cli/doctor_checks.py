# SPDX-License-Identifier: Apache-2.0
"""What `doctor` looks at without starting anything: settings, packages, tables.

Owns these checks, one function each, and the fix beside every finding that is not good;
`doctor_disks.py` has those of directories. Changes nothing.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from warmup_plugin.cache.files import FOREIGN
from warmup_plugin.cli import environment, inventory, places
from warmup_plugin.cli.engines import ENGINES, Engine
from warmup_plugin.cli.environment import installed_version
from warmup_plugin.cli.output import plural, size
from warmup_plugin.engines import versions
from warmup_plugin.settings import Settings, unknown_variables

State = Literal["good", "note", "bad"]


#: FlashInfer releases the tests run on; 0.7.2 is the one that SGLang pins.
FLASHINFER_TESTED: Final = (
    "0.6.11.post2", "0.6.12", "0.6.13", "0.6.16.post3", "0.6.17", "0.6.18", "0.6.18.post1", "0.7.0",
    "0.7.0.post1", "0.7.1", "0.7.2", "0.7.2.post1", "0.7.4",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing looked at: good, worth a note, or bad; then ``fix`` says what to do."""

    what: str
    state: State
    words: str
    fix: str = ""


def mode(settings: Settings) -> Finding:
    if settings.mode == "off":
        fix = "unset WARMUP_PLUGIN_MODE to tune once and start warm"
        return Finding("mode", "note", "off: the engine is left alone", fix)
    return Finding("mode", "good", f"{settings.mode}, strategy {settings.strategy}")


def packages(environ: Mapping[str, str]) -> Iterator[Finding]:
    """FlashInfer and the engine: there, and of versions the tests know; the entry point."""
    found = environment.flashinfer_version()
    if found is None:
        fix = "pip install flashinfer-python, in the environment that the engine runs in"
        yield Finding("FlashInfer", "bad", "not installed in this environment", fix)
    elif found.value not in FLASHINFER_TESTED:
        words = f"{found.value}: not one the tests run on ({', '.join(FLASHINFER_TESTED)})"
        fix = "watch the first start's agreement; the probe decides what is used of it"
        yield Finding("FlashInfer", "note", words, fix)
    else:
        yield Finding("FlashInfer", "good", found.value)
    engines = [engine for engine in ENGINES if installed_version(engine.package) is not None]
    if not engines:
        yield Finding(
            "engine", "note", "no vLLM or SGLang in this environment: a runner of your own?"
        )
    for engine in engines:
        yield from _engine(engine, environ)


def _engine(engine: Engine, environ: Mapping[str, str]) -> Iterator[Finding]:
    yield _version(engine, installed_version(engine.package) or "", environ)
    yield _hook(engine, environ)


def _version(engine: Engine, version: str, environ: Mapping[str, str]) -> Finding:
    base = versions.taken_for(version, engine.tested)
    if versions.is_the_same_release(version, base):
        return Finding("engine", "good", f"{engine.name} {version}")
    if base:
        words = f"{engine.name} {version}: taken for {base}, where all names of it are there"
        fix = "see the log of its first start: a name that has gone is a line there"
        return Finding("engine", "note", words, fix)
    words = f"{engine.name} {version} is not a tested version ({', '.join(engine.tested)})"
    if environ.get("WARMUP_PLUGIN_UNTESTED") == "probe":
        fix = "it is tried, as WARMUP_PLUGIN_UNTESTED says: watch the first starts' receipts"
        return Finding("engine", "note", words, fix)
    fix = f"{engine.name} is left alone, as without the plugin; install a tested version, or have "
    return Finding("engine", "bad", words, f"{fix}this one tried: WARMUP_PLUGIN_UNTESTED=probe")


def _hook(engine: Engine, environ: Mapping[str, str]) -> Finding:
    points = importlib.metadata.entry_points(group=engine.group)
    if not any(point.name == "warmup_plugin" for point in points):
        fix = f"pip install warmup-plugin, in the environment that {engine.name} runs in"
        return Finding("entry point", "bad", f"{engine.group} does not name this package", fix)
    chosen = environ.get(engine.chosen)
    if not engine.loads(chosen, "warmup_plugin"):
        words = f"{engine.chosen}={chosen!r} leaves this package out"
        fix = f"add warmup_plugin to {engine.chosen}"
        if "warmup_plugin" in (chosen or "").replace(",", " ").split():
            fix = f"write {engine.chosen} without blanks: {engine.name} does not take them away"
        return Finding("entry point", "bad", words, fix)
    if left_out := _others_left_out(engine, chosen):
        words = f"{engine.group}: warmup_plugin; {engine.chosen} leaves out {', '.join(left_out)}"
        fix = f"{engine.chosen} limits these groups too: name what the engine needs of them"
        return Finding("entry point", "note", words, fix)
    return Finding("entry point", "good", f"{engine.group}: warmup_plugin")


def _others_left_out(engine: Engine, chosen: str | None) -> list[str]:
    """Return the plugins of other groups that the same variable leaves out."""
    return [
        f"{point.name} of {group}"
        for group in engine.other_groups
        for point in importlib.metadata.entry_points(group=group)
        if not engine.loads(chosen, point.name)
    ]


def variables(settings: Settings, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Variables that are set and do nothing."""
    for name, nearest in unknown_variables(environ).items():
        fix = f"is it {nearest}?" if nearest else "unset it; warmup-plugin config lists all"
        yield Finding("settings", "bad", f"{name}: no such setting", fix)
    for words in places.useless(settings, environ):
        yield Finding("settings", "note", words, "unset the one that is not meant")


def tables(roots: list[places.Root], settings: Settings) -> Iterator[Finding]:
    """What is kept: how much of it is whole, and what starts could not use."""
    found = [inventory.glance(kept) for kept in inventory.walk(roots)]
    bad = [each for each in found if each.state in ("has faults", "newer")]
    whole = sum(each.state == "complete" for each in found)
    words = f"{plural(len(found), 'identity', 'identities')}, {whole} complete"
    if bad:
        fix = "warmup-plugin verify names the files; a start sets them aside and tunes anew"
        yield Finding("tables", "bad", f"{words}, {len(bad)} cannot be used", fix)
    else:
        yield Finding("tables", "good", words)
    aside = [each for each in found if FOREIGN in each.kept.folders]
    if aside:
        words = f"starts have set files aside in {plural(len(aside), 'identity', 'identities')}"
        fix = f"see {aside[0].kept.directory}/{FOREIGN}; warmup-plugin prune --set-aside clears it"
        yield Finding("set aside", "note", words, fix)
    large = [n for each in found for n, s in each.kept.files.items()
             if s.st_size > settings.table_bytes]  # fmt: skip
    if large:
        words = f"{plural(len(large), 'file')} above the {size(settings.table_bytes)} allowed"
        yield Finding("size", "bad", words, "raise WARMUP_PLUGIN_TABLE_BYTES")
