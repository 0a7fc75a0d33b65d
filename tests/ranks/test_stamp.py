# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's environment stamp on real ranks: what is slow in it is looked up once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.tuner.kept_environment import FOLDER

pytestmark = pytest.mark.multiprocess

ONCE = {"cublas_version": 1, "cutlass_dsl_version": 1}
SCRIPT = f"{Path(__file__).with_name('on_ranks.py')}:looking_up"


def start(root: Path, **arguments: Any) -> list[tuple[Any, dict[str, Any]]]:
    return list(launch(EngineConfig(tp=2), root=root, script=SCRIPT, arguments=arguments))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> list[list[tuple[Any, dict[str, Any]]]]:
    """A cold start of ranks that see alike, a warm one, and a warm one of ranks that do not.

    Nothing is kept of the look of the one before, as on another machine.
    """
    root = tmp_path_factory.mktemp("root")

    def on_another_machine(**arguments: Any) -> list[tuple[Any, dict[str, Any]]]:
        shutil.rmtree(root / "flashinfer_autotune" / FOLDER, ignore_errors=True)
        return start(root, **arguments)

    return [on_another_machine(), on_another_machine(), on_another_machine(elsewhere=1)]


@pytest.mark.parametrize("number", [0, 1], ids=["cold", "warm"])
def test_ranks_that_see_alike_look_once(starts: Any, number: int) -> None:
    """Also where FlashInfer compares the file's stamp, it has on each rank what one has found."""
    (_, zero), (_, one) = starts[number]
    looked = [seen["looked up"] for seen in (zero, one)]
    assert [looks["cublas_version"] for looks in looked] == [1, 0]
    assert sum(looks["cutlass_dsl_version"] for looks in looked) == 1, "whoever comes first"


def test_a_rank_that_sees_otherwise_looks_itself(starts: Any) -> None:
    assert [seen["looked up"] for _, seen in starts[2]] == [ONCE, ONCE]


def test_who_looks_changes_nothing_else(starts: Any) -> None:
    """The same identity, all from cache at once; FlashInfer has its own functions again."""
    reports = [result.report for ranks in starts for result, _ in ranks]
    assert len({(report.identity, report.certificate, report.agreement) for report in reports}) == 1
    assert {report.agreement for report in reports} == {"certified"}
    assert [report.tactics_timed > 0 for report in reports] == [True] * 2 + [False] * 4
    assert all(seen["left as found"] for ranks in starts for _, seen in ranks)
