# SPDX-License-Identifier: Apache-2.0
"""The table of settings: names frozen, defaults, every rule broken once, the page for the docs."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from warmup_plugin.errors import SettingError
from warmup_plugin.settings import Settings

# A variable that is renamed or removed breaks somebody's deployment: change this list knowingly.
FROZEN = {
    "mode": ("WARMUP_PLUGIN_MODE", "on"),
    "untested": ("WARMUP_PLUGIN_UNTESTED", "off"),
    "strategy": ("WARMUP_PLUGIN_STRATEGY", "sharded"),
    "on_hit": ("WARMUP_PLUGIN_ON_HIT", "survey"),
    "require_agreement": ("WARMUP_PLUGIN_REQUIRE_AGREEMENT", False),
    "cache_root": ("WARMUP_PLUGIN_CACHE_ROOT", None),
    "override_dir": ("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR", None),
    "layers": ("WARMUP_PLUGIN_LAYERS", ()),
    "silence_s": ("WARMUP_PLUGIN_SILENCE_S", 60.0),
    "task_limit_s": ("WARMUP_PLUGIN_TASK_LIMIT_S", 1800.0),
    "budget_s": ("WARMUP_PLUGIN_BUDGET_S", None),
    "margin": ("WARMUP_PLUGIN_MARGIN", 0.03),
    "race": ("WARMUP_PLUGIN_RACE", False),
    "grace_s": ("WARMUP_PLUGIN_GRACE_S", 30.0),
    "forward_failure": ("WARMUP_PLUGIN_FORWARD_FAILURE", "end"),
    "replica_wait_s": ("WARMUP_PLUGIN_REPLICA_WAIT_S", 1800.0),
    "record_bytes": ("WARMUP_PLUGIN_RECORD_BYTES", 1 << 30),
    "table_bytes": ("WARMUP_PLUGIN_TABLE_BYTES", 64 << 20),
    "require_private": ("WARMUP_PLUGIN_REQUIRE_PRIVATE", False),
    "reports": ("WARMUP_PLUGIN_REPORTS", 8),
    "progress_file": ("WARMUP_PLUGIN_PROGRESS_FILE", None),
    "metrics_file": ("WARMUP_PLUGIN_METRICS_FILE", None),
    "address": ("WARMUP_PLUGIN_ADDRESS", None),
    "fleet": ("WARMUP_PLUGIN_FLEET", None),
    "fleet_role": ("WARMUP_PLUGIN_FLEET_ROLE", "read"),
    "fleet_credentials": ("WARMUP_PLUGIN_FLEET_CREDENTIALS", "given"),
    "fleet_wait_s": ("WARMUP_PLUGIN_FLEET_WAIT_S", 2.0),
    "fleet_beat_s": ("WARMUP_PLUGIN_FLEET_BEAT_S", 5.0),
    "fleet_publish_after_s": ("WARMUP_PLUGIN_FLEET_PUBLISH_AFTER_S", 60.0),
    "fleet_keys": ("WARMUP_PLUGIN_FLEET_KEYS", ()),
    "fleet_signing_key": ("WARMUP_PLUGIN_FLEET_SIGNING_KEY", None),
    "fleet_spot_check": ("WARMUP_PLUGIN_FLEET_SPOT_CHECK", 0),
    "fleet_health": ("WARMUP_PLUGIN_FLEET_HEALTH", None),
}

GOOD = [
    ("mode", "replay", "replay"),
    ("mode", "require-complete", "require-complete"),
    ("untested", "probe", "probe"),
    ("strategy", "per_rank", "per_rank"),
    ("strategy", "sharded", "sharded"),
    ("on_hit", "skip", "skip"),
    ("budget_s", "90", 90.0),
    ("margin", "0", 0.0),
    ("margin", "0.1", 0.1),
    ("race", "on", True),
    ("race", "0", False),
    ("require_agreement", "Yes", True),
    ("require_agreement", "off", False),
    ("require_agreement", "1", True),
    ("require_agreement", "0", False),
    ("cache_root", "/var/cache/x", Path("/var/cache/x")),
    ("cache_root", "~/x", Path("~/x").expanduser()),
    ("override_dir", "/o", Path("/o")),
    ("layers", "/a:/b", (Path("/a"), Path("/b"))),
    ("layers", ":/a:", (Path("/a"),)),
    ("progress_file", "/run/warm.json", Path("/run/warm.json")),
    ("metrics_file", "/run/warm.prom", Path("/run/warm.prom")),
    ("silence_s", "0.5", 0.5),
    ("task_limit_s", "7200", 7200.0),
    ("grace_s", "0", 0.0),
    ("forward_failure", "wait", "wait"),
    ("replica_wait_s", "0", 0.0),
    ("record_bytes", "0", 0),
    ("table_bytes", "1024", 1024),
    ("reports", "0", 0),
    ("address", "node-1.cluster.local", "node-1.cluster.local"),
    ("address", "fe80::1%eth0", "fe80::1%eth0"),
    ("fleet", "file:///mnt/shared", "file:///mnt/shared"),
    ("fleet_role", "write", "write"),
    ("fleet_credentials", "anonymous", "anonymous"),
    ("fleet_wait_s", "0.5", 0.5),
    ("fleet_beat_s", "0.5", 0.5),
    ("fleet_spot_check", "3", 3),
    ("fleet_publish_after_s", "0", 0.0),
    ("fleet_health", "http://127.0.0.1:8000/health", "http://127.0.0.1:8000/health"),
]

BAD = [
    ("layers", "/a:b"),
    ("progress_file", "warm.json"),
    ("metrics_file", "warm.prom"),
    ("metrics_file", "/run/warm.txt"),
    ("metrics_file", "/run/.prom"),
    ("mode", "On"),
    ("mode", "readonly"),
    ("untested", "on"),
    ("strategy", "sharded-ish"),
    ("budget_s", "0"),
    ("budget_s", "soon"),
    ("margin", "1"),
    ("race", "perhaps"),
    ("margin", "-0.1"),
    ("margin", "3 %"),
    ("on_hit", "yes"),
    ("require_agreement", "maybe"),
    ("cache_root", "relative/path"),
    ("cache_root", " "),
    ("cache_root", "~nobody-of-that-name/x"),
    ("override_dir", "./here"),
    ("silence_s", "0"),
    ("silence_s", "-1"),
    ("silence_s", "nan"),
    ("silence_s", "inf"),
    ("silence_s", "a minute"),
    ("task_limit_s", "0"),
    ("task_limit_s", "1e999"),
    ("grace_s", "-0.1"),
    ("forward_failure", "END"),
    ("replica_wait_s", "-1"),
    ("record_bytes", "1.5"),
    ("record_bytes", "-1"),
    ("record_bytes", "1GiB"),
    ("table_bytes", "0"),
    ("require_private", "perhaps"),
    ("reports", "-1"),
    ("reports", "eight"),
    ("address", "http://node"),
    ("address", "two words"),
    ("fleet", "s3://key:secret@bucket"),
    ("fleet_role", "writes"),
    ("fleet_credentials", "metadata"),
    ("fleet_wait_s", "0"),
    ("fleet_beat_s", "0"),
    ("fleet_spot_check", "-1"),
    ("fleet_publish_after_s", "-1"),
    ("fleet_keys", "fleet.pub"),
    ("fleet_signing_key", "fleet.key"),
    ("fleet_health", "localhost:8000/health"),
]

BAD_ARGUMENTS: list[tuple[str, object]] = [
    ("mode", None),
    ("strategy", 1),
    ("require_agreement", 1),
    ("cache_root", "a/string"),
    ("cache_root", Path("relative")),
    ("silence_s", True),
    ("grace_s", "30"),
    ("reports", 8.0),
    ("reports", True),
    ("address", 7),
]


def test_names_and_defaults_are_frozen() -> None:
    """No setting appears, goes or changes its default unnoticed."""
    rows = dataclasses.fields(Settings)
    assert {row.name: (row.metadata["variable"], row.default) for row in rows} == FROZEN


def test_an_empty_environment_gives_the_defaults() -> None:
    """Also where variables are set to nothing, as deployment files do."""
    empty = {variable: "" for variable, _ in FROZEN.values()}
    expected = {name: default for name, (_, default) in FROZEN.items()}
    assert dataclasses.asdict(Settings.from_env({})) == expected
    assert Settings.from_env(empty) == Settings() == Settings.from_env({})


def test_reads_the_environment_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument it is `os.environ`."""
    monkeypatch.setenv("WARMUP_PLUGIN_REPORTS", "3")
    assert Settings.from_env().reports == 3


