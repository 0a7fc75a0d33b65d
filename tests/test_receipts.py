# SPDX-License-Identifier: Apache-2.0
"""Receipts of other builds: what an earlier one has written is read, and its keys are still there.

``receipts/1f43ee7.json`` is one of a cold start of four ranks by that commit, two rows of a kind;
what it has read is from the start after it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from warmup_plugin import FleetAnswer, WarmupReport
from warmup_plugin.cli.load import read_report
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.runtime.safe_json import Miss

OLD = Path(__file__).parent / "receipts" / "1f43ee7.json"
ROWS = ("read", "ranks", "winners", "waited")
#: Keys that rows have had since.
NEW = {"ranks": {"passed_through_tactics"}}


@pytest.fixture(scope="module")
def old() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(OLD.read_bytes())
    return found


def test_a_receipt_of_an_earlier_build_is_read_and_loses_nothing(old: dict[str, Any]) -> None:
    """By attributes; written anew it says all that it has said."""
    found = read_report(OLD, OLD.stat().st_size)
    assert isinstance(found, WarmupReport)
    assert found == WarmupReport.from_json(old)
    assert found.process is not None
    assert found.process.pid == old["process"]["pid"]
    assert found.ranks[1].steps[0].name == "open"
    assert found.winners[0].seconds == old["winners"][0]["seconds"]
    assert found.waited[0].for_whom == old["waited"][0]["for"]
    assert found.fleet == FleetAnswer()
    again = json.loads(json.dumps(found.to_json()))
    for name, value in old.items():
        if name not in ROWS:
            assert again[name] == value, name
            continue
        for row, before in zip(again[name], value, strict=True):
            assert {key: row[key] for key in before} == before, name


@pytest.mark.multiprocess
def test_a_receipt_has_the_keys_that_an_earlier_build_reads(
    old: dict[str, Any], cache_root: Path
) -> None:
    """Of a cold start, in which no task was raced: exactly these, and those that are new."""
    config = EngineConfig(tp=2, pp=2)
    cold = launch(config, root=cache_root)[0].report
    assert launch(config, root=cache_root)[0].report.read
    for path in sorted(cache_root.rglob("reports/*.json")):
        document = json.loads(path.read_bytes())
        assert document.keys() >= old.keys()
        for name in ROWS:
            for row in document[name]:
                assert row.keys() == old[name][0].keys() | NEW.get(name, set()), name
    assert cold.winners
    assert cold.waited


def without(old: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    """Return a receipt whose second row of a kind lacks a key."""
    rows = [{k: v for k, v in row.items() if k != key} for row in old[name]]
    return {**old, name: [old[name][0], *rows]}


@pytest.mark.parametrize(
    ("name", "key"),
    [("read", "path"), ("ranks", "rank"), ("ranks", "steps"), ("winners", "op"),
     ("winners", "ms"), ("waited", "for"), ("waited", "seconds")],
)  # fmt: skip
def test_a_row_that_lacks_a_key_is_told(
    old: dict[str, Any], tmp_path: Path, name: str, key: str
) -> None:
    """By the kind of row and the key; the receipt is not used."""
    document = without(old, name, key)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(document))
    found = read_report(path, 1 << 20)
    assert isinstance(found, Miss)
    assert f"`{key}`" in found.reason
    assert f"$.{name}[" in found.reason
    with pytest.raises(ValueError, match=f"no receipt: .*`{key}`"):
        WarmupReport.from_json(document)


def test_an_answer_of_a_fleet_has_the_keys_that_it_says_something_with() -> None:
    """An empty one is an empty object, as ever."""
    assert msgspec.to_builtins(FleetAnswer()) == {}
    found = FleetAnswer(url="u", role="read", state="absent", publishes="no: the role is read")
    assert msgspec.to_builtins(found) == {
        "url": "u", "role": "read", "state": "absent", "publishes": "no: the role is read",
    }  # fmt: skip
