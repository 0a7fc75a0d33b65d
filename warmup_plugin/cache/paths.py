# SPDX-License-Identifier: Apache-2.0
"""Where a job's files lie: pure arithmetic on names.

    <root>/flashinfer_autotune/<FlashInfer version>/<arch>/<identity>/    below a cache root
    <override>/<identity>/                                                below the override
        rank_tp0_pp0_dp0.json  rank_tp0_pp0_dp0.manifest.json  identity.json

Owns these names, each spelled once. Refuses to touch the disk (`store` does that) and to make a
path of a part it does not recognise: `PlacementError`, upon which callers keep to memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from warmup_plugin.errors import PlacementError

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

__all__ = [
    "IDENTITY_NAME",
    "JOURNAL",
    "JOURNAL_SUFFIX",
    "Component",
    "Placement",
    "PlacementError",
    "machines_folder",
    "manifest_name",
    "parse_table_name",
    "resolve",
    "table_name",
]

IDENTITY_NAME: Final = "identity.json"
#: The folder of what starts have tuned, and how its files end.
JOURNAL: Final = "journal"
JOURNAL_SUFFIX: Final = ".log"
LAYOUT: Final = "flashinfer_autotune"
USER_FOLDER: Final = "warmup_plugin"

_STEM: Final = "rank_tp{}_pp{}_dp{}"
_NUMBER: Final = "(0|[1-9][0-9]*)"
_TABLE_NAME: Final = re.compile(_STEM.format(_NUMBER, _NUMBER, _NUMBER) + r"\.json")


def table_name(tp: int, pp: int, dp: int) -> str:
    """Return the name of the table that the rank at these coordinates writes."""
    return f"{_STEM.format(tp, pp, dp)}.json"


def manifest_name(tp: int, pp: int, dp: int) -> str:
    """Return the name of the manifest beside that table."""
    return f"{_STEM.format(tp, pp, dp)}.manifest.json"


def parse_table_name(name: str) -> tuple[int, int, int] | None:
    """Return the (tp, pp, dp) of a table's name, None for any other name."""
    match = _TABLE_NAME.fullmatch(name)
    if match is None:
        return None
    tp, pp, dp = (int(number) for number in match.groups())
    return tp, pp, dp


class Component(msgspec.Struct, frozen=True):
    """One part of a path and where it came from, for `warmup-plugin where`."""

    name: str
    value: str
    source: str


class Placement(msgspec.Struct, frozen=True):
    """The directory of one identity, and the parts it is made of."""

    directory: Path
    components: tuple[Component, ...]

    @property
    def root(self) -> Path:
        """The cache root or override that all of it lies in."""
        return Path(self.components[0].value)

    def table(self, tp: int, pp: int, dp: int) -> Path:
        """Return the path of a rank's table."""
        return self.directory / table_name(tp, pp, dp)

    def manifest(self, tp: int, pp: int, dp: int) -> Path:
        """Return the path of a rank's manifest."""
        return self.directory / manifest_name(tp, pp, dp)


def resolve(
    settings: Settings,
    identity_digest: str,
    *,
    version: str,
    arch: str,
    argument: Path | None = None,
    engine_root: Path | None = None,
    environ: Mapping[str, str],
) -> Placement:
    """Return where this identity's files lie; the first root that is set wins.

    In order: argument, override, engine root, `settings.cache_root`, user cache directory.

    Raises:
        PlacementError: a part is not what its place in the path takes, or there is no root at all.
    """
    digest = Component(
        "identity",
        _matching("identity", identity_digest, "[0-9a-f]{64}", "64 lower-case hex digits"),
        "sha256 of the config factors",
    )
    if argument is None and settings.override_dir is not None:
        override = Component(
            "override", str(settings.override_dir), "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR"
        )
        return _placement(override, digest)
    root = _root(settings, argument, engine_root, environ)
    return _placement(root, *_layout(version, arch), digest)


def machines_folder(
    settings: Settings, *, argument: Path | None = None, engine_root: Path | None = None,
    environ: Mapping[str, str],
) -> Path:  # fmt: skip
    """Return where all that concerns this machine alone is kept: beside what `resolve` names.

    Raises:
        PlacementError: there is no root.
    """
    if argument is None and settings.override_dir is not None:
        return settings.override_dir
    return Path(_root(settings, argument, engine_root, environ).value, LAYOUT)


def _placement(*components: Component) -> Placement:
    return Placement(Path(*(component.value for component in components)), components)


def _layout(version: str, arch: str) -> Iterator[Component]:
    yield Component("layout", LAYOUT, "fixed")
    version = _matching("version", version, "[0-9][0-9A-Za-z.+!_-]*", "a PEP 440 version")
    yield Component("version", version, "flashinfer.__version__")
    arch = _matching("arch", arch, "sm[0-9]+|cpu", "sm<digits> or cpu")
    yield Component("arch", arch, "compute capability of the device")


def _root(
    settings: Settings, argument: Path | None, engine_root: Path | None, environ: Mapping[str, str]
) -> Component:
    candidates = (
        (argument, "argument"),
        (engine_root, "engine root"),
        (settings.cache_root, "WARMUP_PLUGIN_CACHE_ROOT"),
    )
    for path, source in candidates:
        if path is not None:
            if not path.is_absolute():
                # Ranks of one job may start in different directories.
                raise PlacementError(source, str(path), "an absolute path")
            return Component("root", str(path), source)
    return _user_cache(environ)


def _user_cache(environ: Mapping[str, str]) -> Component:
    xdg = Path(environ.get("XDG_CACHE_HOME", ""))
    if xdg.is_absolute():  # the XDG specification has a relative one ignored
        source = "user cache directory ($XDG_CACHE_HOME)"
        return Component("root", str(xdg / USER_FOLDER), source)
    home = environ.get("HOME", "")
    if not Path(home).is_absolute():
        rule = "an absolute path (no home directory: set WARMUP_PLUGIN_CACHE_ROOT)"
        raise PlacementError("HOME", home, rule)
    source = "user cache directory (~/.cache)"
    return Component("root", str(Path(home, ".cache", USER_FOLDER)), source)


def _matching(name: str, value: str, pattern: str, rule: str) -> str:
    if not re.fullmatch(pattern, value):
        raise PlacementError(name, value, rule)
    return value
