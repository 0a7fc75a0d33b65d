# SPDX-License-Identifier: Apache-2.0
"""One rank and one task: the progress file follows it tactic by tactic, on a clock of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.tuner.conftest import Children

pytestmark = pytest.mark.multiprocess


def test_the_file_follows_one_long_task(children: Children) -> None:
    """Each tactic waits until the file tells of it: else it would be told too late, if at all.

    The fourth is the default.
    """
    report, seen, left, last = children.one("on_progress:long_task")
    assert [(each["tactic"], each["of"]) for each in seen] == [(1, 4), (2, 4), (3, 4)]
    assert {(each["state"], each["step"], each["task"]) for each in seen} == {
        ("warming", "tune", "slow @ fixed")
    }
    assert [each["best_ms"] is None for each in seen] == [True, False, False]
    assert all(each["doing"] == "tuning" and each["limit_s"] == 1800.0 for each in seen)
    assert (last["state"], last["doing"], last["tactic"]) == ("ready", "", 0)
    assert left == []
    assert report.tasks["tuned"] == 1
