# SPDX-License-Identifier: Apache-2.0
"""SGLang's own warm-up in a hardened pod: no temporary directory, a random user, few processes."""

from __future__ import annotations

import pytest
from hardened_pod import Limits, check_certified, check_never_worse

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess, pytest.mark.timeout(600)]

LIMITS = Limits(alone=104, ours=116)


def test_it_comes_up_cold_and_warm() -> None:
    """Certified, where SGLang alone never comes up."""
    check_certified("sglang", {}, LIMITS)


def test_it_comes_up_with_as_few_processes_as_alone() -> None:
    """Cold and warm, by itself."""
    check_never_worse("sglang", {}, LIMITS)
