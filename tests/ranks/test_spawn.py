# SPDX-License-Identifier: Apache-2.0
"""One start by plain spawn: nothing of the results stands on the fork server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment

pytestmark = pytest.mark.multiprocess


def test_a_table_made_by_forked_ranks_serves_spawned_ones(
    deploy: Callable[..., Deployment],
) -> None:
    """Cold from the fork server, warm in interpreters that have loaded everything themselves."""
    job = deploy(tp=2, timing="rank_noise")
    cold = job.start()
    job.options = {"spawn": True}
    warm = job.start()
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert warm.served == cold.served
