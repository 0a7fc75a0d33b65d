# SPDX-License-Identifier: Apache-2.0
"""What every engine adapter shares: getting in late, and getting out of the way.

Owns the finder that patches a module the moment its engine imports it, the check whether this
package may act at all, the question whether *all* ranks are about to act, the way of our log lines
into the engine's own log, and how an engine's settings become factors. Refuses to import torch,
FlashInfer or an engine when it is itself imported: engines load their plugins in every process.
Whatever goes wrong here leaves the engine alone, with one line in its log that says why.
"""

from __future__ import annotations

import enum
import importlib.util
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")

#: How long ranks wait for each other before the first forward, seconds. A rank without this package
#: never comes, so this is what one installation mistake costs each start.
MEET_S = 300.0
_LOOK_S = (0.0002, 0.002)  # at first, and once all are not there at once


class _AfterImport:
    """A finder that calls ``then(module)`` right after the module has been imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.then = then
        self._is_looking = False

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> ModuleSpec | None:
        if name != self.name or self._is_looking:
            return None
        self._is_looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_looking = False
        if spec is not None and spec.loader is not None:
            own: Any = _Loader(spec, spec.loader, self.then)
            spec.loader = own
        return spec


class _Loader:
    """Loads as the module's own loader does, which is the module's loader again afterwards.

    No subclass of `importlib.abc.Loader`: importing that costs more than all the rest.
    """

    def __init__(self, spec: ModuleSpec, own: Any, then: Callable[[ModuleType], None]) -> None:
        self._spec, self._own, self._then = spec, own, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._own.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        self._spec.loader = module.__loader__ = self._own
        self._own.exec_module(module)
        self._then(module)


def after_import(name: str, then: Callable[[ModuleType], None]) -> None:
    """Call ``then(module)`` once the module is imported, at once if it is.

    Costs nothing in a process that never imports it, and leaves module state only: a forked worker
    inherits it. ``then`` never fails an import: what it raises is logged.
    """

    def safely(module: ModuleType) -> None:
        try:
            then(module)
        except Exception:
            logger.exception("warmup-plugin: cannot enter %s; the engine is left alone", name)

    if name in sys.modules:
        safely(sys.modules[name])
    elif not any(isinstance(f, _AfterImport) and f.name == name for f in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport(name, safely))


def usable_settings(
    engine: str, version: str, tested: Iterable[str], missing: Iterable[str]
) -> Settings | None:
    """Return the settings where this package may act in this engine; else None, and say why."""
    from warmup_plugin.errors import SettingError
    from warmup_plugin.settings import Settings

    tested, missing = tuple(tested), tuple(missing)
    try:
        settings = Settings.from_env()
    except SettingError as error:
        logger.error("warmup-plugin: %s; %s is left alone", error, engine)  # noqa: TRY400  # no trace
        return None
    if settings.mode == "off":
        return None
    if version.partition("+")[0] not in tested:
        logger.warning(
            "warmup-plugin: %s %s is not a tested version (%s); it is left alone",
            engine, version, ", ".join(tested),
        )  # fmt: skip
        return None
    if missing:
        logger.warning(
            "warmup-plugin: %s %s has no %s; it is left alone",
            engine, version, ", ".join(missing),
        )  # fmt: skip
        return None
    return settings


def engine_root(variable: str, found: Callable[[], Path], settings: Settings) -> Path | None:
    """Return the engine's cache root, None where WARMUP_PLUGIN_CACHE_ROOT is to be used.

    It wins over the engine's default, which nobody has chosen, and not over the engine's variable.
    """
    if settings.cache_root is not None and not os.environ.get(variable):
        return None
    return found()


def log_through(engine_logger: str) -> None:
    """Let our lines appear in the engine's log, where it has set one up; a second call is none."""
    theirs = logging.getLogger(engine_logger)
    for handler in theirs.handlers:
        if handler not in logger.handlers:
            logger.addHandler(handler)
    if logger.handlers:
        logger.setLevel(theirs.getEffectiveLevel())
        logger.propagate = False


def prepared(
    make: Callable[[], dict[str, Any]], rank: int, size: int
) -> tuple[dict[str, Any], str]:
    """Return the arguments of a warm-up, or why there are none on this rank. Never raises.

    On rank 0 its look at the environment begins, for which the others wait.
    """
    try:
        from warmup_plugin.tuner import probe, stamp

        if rank == 0:
            stamp.begin(tells=size > 1)
        capabilities = probe.probe()
        if capabilities.missing:
            found = f"FlashInfer {capabilities.version} has no {', '.join(capabilities.missing)}"
            return {}, found
        return make(), ""
    except Exception as error:
        logger.exception("warmup-plugin: cannot prepare")
        return {}, f"{type(error).__name__}: {error}"[:400]


