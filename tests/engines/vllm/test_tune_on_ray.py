# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin tune --ray` on a cluster of two hosts: the real vLLM, and a runner of one's own.

What it leaves makes a start elsewhere warm that may not time anything. Ray has the retries, and no
process of a command outlives it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_cluster import Cluster, hosts
from vllm_jobs import ENVIRONMENT, HERE, Job, launch

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

TUNE = [sys.executable, "-m", "warmup_plugin", "tune", "--ray"]
EXAMPLE = HERE.parents[2] / "examples" / "runner_on_ranks.py"
LIMIT_S = 300.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two hosts of two made-up GPUs each."""
    folder = tmp_path_factory.mktemp("cluster")
    env = {name: text for name, text in ENVIRONMENT.items() if name != "VLLM_HOST_IP"}
    env["PYTHONPATH"] = f"{HERE}:{HERE.parent}"
    try:
        found = Cluster(folder, 2, 2, env | {"GLOO_SOCKET_IFNAME": "fab0"})
    except hosts.NotAllowedError as error:
        pytest.skip(f"network namespaces are not allowed here: {error}")
    yield found
    found.close()


@pytest.fixture
def tune(cluster: Cluster, tmp_path: Path) -> Callable[..., tuple[int, str]]:
    """Run `tune --ray` on the first host; return its exit status and what it has said."""

    def run(*words: object, **env: str) -> tuple[int, str]:
        log = tmp_path / "tune.txt"
        command = [*TUNE, cluster.address, *map(str, words)]
        code = cluster.run(0, command, log, LIMIT_S, **env)
        return code, log.read_text(errors="replace")

    return run


def test_a_runner_over_two_nodes(
    tune: Callable[..., tuple[int, str]], cluster: Cluster, tmp_path: Path
) -> None:
    """One rank on each; then two on this machine, which have the tables and may not tune."""
    packed, elsewhere = tmp_path / "tables.tar", tmp_path / "elsewhere"
    words = ["-o", packed, "--ranks", 2, "--place", "spread", "--"]
    words += ["sh", "-c", f"uname -n > {tmp_path}/host$RANK; exec python {EXAMPLE}"]
    root = str(tmp_path / "root")
    code, said = tune(*words, WARMUP_PLUGIN_CACHE_ROOT=root)

    assert code == 0, said
    assert str(packed) in said
    ran_on = {(tmp_path / f"host{rank}").read_text().strip() for rank in (0, 1)}
    assert ran_on == {host.name for host in cluster.hosts.hosts}
    unpack = [sys.executable, "-m", "warmup_plugin", "unpack", packed, "--root", elsewhere]
    subprocess.run([str(word) for word in unpack], check=True, timeout=60)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {"WARMUP_PLUGIN_CACHE_ROOT": str(elsewhere), "WARMUP_PLUGIN_MODE": "require-complete"}
    env = {**os.environ, **ENVIRONMENT, **env}
    done = subprocess.run(
        [sys.executable, *torchrun, str(EXAMPLE)], env=env, check=True, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert "3 of 3 tasks from cache" in done.stdout
    assert "0 tactics timed" in done.stdout


@pytest.mark.soak
def test_vllm_ahead_of_a_rollout(
    tune: Callable[..., tuple[int, str]], cluster: Cluster, job: Callable[..., Job], tmp_path: Path
) -> None:
    """TP2 on one node of the cluster; then on this machine, in `require-complete`."""
    engine, packed = job(), tmp_path / "tables.tar"
    arguments = {
        "model": str(engine.model), "tensor_parallel_size": 2, "skip_tokenizer_init": True,
        "load_format": "dummy", "enforce_eager": True, "max_model_len": 64, "max_num_seqs": 8,
        "max_num_batched_tokens": 64, "distributed_executor_backend": "mp",
        "disable_log_stats": True, "enable_prefix_caching": False,
        "kernel_config": {"enable_flashinfer_autotune": True},
    }  # fmt: skip
    script = [HERE / "vllm_worker.py", json.dumps(arguments), tmp_path / "out.json"]
    for host in cluster.hosts.hosts:
        shutil.copytree(engine.root / "modelinfos", host.root / "modelinfos")
    spawn = ["env", "VLLM_WORKER_MULTIPROC_METHOD=spawn"]
    code, said = tune("-o", packed, "--gpus", 2, "--", *spawn, "python", *script)

    assert code == 0, said
    subprocess.run(
        [sys.executable, "-m", "warmup_plugin", "unpack", str(packed), "--root", str(engine.root)],
        check=True, timeout=60,
    )  # fmt: skip
    start = launch(engine, WARMUP_PLUGIN_MODE="require-complete")
    assert start.code == 0, start.log[-4000:]
    assert [rank["report"]["tactics_timed"] for rank in start.ranks] == [0, 0]
    assert {rank["report"]["agreement"] for rank in start.ranks} == {"certified"}


FAILS_ONCE = """
import os, runpy, sys
from pathlib import Path
mark = Path(sys.argv[1])
if not mark.exists() and os.environ["RANK"] == "1":
    mark.touch()
    sys.exit(7)
runpy.run_path(sys.argv[2])
"""


@pytest.mark.parametrize(("retries", "code"), [(1, 0), (0, 1)])
def test_ray_tries_again(
    tune: Callable[..., tuple[int, str]], tmp_path: Path, retries: int, code: int
) -> None:
    """All ranks, where one has failed; so often as is said."""
    packed = tmp_path / "tables.tar"
    script = ["python", "-c", FAILS_ONCE, tmp_path / "mark", EXAMPLE]
    words = ["-o", packed, "--ranks", 2, "--retries", retries, "--", *script]
    found, said = tune(*words, WARMUP_PLUGIN_CACHE_ROOT=str(tmp_path / "root"))

    assert found == code, said
    assert packed.exists() == (code == 0)
    assert code == 0 or "warmup-plugin: rank 1 ended with status 7" in said


def test_there_is_no_room(tune: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    """Said in time, with what Ray says of it; a node has two GPUs."""
    code, said = tune("-o", tmp_path / "t.tar", "--gpus", 3, "--wait", 3, "--", "true")

    assert code == 1
    assert "Ray has no room for 1 x {'CPU': 1.0, 'GPU': 3.0}" in said
