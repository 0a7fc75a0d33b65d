# SPDX-License-Identifier: Apache-2.0
"""Where a start on this machine could keep its tables, and where the next one will.

Owns the list of cache roots: what the options name, or else, by `paths.resolve` for each engine and
for a runner of one's own, every root that this environment leads to. Looks for folders and changes
nothing. Where a command must write, and several places are as good, it asks: a `CommandError` that
names them.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from warmup_plugin.cache.paths import LAYOUT, resolve
from warmup_plugin.cli.engines import ENGINES, Engine
from warmup_plugin.cli.environment import installed_version
from warmup_plugin.cli.output import CommandError
from warmup_plugin.errors import PlacementError
from warmup_plugin.settings import Settings

Kind = Literal["root", "override", "layer"]
_OVERRIDE = "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
_OWN = "a runner of your own"


@dataclass(frozen=True)
class Root:
    """A place where identities lie, what says so, and whose starts use it. No layer is written.

    ``chosen``: an option or a variable names it, or its engine is installed here.
    """

    path: Path
    source: str
    kind: Kind
    users: tuple[str, ...] = ()
    chosen: bool = True

    @property
    def is_there(self) -> bool:
        """Return whether tables have been kept here."""
        return (self.path if self.kind == "override" else self.path / LAYOUT).is_dir()

    @property
    def matters(self) -> bool:
        """Return whether a start is known to use it, or has used it."""
        return self.chosen or self.is_there

    def words(self) -> str:
        """Return the source, and whose starts use it."""
        return f"{self.source}, of {' and '.join(self.users)}" if self.users else self.source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to look: the same options for every verb that asks."""
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="this cache root only, as in warm_up(root=...)"
    )
    parser.add_argument(
        "--engine-root", metavar="DIR", type=Path, help="this engine's cache root only"
    )


def find(
    root: Path | None, engine_root: Path | None, settings: Settings, environ: Mapping[str, str]
) -> list[Root]:
    """Return the roots in which starts keep tables, then the layers, which are only read.

    Without options these are the roots of every engine and of a runner of one's own, each once.

    Raises:
        CommandError: there is no root at all.
    """
    layers = [Root(path, "WARMUP_PLUGIN_LAYERS", "layer") for path in settings.layers]
    if root is not None or engine_root is not None:
        return [_given(root, engine_root, settings, environ), *layers]
    found = list(_of_this_machine(settings, environ))
    if not any(root.matters or _OWN in root.users for root in found):
        # `resolve` has the words for what is missing.
        found = [_resolved(settings, environ, None, None)]
    return [*found, *layers]


def offered(
    root: Path | None, engine_root: Path | None, settings: Settings, environ: Mapping[str, str]
) -> list[Root]:
    """Return the same for a command that may have been given a file: none where there is none."""
    try:
        return find(root, engine_root, settings, environ)
    except CommandError:
        return [Root(path, "WARMUP_PLUGIN_LAYERS", "layer") for path in settings.layers]


def target(roots: list[Root]) -> Root:
    """Return the root that the next start on this machine will use.

    Raises:
        CommandError: several are as good; the message names them.
    """
    writable = [root for root in roots if root.kind != "layer"]
    best = (
        [root for root in writable if root.chosen]
        or [root for root in writable if root.is_there]
        or writable[-1:]
    )
    if len(best) == 1 or best[0].kind == "override":
        return best[0]
    choices = "; ".join(f"--root {root.path} ({root.words()})" for root in best)
    message = f"the next start could look in {len(best)} places; choose one: {choices}"
    raise CommandError(message, code=CommandError.USAGE)


def of_engine(name: str, settings: Settings, environ: Mapping[str, str]) -> Root:
    """Return the root that an engine's next start will use, by its package's name."""
    (engine,) = (each for each in ENGINES if each.package == name)
    return _of_engine(engine, settings, environ)


