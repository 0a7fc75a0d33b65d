# SPDX-License-Identifier: Apache-2.0
"""What moves the identity of a real SGLang configuration, and what does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from sglang_on_ranks import LLAMA

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

#: options of the job, server arguments, the factor that differs.
MOVED = [
    pytest.param({"tp": 2}, {}, "tp", id="tp"),
    pytest.param({"pp": 2}, {}, "pp", id="pp"),
    pytest.param({"tp": 2}, {"attn_dp_size": 2}, "dp", id="dp attention"),
    pytest.param({"tp": 2}, {"ep_size": 2}, "ep", id="ep"),
    pytest.param({}, {"moe_runner_backend": "triton"}, "backends", id="moe runner backend"),
    pytest.param({}, {"fp4_gemm_runner_backend": "flashinfer_cutlass"}, "backends", id="fp4 gemm"),
    pytest.param({}, {"fp8_gemm_runner_backend": "triton"}, "backends", id="fp8 gemm"),
    pytest.param(
        {"tp": 2}, {"moe_a2a_backend": "flashinfer", "attn_dp_size": 2}, "backends",
        id="all-to-all",
    ),
    pytest.param(
        {}, {"quantization": "fp8", "moe_runner_backend": "triton"}, "quantization",
        id="quantization",
    ),
    pytest.param({"tokens": 256}, {}, "extra", id="chunked prefill"),
    pytest.param({}, {"max_prefill_tokens": 8192}, "extra", id="prefill limit"),
    pytest.param({}, {"max_running_requests": 7}, "extra", id="batch limit"),
    pytest.param({}, {"kv_cache_dtype": "fp8_e4m3"}, "kv_cache_dtype", id="kv cache dtype"),
    pytest.param({}, {"revision": "v2"}, "extra", id="revision"),
    pytest.param(
        {}, {"flashinfer_autotune_skip_ops": ["fp4_gemm"]}, "skip_ops", id="skipped ops"
    ),
]  # fmt: skip
NOT_MOVED = [
    pytest.param({"port": 31777}, {}, id="port"),
    pytest.param({"nccl_port": 31778}, {}, id="nccl port"),
    pytest.param({"random_seed": 7}, {}, id="seed"),
    pytest.param({"served_model_name": "another"}, {}, id="served name"),
    pytest.param({"log_level": "error"}, {}, id="log level"),
    pytest.param({"mem_fraction_static": 0.5}, {}, id="memory"),
    pytest.param({"load_format": "dummy"}, {}, id="load format"),
    pytest.param({"dist_timeout": 77}, {}, id="timeout"),
    pytest.param({}, {"SGLANG_LOG_MS": "1"}, id="log format"),
]


def _identity(job: Any, env: dict[str, str] | None = None, **options: Any) -> tuple[str, Any]:
    """Ask the ranks; a layout of two has the same identity on each."""
    options = {"script": "identity", **options}
    found = job.start(limit_s=90.0, env=env, **options).ranks
    assert len({digest for digest, _ in found}) == 1
    digest, factors = found[0]
    return str(digest), factors


@pytest.fixture(scope="module")
def known() -> dict[int, Any]:
    """The identity that cases are held against, by number of ranks."""
    return {}


def _of_base(job: Any, known: dict[int, Any], tp: int = 1) -> Any:
    if tp not in known:
        known[tp] = _identity(job, tp=tp)
    return known[tp]


@pytest.mark.parametrize(("options", "extra", "factor"), MOVED)
def test_moved_by(
    job: Callable[..., Any],
    known: dict[int, Any],
    options: dict[str, Any],
    extra: dict[str, Any],
    factor: str,
) -> None:
    engine = job()
    digest, factors = _identity(engine, **options, extra=extra)
    other, before = _of_base(engine, known, options.get("tp", 1) if extra else 1)

    assert digest != other
    assert factors[factor] != before[factor]


@pytest.mark.parametrize(("extra", "env"), NOT_MOVED)
def test_not_moved_by(
    job: Callable[..., Any], known: dict[int, Any], extra: dict[str, Any], env: dict[str, str]
) -> None:
    engine = job()

    assert _identity(engine, env=env, extra=extra) == _of_base(engine, known)


def test_not_moved_by_the_path(job: Callable[..., Any], known: dict[int, Any]) -> None:
    engine = job()
    elsewhere = engine.model.with_name("the same model elsewhere")
    shutil.copytree(engine.model, elsewhere)

    assert _identity(engine, model=str(elsewhere)) == _of_base(engine, known)


def test_moved_by_the_models_config(job: Callable[..., Any], known: dict[int, Any]) -> None:
    engine = job(config={**LLAMA, "num_hidden_layers": 2})

    assert _identity(engine)[1]["model"] != known.get(1, ("", {"model": ""}))[1]["model"]


def test_moved_by_the_draft_model(job: Callable[..., Any]) -> None:
    engine = job(has_draft=True)

    one, other = _identity(engine), _identity(engine, draft_layers=2)

    assert one[1]["role"] == other[1]["role"] == "draft"
    assert one[1]["model"] != other[1]["model"]


def test_moved_by_cublas(job: Callable[..., Any]) -> None:
    engine = job(script="identity_elsewhere")

    one, other = (
        _identity(engine, script="identity_elsewhere", fault=fault) for fault in ("", "own_cublas")
    )

    assert one[0] != other[0]
    assert one[1]["stamp"] != other[1]["stamp"]
    assert {**one[1], "stamp": None} == {**other[1], "stamp": None}