def default_store() -> Any:
    """Return the store of the job that torch was initialised with."""
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_store()  # noqa: SLF001  # there is no public way to it


def all_ready(
    store: Any,
    session: str,
    rank: int,
    size: int,
    reason: str,
    *,
    of: str = "",
) -> str:
    """Return why the ranks cannot warm up together, or an empty string: the same on every rank.

    Collectives would hang where a peer does not have this package or has been told to be off: each
    rank leaves a word in the job's store (a `torch.distributed` one) and waits for the others',
    ``MEET_S`` at most, and not for one that has got as far and is at another meeting. The answer is
    one record, set by compare-and-set: who comes late obeys it. ``session`` names this meeting
    among those of the same ranks, which are the group ``of``; ``reason`` is why this rank cannot,
    or empty.
    """
    prefix = f"warmup_plugin/{of}"
    keys = [f"{prefix}/{session}/{other}" for other in range(size)]
    places = [f"{prefix}/at/{other}" for other in range(size)]
    number = store.add(f"{prefix}/meetings/{rank}", 1)
    store.set(keys[rank], json.dumps({"reason": reason}))
    store.set(places[rank], f"{number} {session}")
    decision, deadline = f"{prefix}/{session}/decision", time.monotonic() + MEET_S
    elsewhere, pause_s = "", _LOOK_S[0]
    while not store.check([decision]) and not elsewhere and time.monotonic() < deadline:
        if store.check(keys):
            break
        time.sleep(pause_s)
        pause_s = min(1.2 * pause_s, _LOOK_S[1])
        elsewhere = _elsewhere(store, keys, places, number)
    words = {o: json.loads(store.get(k)) for o, k in enumerate(keys) if store.check([k])}
    verdict = elsewhere or _judge(words, size) or "ready"
    found: str = store.compare_set(decision, "", verdict).decode()
    return "" if found == "ready" else found


def _elsewhere(store: Any, keys: list[str], places: list[str], number: int) -> str:
    """Return which rank has passed by this meeting, this rank's ``number``-th, if one has."""
    for rank, (key, place) in enumerate(zip(keys, places, strict=True)):
        if not store.check([key]) and store.check([place]):
            its_number, _, session = store.get(place).decode().partition(" ")
            # In this order: a rank leaves its word at a meeting before it says that it is there.
            if int(its_number) >= number and not store.check([key]):
                return f"rank {rank} is at {session} and not here"
    return ""


def _judge(words: Mapping[int, dict[str, Any]], size: int) -> str:
    absent = [str(rank) for rank in range(size) if rank not in words]
    if absent:
        return f"rank {', '.join(absent)} did not come within {MEET_S:.0f} s: is the plugin there?"
    unable = [f"rank {rank}: {word['reason']}" for rank, word in words.items() if word["reason"]]
    return unable[0] if unable else ""


def sections(settings: Any, table: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Return factors by section of an engine's settings, as plain JSON.

    ``table`` names the sections (dotted paths, those that are not there left out) and the names in
    each; a name that a release does not have counts as null.
    """
    found = {}
    for section, names in table.items():
        held = settings
        for part in section.split("."):
            held = getattr(held, part, None)
        if held is not None:
            found[section] = {name: plain(getattr(held, name, None)) for name in names}
    return found


def plain(value: Any) -> Any:
    """Return plain JSON for what an engine's configs hold, the same in every process."""
    if value is None or type(value) in (str, int, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return value.name if isinstance(value, enum.Enum) else _plain_part(value)


def _plain_part(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(below) for key, below in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(below) for below in value]
    if isinstance(value, (set, frozenset)):
        return sorted(str(plain(below)) for below in value)
    if fields := getattr(value, "__dataclass_fields__", None):
        return {name: plain(getattr(value, name, None)) for name in fields}
    if isinstance(value, Mapping):  # last: to an abstract class each new type is 0.1 to 0.4 ms
        return plain(dict(value))
    # Its text, unless that holds an address in memory.
    return type(value).__qualname__ if " at 0x" in repr(value) else str(value)
