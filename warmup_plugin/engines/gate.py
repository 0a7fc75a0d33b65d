# SPDX-License-Identifier: Apache-2.0
"""What every engine adapter shares: getting in late, and getting out of the way.

Owns the finder that patches a module the moment its engine imports it, the check whether this
package may act at all, what begins while an engine loads its model. Owns the way of our log lines
into the engine's own log, and how an engine's settings become factors. Refuses to import torch,
FlashInfer or an engine when it is itself imported: engines load their plugins in every process. A
fault here leaves the engine alone, with one line in its log that says why.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

logger = logging.getLogger("warmup_plugin")


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
    """Return the settings where this package may act in this engine; else None, and say why.

    ``missing``: the names that the probe has not found; they are asked for in any version.
    """
    from warmup_plugin.engines import versions
    from warmup_plugin.errors import SettingError
    from warmup_plugin.observability.exposition import left_alone
    from warmup_plugin.settings import Settings

    tested, missing = tuple(tested), tuple(missing)
    about = (engine.lower(), version)
    try:
        settings = Settings.from_env()
    except SettingError as error:
        logger.error("warmup-plugin: %s; %s is left alone", error, engine)  # noqa: TRY400  # no trace
        left_alone(about, None)
        return None
    if settings.mode == "off":
        return None
    base = versions.taken_for(version, tested)
    if not base and settings.untested == "off":
        logger.warning(
            "warmup-plugin: %s %s is not a tested version (%s); it is left alone, unless "
            "WARMUP_PLUGIN_UNTESTED=probe has it tried",
            engine, version, ", ".join(tested),
        )  # fmt: skip
        left_alone(about, settings)
        return None
    if missing:
        logger.warning(
            "warmup-plugin: %s %s has no %s; it is left alone",
            engine, version, ", ".join(missing),
        )  # fmt: skip
        left_alone(about, settings)
        return None
    if not base:
        logger.warning(
            "warmup-plugin: %s %s is not a tested version; it has every name that is used of it, "
            "and is tried: WARMUP_PLUGIN_UNTESTED=probe",
            engine, version,
        )  # fmt: skip
    elif not versions.is_the_same_release(version, base):
        logger.info("warmup-plugin: %s %s is taken for %s", engine, version, base)
    return settings


def begin_with_loading(
    rank: Callable[[], int], about: Callable[[Settings], dict[str, Any]] | None = None
) -> None:
    """Begin what a fleet is asked by, as this rank's model begins to load; it need not succeed.

    ``about``: what else `begin_early` takes, where the engine knows it before it loads.
    """
    try:
        from warmup_plugin.early import begin_early
        from warmup_plugin.settings import Settings

        settings, number = Settings.from_env(), rank()
        known: dict[str, Any] = {}
        if about is not None and not number and settings.fleet is not None:
            with contextlib.suppress(Exception):  # the warm-up knows it, and asks then
                known = about(settings)
        begin_early(number, settings, **known)
    except Exception:
        logger.exception(
            "warmup-plugin: the process that asks the fleet cannot begin while the model is "
            "loaded; it begins with the warm-up:"
        )


def engine_root(variable: str, found: Callable[[], Path], settings: Settings) -> Path | None:
    """Return the engine's cache root, None where WARMUP_PLUGIN_CACHE_ROOT is to be used.

    It wins over the engine's default, which the user has not chosen, and not over the engine's
    variable.
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
