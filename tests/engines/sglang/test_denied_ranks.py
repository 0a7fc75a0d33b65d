# SPDX-License-Identifier: Apache-2.0
"""A rank of SGLang that lives and is denied something comes up with us; and SGLang alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from denied_ranks import ROWS, Denial, check, check_alone

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

rows = pytest.mark.parametrize("row", ROWS, ids=str)
when = pytest.mark.parametrize("is_cold", [True, False], ids=["cold", "warm"])


@when
@rows
def test_it_comes_up_with_us(job: Callable[..., Any], row: Denial, is_cold: bool) -> None:  # noqa: FBT001  # a parameter
    check(row, job(tp=2), is_cold=is_cold)


@when
@rows
def test_alone(job: Callable[..., Any], row: Denial, is_cold: bool) -> None:  # noqa: FBT001  # a parameter
    check_alone(row, job(tp=2), is_cold=is_cold)
