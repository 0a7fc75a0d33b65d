# SPDX-License-Identifier: Apache-2.0
"""What `doctor` looks at without starting anything: settings, packages, directories, tables.

Owns these checks, one function each, and the fix beside every finding that is not good. Writes one
small file where tables are written, and takes it away again.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from warmup_plugin.cli import machine, tree
from warmup_plugin.cli.output import plural, size
from warmup_plugin.engines.sglang.names import TESTED as SGLANG_TESTED
from warmup_plugin.engines.vllm.names import TESTED as VLLM_TESTED
from warmup_plugin.files import FOREIGN
from warmup_plugin.settings import Settings

State = Literal["good", "note", "bad"]


@dataclass(frozen=True)
class Engine:
    """An engine that this package has an adapter for: how it finds plugins, and who chooses.

    ``empty_is_all``: whether the variable, set to nothing, leaves all plugins in.
    """

    name: str
    package: str
    tested: tuple[str, ...]
    group: str
    chosen: str
    empty_is_all: bool = False


ENGINES: Final = (
    Engine("vLLM", "vllm", VLLM_TESTED, "vllm.general_plugins", "VLLM_PLUGINS"),
    Engine("SGLang", "sglang", SGLANG_TESTED, "sglang.srt.plugins", "SGLANG_PLUGINS", True),
)
#: FlashInfer releases the tests run on; 0.7.2 is the one that SGLang pins.
FLASHINFER_TESTED: Final = (
    "0.6.11.post2", "0.6.12", "0.6.13", "0.6.18.post1", "0.7.0", "0.7.2", "0.7.2.post1",
)  # fmt: skip
_LITTLE_BYTES: Final = 256 * 10**6
_SKEW_S: Final = 5.0
_OLD_S: Final = 86_400.0


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
    found = machine.flashinfer_version()
    if found is None:
        fix = "pip install flashinfer-python, in the environment that the engine runs in"
        yield Finding("FlashInfer", "bad", "not installed in this environment", fix)
    elif found.value not in FLASHINFER_TESTED:
        words = f"{found.value}: not one the tests run on ({', '.join(FLASHINFER_TESTED)})"
        fix = "watch the first start's agreement; the probe decides what is used of it"
        yield Finding("FlashInfer", "note", words, fix)
    else:
        yield Finding("FlashInfer", "good", found.value)
    engines = [engine for engine in ENGINES if _version_of(engine.package) is not None]
    if not engines:
        yield Finding(
            "engine", "note", "no vLLM or SGLang in this environment: a runner of your own?"
        )
    for engine in engines:
        yield from _engine(engine, environ)


def _engine(engine: Engine, environ: Mapping[str, str]) -> Iterator[Finding]:
    version = _version_of(engine.package) or ""
    if version.partition("+")[0] not in engine.tested:
        words = f"{engine.name} {version} is not a tested version ({', '.join(engine.tested)})"
        fix = f"{engine.name} is left alone, as without the plugin; install a tested version"
        yield Finding("engine", "bad", words, fix)
    else:
        yield Finding("engine", "good", f"{engine.name} {version}")
    yield _hook(engine, environ)


def _hook(engine: Engine, environ: Mapping[str, str]) -> Finding:
    points = importlib.metadata.entry_points(group=engine.group)
    if not any(point.name == "warmup_plugin" for point in points):
        fix = f"pip install warmup-plugin, in the environment that {engine.name} runs in"
        return Finding("entry point", "bad", f"{engine.group} does not name this package", fix)
    chosen = environ.get(engine.chosen)
    named = [name.strip() for name in (chosen or "").split(",") if name.strip()]
    is_limited = bool(named) or (chosen is not None and not engine.empty_is_all)
    if is_limited and "warmup_plugin" not in named:
        words = f"{engine.chosen}={chosen} leaves this package out"
        return Finding("entry point", "bad", words, f"add warmup_plugin to {engine.chosen}")
    return Finding("entry point", "good", f"{engine.group}: warmup_plugin")


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def directories(roots: list[tree.Root]) -> Iterator[Finding]:
    """Where tables are written, and the layers."""
    yield from _writable(roots[0])
    for root in roots[1:]:
        if not os.access(root.path, os.R_OK | os.X_OK):
            words = f"{root.path}: not there, or not readable by this user"
            fix = "mount it, or take it out of WARMUP_PLUGIN_LAYERS; chmod -R a+rX if it is there"
            yield Finding("layer", "bad", words, fix)
        else:
            number = sum(1 for _ in tree.walk([root]))
            many = plural(number, "identity", "identities")
            yield Finding("layer", "good" if number else "note", f"{root.path}: {many}")


def _writable(root: tree.Root) -> Iterator[Finding]:
    path = next(p for p in (root.path, *root.path.parents) if p.exists())
    where = f"{root.path} ({root.source})"
    if not path.is_dir():
        fix = "choose another place with WARMUP_PLUGIN_CACHE_ROOT, or move that file away"
        yield Finding("directory", "bad", f"{where}: {path} is a file", fix)
        return
    if not os.access(path, os.W_OK | os.X_OK):
        fix = f"chown it to user {os.getuid()}, or set WARMUP_PLUGIN_CACHE_ROOT"
        yield Finding("directory", "bad", f"{where}: user {os.getuid()} may not write there", fix)
        return
    yield Finding("directory", "good", f"{where}{'' if path == root.path else ', not made yet'}")
    free = shutil.disk_usage(path).free
    if free < _LITTLE_BYTES:
        fix = "make room, for instance with warmup-plugin prune --older-than 30d"
        yield Finding("disk", "bad", f"{size(free)} free", fix)
    else:
        yield Finding("disk", "good", f"{size(free)} free")
    yield from _tried(path)


def _tried(folder: Path) -> Iterator[Finding]:
    """Write a file: whether its time is ours, and whether it can be locked."""
    path = folder / f".doctor.{secrets.token_hex(8)}"
    try:
        with path.open("x") as file:
            skew = path.stat().st_mtime - time.time()
            can_lock = True
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                can_lock = False
    except OSError as error:
        fix = "look at quotas and mount options of that file system"
        yield Finding("write", "bad", f"{path}: {error.strerror}", fix)
        return
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
    if abs(skew) > _SKEW_S:
        words = f"the file system's clock is {skew:+.0f} s from this machine's"
        fix = "set both by NTP: a replica could take a tuning engine for gone"
        yield Finding("clock", "bad", words, fix)
    else:
        yield Finding("clock", "good", "the file system's agrees with this machine's")
    if can_lock:
        yield Finding("locks", "good", "the file system has them")
    else:
        fix = "mount with locks; else two writers in one instant may tune some tasks again"
        yield Finding("locks", "note", "the file system has none", fix)


def tables(roots: list[tree.Root], settings: Settings) -> Iterator[Finding]:
    """What is kept: how much of it is whole, and what starts could not use."""
    found = [tree.glance(kept) for kept in tree.walk(roots)]
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
