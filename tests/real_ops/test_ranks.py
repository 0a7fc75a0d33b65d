# SPDX-License-Identifier: Apache-2.0
"""Two ranks that measure differently serve alike, or the report does not say `certified`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.real_ops.rows import MAIN, NEXT, SHIPPED

# A bound for what hangs: a server starts with the first test that asks it.
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(600)]

BLACKWELL = "10.0"
NAMES = (
    "bmm_fp8 auto", "cute_dsl_fused_moe ep2", "cutlass_fused_moe ep2", "cutlass_fused_moe tp2",
    "mm_bf16 cute-dsl", "mm_fp4 trtllm", "mm_mxfp8 cute-dsl, ranks of other batches",
    "mm_mxfp8 low latency", "trtllm fp4 routed moe ep2",
)  # fmt: skip
#: One whose runners' order moves with the batch; it once was served apart and called certified.
SMALL = "mm_mxfp8 cute-dsl, ranks of other batches"
ROWS = [
    pytest.param(name, MAIN, marks=() if name == SMALL else (pytest.mark.real_ops,))
    for name in NAMES
] + [
    pytest.param(name, NEXT, marks=pytest.mark.real_ops)
    for name in NAMES
    if name != "mm_bf16 cute-dsl"  # 0.7.4 takes no batch above 32 there
]


@pytest.mark.parametrize(("name", "release"), ROWS)
def test_ranks_serve_alike(ask: Callable[..., Any], name: str, release: str) -> None:
    margin = SHIPPED if len(name) % 2 else 0.0
    cold, warm = ask("ranks", "starts", on=BLACKWELL, release=release, name=name, margin=margin)
    agreements = {rank["report"]["agreement"] for rank in cold}
    assert len(agreements) == 1
    assert cold[0]["served"]
    if agreements == {"certified"}:
        assert cold[0]["served"] == cold[1]["served"]
    assert sum(rank["timed"] for rank in cold) > 0
    for rank, before in zip(warm, cold, strict=True):
        assert rank["timed"] == rank["synthesised"] == 0
        assert rank["served"] == before["served"]


@pytest.mark.parametrize("name", ["bmm_fp8 auto", "cute_dsl_fused_moe ep2"])
@pytest.mark.real_ops
def test_ranks_share_the_work(ask: Callable[..., Any], name: str) -> None:
    """Neither times all that one rank alone would; together they time each tactic once."""
    cold, _ = ask("ranks", "starts", on=BLACKWELL, name=name, margin=0.0)
    timed = [rank["timed"] for rank in cold]
    assert all(timed)
    assert max(timed) < sum(timed)