def default_of(name: str, environ: Mapping[str, str]) -> Path:
    """Return the engine's own cache root, whatever this package's settings say."""
    (engine,) = (each for each in ENGINES if each.package == name)
    said = environ.get(engine.root_variable)
    return absolute(Path(said)) if said else engine.default_root(environ)


def useless(settings: Settings, environ: Mapping[str, str]) -> list[str]:
    """Return where WARMUP_PLUGIN_CACHE_ROOT is set and has no effect, in words."""
    if settings.cache_root is None:
        return []
    if settings.override_dir is not None:
        return [f"WARMUP_PLUGIN_CACHE_ROOT has no effect: {_OVERRIDE} is set, and comes before it"]
    return [
        f"WARMUP_PLUGIN_CACHE_ROOT has no effect in {engine.name}: {engine.root_variable} is set, "
        "and comes before it"
        for engine in ENGINES
        if environ.get(engine.root_variable)
    ]


def absolute(path: Path) -> Path:
    """Return a path as it is meant on a command line."""
    return path.expanduser().absolute()


def _of_this_machine(settings: Settings, environ: Mapping[str, str]) -> Iterator[Root]:
    """Yield every root once, the one that wins everywhere first, a runner's own last."""
    found: dict[Path, Root] = {}
    for root in _candidates(settings, environ):
        before = found.get(root.path)
        users = (*before.users, *root.users) if before else root.users
        chosen = root.chosen or (before is not None and before.chosen)
        first = before or root
        found[root.path] = Root(first.path, first.source, first.kind, users, chosen)
    yield from found.values()


def _candidates(settings: Settings, environ: Mapping[str, str]) -> Iterator[Root]:
    if settings.override_dir is not None:
        yield Root(settings.override_dir, _OVERRIDE, "override")
    for engine in ENGINES:
        with contextlib.suppress(PlacementError, RuntimeError):  # no home directory
            yield _of_engine(engine, settings, environ, override=False)
    with contextlib.suppress(PlacementError):
        own = resolve(
            Settings(cache_root=settings.cache_root), "0" * 64, version="0", arch="cpu",
            environ=environ,
        ).components[0]  # fmt: skip
        is_set = settings.cache_root is not None
        yield Root(Path(own.value), own.source, "root", (_OWN,), chosen=is_set)


def _of_engine(
    engine: Engine, settings: Settings, environ: Mapping[str, str], *, override: bool = True
) -> Root:
    """Return what the adapters come to: `engines.base.engine_root` has the same rule."""
    if override and settings.override_dir is not None:
        return Root(settings.override_dir, _OVERRIDE, "override", (engine.name,))
    is_here = installed_version(engine.package) is not None
    if said := environ.get(engine.root_variable):
        return Root(absolute(Path(said)), engine.root_variable, "root", (engine.name,))
    if settings.cache_root is not None:
        return Root(settings.cache_root, "WARMUP_PLUGIN_CACHE_ROOT", "root", (engine.name,))
    default = engine.default_root(environ)
    return Root(default, f"{engine.name}'s default", "root", (engine.name,), chosen=is_here)


def _given(
    root: Path | None, engine_root: Path | None, settings: Settings, environ: Mapping[str, str]
) -> Root:
    as_meant = [None if path is None else absolute(path) for path in (root, engine_root)]
    return _resolved(settings, environ, *as_meant)


def _resolved(
    settings: Settings, environ: Mapping[str, str], root: Path | None, engine_root: Path | None
) -> Root:
    try:
        place = resolve(
            settings, "0" * 64, version="0", arch="cpu", argument=root, engine_root=engine_root,
            environ=environ,
        )  # fmt: skip
    except PlacementError as error:
        raise CommandError(str(error)) from None
    first = place.components[0]
    source = {"argument": "--root", "engine root": "--engine-root"}.get(first.source, first.source)
    return Root(Path(first.value), source, "override" if first.name == "override" else "root")
