# SPDX-License-Identifier: Apache-2.0
"""Cold, then warm in new processes: SGLang's own warm-up code, real groups, the real tuner."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

ALL = {"has_draft": True, "has_rank_keys": True}
EXTEND = {"env": {"SGLANG_FLASHINFER_AUTOTUNE_EXTEND": "1"}}
LAYOUTS = [
    pytest.param({}, ["decode 32"], id="1"),
    pytest.param({"tp": 2}, ["decode 32"], id="tp2"),
    pytest.param(
        {"tp": 2, **ALL, **EXTEND}, ["decode 32", "extend 128", "draft 32"],
        id="tp2, prefill and draft",
    ),
    pytest.param(
        {"tp": 4, **ALL, **EXTEND}, ["decode 32", "extend 128", "draft 32"],
        id="tp4, prefill and draft",
    ),
    pytest.param({"tp": 2, "pp": 2}, ["decode 32"], id="pp2xtp2"),
    pytest.param(
        {"tp": 2, "pp": 2, "has_rank_keys": True, **EXTEND}, ["decode 32", "extend 128"],
        id="pp2xtp2, prefill",
    ),
    pytest.param({"pp": 2}, ["decode 32"], id="pp2"),
]  # fmt: skip


def certificates(start: Any) -> list[str]:
    """Return the certificate of each of the warm-ups, one for all ranks of all stages."""
    told = [[report["certificate"] for report in rank["reports"]] for rank in start.ranks]
    for rank, found in zip(start.ranks, told, strict=True):
        assert {report["agreement"] for report in rank["reports"]} == {"certified"}
        assert found == told[0]
    return told[0]


@pytest.mark.parametrize(("layout", "passes"), LAYOUTS)
def test_the_second_start_is_warm(
    job: Callable[..., Any], layout: dict[str, Any], passes: list[str]
) -> None:
    env = layout.pop("env", {}) if "env" in layout else {}
    engine = job(**layout)

    cold, warm = engine.start(env=env), engine.start(env=env)

    assert all(rank["is_patched"] for rank in cold.ranks)
    assert sum(cold.timed) > 0
    for rank in warm.ranks:
        assert rank["passes"] == passes
        # Without reductions where FlashInfer makes them in the first (0.6.18).
        assert rank["counts"].keys() >= {"profile_single_kernel", "prepare_input_tensors"}
        assert not any(rank["counts"].values())
        # What a context finds in the tuner is set aside without a file; SGLang saves none either.
        assert rank["saves"] == 0
    assert certificates(cold) == certificates(warm)
    assert len(certificates(warm)) == len(passes)
    assert cold.disputed == warm.disputed == set()
    assert cold.ranks[0]["served"] == warm.ranks[0]["served"]
    # SGLang's own line names the file that it would have used; here it has none.
    lines = [line for start in (cold, warm) for rank in start.ranks for line in rank["lines"]]
    assert not [line for line in lines if "autotune with cache" in line]
    assert not engine.own_files()
