# SPDX-License-Identifier: Apache-2.0
"""SGLang's own warm-up in a hardened pod: no temporary directory, a random user, little memory."""

from __future__ import annotations

import pytest
from hardened_pod import check_cold_and_warm

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess, pytest.mark.timeout(600)]


def test_it_comes_up_cold_and_warm() -> None:
    """As alone, once its ranks have met."""
    check_cold_and_warm("sglang", {})
