# SPDX-License-Identifier: Apache-2.0
"""vLLM by Ray: its executor over two hosts, data-parallel engines that Ray places, their settings.

Starts are cold, warm and switched off, and each worker says of itself how it has started.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray_cluster import Cluster, hosts
from vllm_jobs import ENVIRONMENT, HERE, LIMIT_S
from vllm_on_ranks import LLAMA, MIXTRAL

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

#: The variable that names where workers leave what they have to say: `vllm_on_ray.SAID`.
SAID = "TEST_SAID_BY_WORKERS"
ARGUMENTS = {
    "skip_tokenizer_init": True, "load_format": "dummy", "enforce_eager": True, "max_model_len": 64,
    "max_num_seqs": 8, "max_num_batched_tokens": 64, "disable_log_stats": True,
    "enable_prefix_caching": False, "kernel_config": {"enable_flashinfer_autotune": True},
}  # fmt: skip
TP2 = {"tensor_parallel_size": 2, "distributed_executor_backend": "ray"}
#: Two experts' ranks, each an engine that Ray places: they tune as one job, as vLLM's ranks do.
DP2 = {"data_parallel_size": 2, "data_parallel_backend": "ray"}


class OnRay:
    """An engine on a cluster."""

    def __init__(self, cluster: Cluster, job: Any, layout: dict[str, Any]) -> None:
        self.cluster, self.root, self.log = cluster, job.root, job.root / "log.txt"
        self._said = job.root / "said"
        self._arguments = {**ARGUMENTS, "model": str(job.model), **layout}

    def start(self, **env: str) -> list[dict[str, Any]]:
        """Start it; return what the workers say."""
        for path in self._said.iterdir():
            path.unlink()
        command = [sys.executable, str(HERE / "vllm_on_ray.py"), json.dumps(self._arguments)]
        env |= {
            "RAY_ADDRESS": self.cluster.address, "VLLM_LOGGING_LEVEL": "INFO",
            "VLLM_CACHE_ROOT": str(self.root),
        }  # fmt: skip
        code = self.cluster.run(0, command, self.log, LIMIT_S, **env)
        assert code == 0, self.log.read_text(errors="replace")[-6000:]
        return [json.loads(path.read_text()) for path in sorted(self._said.iterdir())]


@pytest.fixture
def on_ray(job: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., OnRay]]:
    made: list[Cluster] = []

    def make(config: dict[str, Any], layout: dict[str, Any], number: int) -> OnRay:
        engine = job(config=config)
        said = engine.root / "said"
        said.mkdir()
        env = {name: text for name, text in ENVIRONMENT.items() if name != "VLLM_HOST_IP"}
        path = f"{HERE}:{HERE.parent}"
        env |= {"GLOO_SOCKET_IFNAME": "fab0", "PYTHONPATH": path, SAID: str(said)}
        try:
            cluster = Cluster(tmp_path, number, 2 // number, env)
        except hosts.NotAllowedError as error:
            pytest.skip(f"network namespaces are not allowed here: {error}")
        made.append(cluster)
        return OnRay(cluster, engine, layout)

    yield make
    for cluster in made:
        cluster.close()


@pytest.mark.parametrize("mode", ["on", "off"])
def test_settings_are_handed_on(job: Callable[..., Any], mode: str) -> None:
    """To the engine cores that vLLM makes by Ray, beside those that the user names."""
    own = {"WARMUP_PLUGIN_MODE": mode, "FLASHINFER_TEST": "1", "MY_TEST": "1", "OTHER_TEST": "1"}
    env = {**own, "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY": "MY_"}
    (found,) = job().start(script="handed_on", env=env).ranks

    assert own.keys() - found["copied"] == {"OTHER_TEST"}
    assert found["same key"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("config", "layout", "number"),
    [
        pytest.param(LLAMA, TP2, 2, id="TP2 over two hosts"),
        pytest.param(MIXTRAL, DP2 | {"data_parallel_size_local": 2}, 1, id="DP2 on one host"),
        pytest.param(MIXTRAL, DP2 | {"data_parallel_size_local": 1}, 2, id="DP2 over two hosts"),
    ],
)
def test_cold_warm_and_off(
    on_ray: Callable[..., OnRay], config: dict[str, Any], layout: dict[str, Any], number: int
) -> None:
    """On every worker. An engine core that Ray places has the driver's directory."""
    engine = on_ray(config, layout, number)

    cold, warm = engine.start(), engine.start()
    off = engine.start(WARMUP_PLUGIN_MODE="off")

    for said in (cold, warm):
        assert [worker["is_patched"] for worker in said] == [True, True]
        assert len({worker["host"] for worker in said}) == number
        assert {worker["report"]["agreement"] for worker in said} == {"certified"}
        assert {worker["report"]["world_size"] for worker in said} == {2}
        assert said[0]["served"] == said[1]["served"]
    assert sum(worker["report"]["tactics_timed"] for worker in cold) > 0
    assert [worker["report"]["tactics_timed"] for worker in warm] == [0, 0]
    assert [worker["mode"] for worker in off] == ["off", "off"]
    assert [worker["is_patched"] for worker in off] == [False, False]
    is_drivers = "data_parallel_backend" in layout
    for root in [engine.root] if is_drivers else [host.root for host in engine.cluster.hosts.hosts]:
        assert list(root.glob("flashinfer_autotune/*/*/*/rank_*[0-9].json")), root
