# SPDX-License-Identifier: Apache-2.0
"""Every setting of this package, in one table: field, variable, default, rule, meaning.

Owns the names of the environment variables; `tools/settings_page.py` prints the table for the docs.
Refuses to guess: an empty variable is unset, and a malformed value, from the environment or as an
argument, raises `SettingError`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from warmup_plugin.errors import SettingError
from warmup_plugin.runtime import setting_kinds as kinds
from warmup_plugin.runtime.setting_kinds import setting

Mode = Literal["on", "read-only", "replay", "require-complete", "off"]
Strategy = Literal["leader", "sharded", "per_rank"]
#: Modes in which no tactic is timed.
REPLAYS: Final = ("replay", "require-complete")
OnHit = Literal["survey", "skip"]
ForwardFailure = Literal["end", "wait"]
FleetRole = Literal["read", "write", "off"]
FleetCredentials = Literal["given", "anonymous", "instance"]
Untested = Literal["off", "probe"]

_PREFIX: Final = "WARMUP_PLUGIN_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One value for each row of the table; one that breaks its row's rule is a `SettingError`."""

    mode: Mode = setting(
        "WARMUP_PLUGIN_MODE",
        kinds.choice(Mode),
        "`on` tunes what is missing and stores it; `read-only` tunes too, but writes nothing; "
        "`replay` serves what is stored and times nothing; `require-complete` does so too, and "
        "refuses to start where something is missing; `off` leaves the engine alone",
        default="on",
    )
    untested: Untested = setting(
        "WARMUP_PLUGIN_UNTESTED",
        kinds.choice(Untested),
        "an engine of a version that no test has run on: `off` leaves it alone, `probe` warms it "
        "up by this package where all names that are used of it are there; a post-release, "
        "release candidate, development or local build of a tested version always is",
        default="off",
    )
    strategy: Strategy = setting(
        "WARMUP_PLUGIN_STRATEGY",
        kinds.choice(Strategy),
        "which ranks tune: `leader` tunes on rank 0 and shares, `sharded` splits the tasks over "
        "the ranks that have them and shares, `per_rank` shares nothing",
        default="sharded",
    )
    on_hit: OnHit = setting(
        "WARMUP_PLUGIN_ON_HIT",
        kinds.choice(OnHit),
        "what a complete table means: `survey` still runs the forward once, `skip` does not",
        default="survey",
    )
    require_agreement: bool = setting(
        "WARMUP_PLUGIN_REQUIRE_AGREEMENT",
        kinds.FLAG,
        "ranks that cannot share serve FlashInfer's defaults instead of their own winners",
        default=False,
    )
    cache_root: Path | None = setting(
        "WARMUP_PLUGIN_CACHE_ROOT",
        kinds.PATH,
        "where tables are kept, unless an argument or the engine's own variable says so; it comes "
        "before an engine's default root",
        default=None,
    )
    override_dir: Path | None = setting(
        "VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR",
        kinds.PATH,
        "tables lie in `<this>/<identity>/`, in any engine; no part of the identity",
        default=None,
    )
    layers: tuple[Path, ...] = setting(
        "WARMUP_PLUGIN_LAYERS",
        kinds.PATHS,
        "further cache roots, read after the writable one and never written: a baked image's, an "
        "administrator's",
        default=(),
    )
    silence_s: float = setting(
        "WARMUP_PLUGIN_SILENCE_S",
        kinds.seconds(zero=False),
        "a rank is given up after this long without a heartbeat, if its process does not run",
        default=60.0,
    )
    task_limit_s: float = setting(
        "WARMUP_PLUGIN_TASK_LIMIT_S",
        kinds.seconds(zero=False),
        "longest that one task may tune before its rank is taken for stuck, or that one rank may "
        "be in its forward when others are back from theirs",
        default=1800.0,
    )
    budget_s: float | None = setting(
        "WARMUP_PLUGIN_BUDGET_S",
        kinds.seconds(zero=False),
        "longest that one start tunes, beyond the task in hand; what is known by then is served "
        "and stored, and the next start goes on from there",
        default=None,
    )
    margin: float = setting(
        "WARMUP_PLUGIN_MARGIN",
        kinds.SHARE,
        "a winner must be faster than FlashInfer's default by more than this share of the "
        "default's time, or the default serves; 0 takes FlashInfer's own choice",
        default=0.03,
    )
    race: bool = setting(
        "WARMUP_PLUGIN_RACE",
        kinds.FLAG,
        "tactics are raced: all are timed shortly, then only those that can still be the fastest, "
        "longer; otherwise FlashInfer times each as long as the next",
        default=False,
    )
    grace_s: float = setting(
        "WARMUP_PLUGIN_GRACE_S",
        kinds.seconds(zero=True),
        "how long ranks stay in the forward after another rank's forward has failed",
        default=30.0,
    )
    forward_failure: ForwardFailure = setting(
        "WARMUP_PLUGIN_FORWARD_FAILURE",
        kinds.choice(ForwardFailure),
        "a rank stuck in a forward that failed on another rank: `end` its process after the grace "
        "period, or `wait` for the engine's own time-out",
        default="end",
    )
    replica_wait_s: float = setting(
        "WARMUP_PLUGIN_REPLICA_WAIT_S",
        kinds.seconds(zero=True),
        "longest that a cold start waits for another engine or another host of the fleet that "
        "tunes the same tasks, or a session for another one of its process",
        default=1800.0,
    )
    record_bytes: int = setting(
        "WARMUP_PLUGIN_RECORD_BYTES",
        kinds.count(0),
        "most bytes of tensors that one rank clones while recording",
        default=2**30,
    )
    table_bytes: int = setting(
        "WARMUP_PLUGIN_TABLE_BYTES",
        kinds.count(1),
        "a table or manifest file larger than this is neither read nor written",
        default=64 * 2**20,
    )
    require_private: bool = setting(
        "WARMUP_PLUGIN_REQUIRE_PRIVATE",
        kinds.FLAG,
        "a cache directory into which every user may write is not used, instead of warned of",
        default=False,
    )
    reports: int = setting(
        "WARMUP_PLUGIN_REPORTS",
        kinds.count(0),
        "reports kept beside the table",
        default=8,
    )
    progress_file: Path | None = setting(
        "WARMUP_PLUGIN_PROGRESS_FILE",
        kinds.PATH,
        "a small JSON file, kept up to date by the first rank of a node, for a readiness probe",
        default=None,
    )
    metrics_file: Path | None = setting(
        "WARMUP_PLUGIN_METRICS_FILE",
        kinds.PROM,
        "figures of the last start for the node exporter's textfile collector; a name of its own "
        "for each engine and pod",
        default=None,
    )
    address: str | None = setting(
        "WARMUP_PLUGIN_ADDRESS",
        kinds.HOST,
        "host name or IP address at which the other nodes reach rank 0",
        default=None,
    )
    fleet: str | None = setting(
        "WARMUP_PLUGIN_FLEET",
        kinds.FLEET,
        "an object store or a shared folder in which hosts keep their tables for each other; rank "
        "0 asks it for this start's table",
        default=None,
    )
    fleet_role: FleetRole = setting(
        "WARMUP_PLUGIN_FLEET_ROLE",
        kinds.choice(FleetRole),
        "`read` takes what the fleet has; `write` also gives it this start's table, once that is "
        "certified and the engine serves, and may hold the lease by which one host tunes; `off` "
        "leaves the fleet alone",
        default="read",
    )
    fleet_credentials: FleetCredentials = setting(
        "WARMUP_PLUGIN_FLEET_CREDENTIALS",
        kinds.choice(FleetCredentials),
        "`given` uses those of the environment and asks nobody where there are none; `anonymous` "
        "signs nothing; `instance` asks the machine's metadata service too",
        default="given",
    )
    fleet_wait_s: float = setting(
        "WARMUP_PLUGIN_FLEET_WAIT_S",
        kinds.seconds(zero=False),
        "longest that a start waits for the fleet in all, whatever is amiss with it; the wait for "
        "another host that tunes is WARMUP_PLUGIN_REPLICA_WAIT_S",
        default=2.0,
    )
    fleet_beat_s: float = setting(
        "WARMUP_PLUGIN_FLEET_BEAT_S",
        kinds.seconds(zero=False),
        "how often the host that tunes for the fleet renews its lease; after six of these without "
        "a renewal another host takes over",
        default=5.0,
    )
    fleet_publish_after_s: float = setting(
        "WARMUP_PLUGIN_FLEET_PUBLISH_AFTER_S",
        kinds.seconds(zero=True),
        "how long an engine lives after its warm-up before its table is given to the fleet",
        default=60.0,
    )
    fleet_keys: tuple[Path, ...] = setting(
        "WARMUP_PLUGIN_FLEET_KEYS",
        kinds.PATHS,
        "files with ed25519 public keys in PEM: a bundle that none of them has signed is not used",
        default=(),
    )
    fleet_signing_key: Path | None = setting(
        "WARMUP_PLUGIN_FLEET_SIGNING_KEY",
        kinds.PATH,
        "a file with an ed25519 private key in PEM, by which this host signs what it gives to the "
        "fleet; its own bundles are used, too, and no others where no keys are listed",
        default=None,
    )
    fleet_spot_check: int = setting(
        "WARMUP_PLUGIN_FLEET_SPOT_CHECK",
        kinds.count(0),
        "how many winners of the fleet rank 0 times against FlashInfer's default at a start",
        default=0,
    )
    fleet_health: str | None = setting(
        "WARMUP_PLUGIN_FLEET_HEALTH",
        kinds.URL,
        "the engine's own health page; it must answer 200 before the table is given to the fleet",
        default=None,
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
            about, text = row.metadata, environ.get(row.metadata["variable"], "")
            if text and row.name not in values:
                try:
                    values[row.name] = about["kind"].read(text)
                except ValueError:
                    raise SettingError(about["variable"], text, about["rule"]) from None
        return cls(**values)


def unknown_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that look like settings of this package and are none.

    Each with the name that was meant, as far as one is near; an empty string where none is.
    """
    return kinds.unlike(environ, _PREFIX, [row.metadata["variable"] for row in fields(Settings)])
