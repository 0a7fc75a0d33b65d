# SPDX-License-Identifier: Apache-2.0
"""What moves the identity of a real `VllmConfig`, and what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest
from vllm_on_ranks import LLAMA

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}

#: options of the job, of the engine's arguments, of the model's config; the factor that differs.
MOVED = [
    pytest.param({"tp": 2}, {}, {}, "tp", id="tp"),
    pytest.param({"pp": 2}, {}, {}, "pp", id="pp"),
    pytest.param({"tokens": 128}, {}, {}, "extra", id="max_num_batched_tokens"),
    pytest.param({}, {"dtype": "float16"}, {}, "dtype", id="dtype"),
    pytest.param({}, {}, {"quantization_config": FP8}, "quantization", id="quantization"),
    pytest.param({}, {}, {"num_hidden_layers": 2}, "model", id="model config"),
    pytest.param({}, {"max_num_seqs": 4}, {}, "extra", id="max_num_seqs"),
    pytest.param({}, {"block_size": 64}, {}, "extra", id="block_size"),
    pytest.param({}, {"moe_backend": "triton"}, {}, "backends", id="moe backend"),
]
NOT_MOVED = [
    pytest.param({"seed": 7}, {}, id="seed"),
    pytest.param({"served_model_name": "another"}, {}, id="served name"),
    pytest.param({"distributed_timeout_seconds": 77}, {}, id="timeout"),
    pytest.param({"cpu_distributed_timeout_seconds": 77}, {}, id="cpu timeout"),
    pytest.param({"master_port": 29777}, {}, id="port"),
    pytest.param({"gpu_memory_utilization": 0.5}, {}, id="memory"),
    pytest.param({"load_format": "auto"}, {}, id="load format"),
    pytest.param({}, {"VLLM_LOGGING_LEVEL": "ERROR"}, id="log level"),
]


@pytest.fixture(scope="module")
def base() -> list[Any]:
    """The identity that all cases are held against; filled by the first that needs it."""
    return []


def _identity(job: Any, env: dict[str, str] | None = None, **options: Any) -> tuple[str, Any]:
    """Ask one process; a layout of two ranks has the same identity on each."""
    found = job.start(script="identity", limit_s=90.0, env=env, **options).ranks
    assert len({digest for digest, _ in found}) == 1
    digest, factors = found[0]
    return str(digest), factors


def _of_base(job: Any, base: list[Any]) -> Any:
    if not base:
        base.append(_identity(job))
    return base[0]


@pytest.mark.parametrize(("options", "extra", "config", "factor"), MOVED)
def test_moved_by(  # noqa: PLR0917  # a table's columns
    job: Callable[..., Any],
    base: list[Any],
    options: dict[str, Any],
    extra: dict[str, Any],
    config: dict[str, Any],
    factor: str,
) -> None:
    engine = job(config={**LLAMA, **config})
    digest, factors = _identity(engine, **options, extra=extra)
    (engine.model / "config.json").write_text(json.dumps(LLAMA))
    other, before = _of_base(engine, base)

    assert digest != other
    assert factors[factor] != before[factor]


@pytest.mark.parametrize(("extra", "env"), NOT_MOVED)
def test_not_moved_by(
    job: Callable[..., Any], base: list[Any], extra: dict[str, Any], env: dict[str, str]
) -> None:
    engine = job()

    assert _identity(engine, env=env, extra=extra) == _of_base(engine, base)


def test_not_moved_by_the_path(job: Callable[..., Any], base: list[Any]) -> None:
    engine = job()
    elsewhere = engine.model.with_name("the same model elsewhere")
    shutil.copytree(engine.model, elsewhere)

    assert _identity(engine, model=str(elsewhere)) == _of_base(engine, base)
