# SPDX-License-Identifier: Apache-2.0
"""MegaMoE's records on their way between SGLang's own file and the tuner."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from flashinfer.autotuner import AutoTuner

from warmup_plugin.engines.sglang import compat, megamoe
from warmup_plugin.tuner import compat as flashinfer

NAMESPACE = "flashinfer_megamoe"
RUNNER = SimpleNamespace(is_draft_worker=False)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where SGLang keeps this rank's table; the tuner holds nothing of other products."""
    path = tmp_path / "sglang" / "rank_tp0.json"
    monkeypatch.setattr(compat, "rank_file", lambda _runner: path)
    monkeypatch.setattr(compat, "megamoe_namespace", lambda: NAMESPACE)
    forget(monkeypatch)
    return path


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tuner one of a new process, as far as other products go."""
    tuner = AutoTuner.get()
    monkeypatch.setattr(tuner, "_namespaced_records", {})
    monkeypatch.setattr(tuner, "_dirty_namespaces", set())
    monkeypatch.setattr(tuner, "_observed_cache_generations", {})


def test_records_are_there_at_the_next_start(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though SGLang's context ends with a save that goes nowhere, while they are not yet kept."""
    scratch = file.parent.parent / "unused" / "table.json"
    with megamoe.records_kept(RUNNER), flashinfer.saving_all_but(scratch):
        AutoTuner.get().publish_namespaced_records(NAMESPACE, {"profile": [1, 2]})
        AutoTuner.get().save_configs(str(scratch))
    assert "profile" in json.dumps(json.loads(file.read_text()))

    forget(monkeypatch)
    with megamoe.records_kept(RUNNER):
        assert AutoTuner.get().get_namespaced_records(NAMESPACE) == {"profile": [1, 2]}


def test_what_has_not_changed_is_not_written(file: Path) -> None:
    with megamoe.records_kept(RUNNER):
        pass
    assert not file.exists()


def test_a_bad_file_is_a_warning(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its records are made anew."""
    file.mkdir(parents=True)  # no file can be written there
    with megamoe.records_kept(RUNNER):
        AutoTuner.get().publish_namespaced_records(NAMESPACE, {"profile": [1]})
    assert "MegaMoE's records are not kept" in caplog.text
