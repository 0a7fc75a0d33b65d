# SPDX-License-Identifier: Apache-2.0
"""Every setting of this package, in one table: field, variable, default, rule, meaning.

Owns the names of the environment variables; `python -m warmup_plugin.settings` prints the table for
the docs. Refuses to guess: an empty variable is unset, and a malformed value, from the environment
or as an argument, raises `SettingError`.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self, get_args

from warmup_plugin.errors import SettingError

Mode = Literal["on", "read-only", "replay", "require-complete", "off"]
Strategy = Literal["leader", "sharded", "per_rank"]
#: Modes in which no tactic is timed.
REPLAYS: Final = ("replay", "require-complete")
OnHit = Literal["survey", "skip"]
ForwardFailure = Literal["end", "wait"]
FleetRole = Literal["read", "write", "off"]
FleetCredentials = Literal["given", "anonymous", "instance"]

_PREFIX: Final = "WARMUP_PLUGIN_"
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")


class _Kind(NamedTuple):
    """How a kind of value is read from text, checked, and described."""

    parse: Callable[[str], object]  # raises ValueError
    accepts: Callable[[object], bool]
    rule: str
    #: Makes of an argument what the variable would have been read as; leaves what it does not know.
    normal: Callable[[object], object] = lambda value: value


def _choice(*names: str) -> _Kind:
    return _Kind(str, lambda value: value in names, f"one of {', '.join(names)}")


def _seconds(*, zero: bool) -> _Kind:
    def accepts(value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        return math.isfinite(value) and (value > 0 or (zero and value == 0))

    return _Kind(
        float, accepts, f"a finite number of seconds, {'0 or more' if zero else 'above 0'}"
    )


def _is_share(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value < 1  # type: ignore[operator]  # mypy forgets what it is


_SHARE = _Kind(float, _is_share, "a share, from 0 to less than 1")


def _count(least: int) -> _Kind:
    return _Kind(
        int,
        lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least,
        f"a whole number, {least} or more",
    )


def _parse_flag(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(text)
    return text.lower() in _TRUE


_FLAG = _Kind(
    _parse_flag, lambda value: isinstance(value, bool), f"one of {', '.join(_TRUE + _FALSE)}"
)


def _as_path(value: object) -> object:
    return Path(value) if isinstance(value, (str, os.PathLike)) else value


def _as_paths(value: object) -> object:
    return tuple(map(_as_path, value)) if isinstance(value, (tuple, list)) else value


def _parse_path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # "~" where there is no home directory
        raise ValueError(text) from error


_PATH = _Kind(
    _parse_path,
    # Ranks of one job may start in different directories: a relative path would scatter the tables.
    lambda value: isinstance(value, Path) and value.is_absolute(),
    "an absolute path",
    _as_path,
)

_PROM = _Kind(
    _parse_path,
    # The collector reads no other file, and says nothing of one.
    lambda value: _PATH.accepts(value) and isinstance(value, Path) and value.suffix == ".prom",
    "an absolute path that ends in .prom",
    _as_path,
)


def _parse_paths(text: str) -> tuple[Path, ...]:
    return tuple(_parse_path(part) for part in text.split(os.pathsep) if part)


_PATHS = _Kind(
    _parse_paths,
    lambda value: isinstance(value, tuple) and all(map(_PATH.accepts, value)),
    "absolute paths, with : between them",
    _as_paths,
)
_HOST = _Kind(
    str,
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9_.:%-]+", value)),
    "a host name or an IP address, without scheme or port",
)


def _is_location(value: object) -> bool:
    from warmup_plugin.fleet.location import is_location  # a start without a fleet has no need

    return is_location(value)


_FLEET = _Kind(
    str,
    _is_location,
    "s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///DIRECTORY, without "
    "user name, query or ..",
)
_URL = _Kind(
    str,
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"https?://[^\s@]+", value)),
    "an address that begins with http:// or https://, without user name",
)


def _row(variable: str, kind: _Kind, meaning: str) -> dict[str, Any]:
    return {"variable": variable, "meaning": meaning, "rule": kind.rule, "kind": kind}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One value for each row of the table; one that breaks its row's rule is a `SettingError`."""

    mode: Mode = field(
        default="on",
        metadata=_row(
            "WARMUP_PLUGIN_MODE",
            _choice(*get_args(Mode)),
            "`on` tunes what is missing and stores it; `read-only` tunes too, but writes nothing; "
            "`replay` serves what is stored and times nothing; `require-complete` does so too, and "
            "refuses to start where something is missing; `off` leaves the engine alone",
        ),
    )
    strategy: Strategy = field(
        default="sharded",
        metadata=_row(
            "WARMUP_PLUGIN_STRATEGY",
            _choice(*get_args(Strategy)),
            "which ranks tune: `leader` tunes on rank 0 and shares, `sharded` splits the tasks "
            "over the ranks that have them and shares, `per_rank` shares nothing",
        ),
    )
    on_hit: OnHit = field(
        default="survey",
        metadata=_row(
            "WARMUP_PLUGIN_ON_HIT",
            _choice(*get_args(OnHit)),
            "what a complete table means: `survey` still runs the forward once, `skip` does not",
        ),
    )
    require_agreement: bool = field(
        default=False,
        metadata=_row(
            "WARMUP_PLUGIN_REQUIRE_AGREEMENT",
            _FLAG,
            "ranks that cannot share serve FlashInfer's defaults instead of their own winners",
        ),
    )
    cache_root: Path | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_CACHE_ROOT",
            _PATH,
            "where tables are kept, unless an argument or the engine's own variable says so; it "
            "comes before an engine's default root",
        ),
    )
    override_dir: Path | None = field(
        default=None,
        metadata=_row(
            "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
            _PATH,
            "tables lie in `<this>/<identity>/`, in any engine; no part of the identity",
        ),
    )
    layers: tuple[Path, ...] = field(
        default=(),
        metadata=_row(
            "WARMUP_PLUGIN_LAYERS",
            _PATHS,
            "further cache roots, read after the writable one and never written: a baked image's, "
            "an administrator's",
        ),
    )
    silence_s: float = field(
        default=60.0,
        metadata=_row(
            "WARMUP_PLUGIN_SILENCE_S",
            _seconds(zero=False),
            "a rank is given up after this long without a heartbeat, if its process does not run",
        ),
    )
    task_limit_s: float = field(
        default=1800.0,
        metadata=_row(
            "WARMUP_PLUGIN_TASK_LIMIT_S",
            _seconds(zero=False),
            "longest that one task may tune before its rank is taken for stuck, or that one rank "
            "may be in its forward when others are back from theirs",
        ),
    )
    budget_s: float | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_BUDGET_S",
            _seconds(zero=False),
            "longest that one start tunes, beyond the task in hand; what is known by then is "
            "served and stored, and the next start goes on from there",
        ),
    )
    margin: float = field(
        default=0.03,
        metadata=_row(
            "WARMUP_PLUGIN_MARGIN",
            _SHARE,
            "a winner must be faster than FlashInfer's default by more than this share of the "
            "default's time, or the default serves; 0 takes FlashInfer's own choice",
        ),
    )
    race: bool = field(
        default=False,
        metadata=_row(
            "WARMUP_PLUGIN_RACE",
            _FLAG,
            "tactics are raced: all are timed shortly, then only those that can still be the "
            "fastest, longer; otherwise FlashInfer times each as long as the next",
        ),
    )
    grace_s: float = field(
        default=30.0,
        metadata=_row(
            "WARMUP_PLUGIN_GRACE_S",
            _seconds(zero=True),
            "how long ranks stay in the forward after another rank's forward has failed",
        ),
    )
    forward_failure: ForwardFailure = field(
        default="end",
        metadata=_row(
            "WARMUP_PLUGIN_FORWARD_FAILURE",
            _choice(*get_args(ForwardFailure)),
            "a rank stuck in a forward that failed on another rank: `end` its process after the "
            "grace period, or `wait` for the engine's own time-out",
        ),
    )
    replica_wait_s: float = field(
        default=1800.0,
        metadata=_row(
            "WARMUP_PLUGIN_REPLICA_WAIT_S",
            _seconds(zero=True),
            "longest that a cold start waits for another engine that tunes the same tasks, or a "
            "session for another one of its process",
        ),
    )
    record_bytes: int = field(
        default=2**30,
        metadata=_row(
            "WARMUP_PLUGIN_RECORD_BYTES",
            _count(0),
            "most bytes of tensors that one rank clones while recording",
        ),
    )
    table_bytes: int = field(
        default=64 * 2**20,
        metadata=_row(
            "WARMUP_PLUGIN_TABLE_BYTES",
            _count(1),
            "a table or manifest file larger than this is neither read nor written",
        ),
    )
    require_private: bool = field(
        default=False,
        metadata=_row(
            "WARMUP_PLUGIN_REQUIRE_PRIVATE",
            _FLAG,
            "a cache directory into which every user may write is not used, instead of warned of",
        ),
    )
    reports: int = field(
        default=8,
        metadata=_row("WARMUP_PLUGIN_REPORTS", _count(0), "reports kept beside the table"),
    )
    progress_file: Path | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_PROGRESS_FILE",
            _PATH,
            "a small JSON file, kept up to date by the first rank of a node, for a readiness probe",
        ),
    )
    metrics_file: Path | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_METRICS_FILE",
            _PROM,
            "figures of the last start for the node exporter's textfile collector; a name of its "
            "own for each engine and pod",
        ),
    )
    address: str | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_ADDRESS",
            _HOST,
            "host name or IP address at which the other nodes reach rank 0",
        ),
    )
    fleet: str | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_FLEET",
            _FLEET,
            "an object store or a shared folder in which hosts keep their tables for each other; "
            "rank 0 asks it for this start's table",
        ),
    )
    fleet_role: FleetRole = field(
        default="read",
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_ROLE",
            _choice(*get_args(FleetRole)),
            "`read` takes what the fleet has; `write` also gives it this start's table, once that "
            "is certified and the engine serves; `off` leaves the fleet alone",
        ),
    )
    fleet_credentials: FleetCredentials = field(
        default="given",
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_CREDENTIALS",
            _choice(*get_args(FleetCredentials)),
            "`given` uses those of the environment and asks nobody where there are none; "
            "`anonymous` signs nothing; `instance` asks the machine's metadata service too",
        ),
    )
    fleet_wait_s: float = field(
        default=2.0,
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_WAIT_S",
            _seconds(zero=False),
            "longest that a start waits for the fleet in all, whatever is amiss with it",
        ),
    )
    fleet_publish_after_s: float = field(
        default=60.0,
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_PUBLISH_AFTER_S",
            _seconds(zero=True),
            "how long an engine lives after its warm-up before its table is given to the fleet",
        ),
    )
    fleet_keys: tuple[Path, ...] = field(
        default=(),
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_KEYS",
            _PATHS,
            "files with ed25519 public keys in PEM: a bundle that none of them has signed is not "
            "used",
        ),
    )
    fleet_signing_key: Path | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_SIGNING_KEY",
            _PATH,
            "a file with an ed25519 private key in PEM, by which this host signs what it gives to "
            "the fleet; its own bundles are used, too, and no others where no keys are listed",
        ),
    )
    fleet_health: str | None = field(
        default=None,
        metadata=_row(
            "WARMUP_PLUGIN_FLEET_HEALTH",
            _URL,
            "the engine's own health page; it must answer 200 before the table is given to the "
            "fleet",
        ),
    )

    def __post_init__(self) -> None:
        """Hold every field against its row's rule."""
        for row in fields(self):
            given = getattr(self, row.name)
            value = row.metadata["kind"].normal(given)
            object.__setattr__(self, row.name, value)
            unset = value is None and row.default is None
            if not unset and not row.metadata["kind"].accepts(value):
                raise SettingError(row.metadata["variable"], given, row.metadata["rule"])

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: object) -> Self:
        """Read the settings from the environment.

        Args:
            environ: the environment variables; those of this process by default.
            **overrides: values of fields, which win over the environment.

        Returns:
            The settings; a variable that is empty or not set leaves the field's default.

        Raises:
            SettingError: a value, from either side, breaks its rule.
            TypeError: an override names no field.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = dict(overrides)
        for row in fields(cls):
            text = environ.get(row.metadata["variable"], "")
            if text and row.name not in values:
                values[row.name] = _parse(row.metadata, text)
        return cls(**values)


def _parse(row: Mapping[str, Any], text: str) -> object:
    """Read a variable; an error has the text as it was written."""
    with contextlib.suppress(ValueError):
        value = row["kind"].parse(text)
        if row["kind"].accepts(value):
            return value
    raise SettingError(row["variable"], text, row["rule"])


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that look like settings of this package and are none.

    Each with the name that was meant, as far as one is near; an empty string where none is.
    """
    known = {row.metadata["variable"].removeprefix(_PREFIX): row.metadata["variable"]
             for row in fields(Settings)}  # fmt: skip
    given = sorted(name.removeprefix(_PREFIX) for name in environ if name.startswith(_PREFIX))
    found = {}
    for name in given:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            found[f"{_PREFIX}{name}"] = known[nearest[0]] if nearest else ""
    return found


def markdown_table() -> str:
    """Return the table as the docs page shows it."""
    lines = ["| variable | field | default | must be | meaning |", "|---|---|---|---|---|"]
    for row in fields(Settings):
        about = row.metadata
        default = "unset" if row.default in (None, ()) else f"`{row.default}`"
        cells = (
            f"`{about['variable']}`",
            f"`{row.name}`",
            default,
            about["rule"],
            about["meaning"],
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