@pytest.mark.parametrize(("name", "text", "value"), GOOD)
def test_good_value(name: str, text: str, value: object) -> None:
    """Read from its variable, in its type, and nothing else is changed."""
    found = Settings.from_env({FROZEN[name][0]: text})
    assert dataclasses.asdict(found) == dataclasses.asdict(Settings()) | {name: value}
    assert type(getattr(found, name)) is type(value)


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_value(name: str, text: str) -> None:
    """The error names variable, value and rule."""
    variable = FROZEN[name][0]
    with pytest.raises(SettingError) as caught:
        Settings.from_env({variable: text})
    rules = {row.name: row.metadata["rule"] for row in dataclasses.fields(Settings)}
    assert (caught.value.variable, caught.value.rule) == (variable, rules[name])
    assert str(caught.value.value) == text
    assert variable in str(caught.value)
    assert text in str(caught.value)


def test_every_row_has_a_bad_value() -> None:
    """A setting added later cannot go without one."""
    assert {name for name, _ in BAD} == set(FROZEN)


@pytest.mark.parametrize(("name", "value"), BAD_ARGUMENTS)
def test_bad_argument(name: str, value: object) -> None:
    """Values given in code obey the same rules, and are not converted."""
    with pytest.raises(SettingError) as caught:
        Settings.from_env({}, **{name: value})
    assert (caught.value.variable, caught.value.value) == (FROZEN[name][0], value)


def test_an_argument_wins_over_the_environment() -> None:
    """Even over a malformed variable: it is not what is used."""
    assert Settings.from_env({"WARMUP_PLUGIN_REPORTS": "many"}, reports=2).reports == 2


def test_an_unknown_argument_is_refused() -> None:
    """A misspelt name must not pass for a default."""
    with pytest.raises(TypeError, match="report"):
        Settings.from_env({}, report=2)


def test_settings_do_not_change() -> None:
    """All steps of a session see the same."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().mode = "off"  # type: ignore[misc]


def test_the_page_has_every_variable() -> None:
    """`tools/settings_page.py` prints one row for each, as the docs hold it."""
    script = Path(__file__).resolve().parent.parent / "tools/settings_page.py"
    done = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True)
    assert done.stdout in (script.parent.parent / "docs/settings.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].strip("| `") for line in done.stdout.splitlines()[2:]]
    assert rows == [variable for variable, _ in FROZEN.values()]
