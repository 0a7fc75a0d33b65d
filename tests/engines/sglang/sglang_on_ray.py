# SPDX-License-Identifier: Apache-2.0
"""SGLang's schedulers as Ray's actors, on CPUs, up to serving: the script that starts them.

    python sglang_on_ray.py MODEL TP OUT [--without-plugins]

The actors are made by the function with which SGLang's Ray engine makes them, in a cluster of one
node with made-up GPUs. What a CPU needs besides is that of `sglang_scheduler.py`.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

#: What `docs/ray.md` has a driver give to Ray; SGLang's own function, to be called in any process.
SETUP = "sglang.srt.plugins.load_plugins"
_OUT, _SETUP = "TEST_SGLANG_ON_RAY_OUT", "TEST_SGLANG_ON_RAY_SETUP"
READY_S = 120.0


def set_up() -> None:
    """Set a worker of Ray's up: what a CPU needs, then what the documentation says."""
    import sglang_import  # noqa: F401  # makes its torchvision load
    from sglang_scheduler import stand_in_for_the_gpu

    stand_in_for_the_gpu(os.environ[_OUT])
    if name := os.environ[_SETUP]:
        module, _, function = name.rpartition(".")
        getattr(importlib.import_module(module), function)()
    else:
        from sglang.srt.plugins.hook_registry import HookRegistry

        HookRegistry.apply_hooks()  # the stand-in's alone


def main() -> None:
    """Start a cluster and the actors, wait until each is ready, and end them."""
    model, tp, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    import ray
    import sglang_import  # noqa: F401
    from ray.util.placement_group import placement_group
    from sglang.srt.ray.engine import _create_scheduler_actor
    from sglang.srt.server_args import PortArgs
    from sglang_scheduler import arguments

    server_args = arguments(model, tp)
    port_args = PortArgs.init_new(server_args)
    os.environ |= {
        _OUT: out, _SETUP: "" if "--without-plugins" in sys.argv else SETUP,
        "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray counts in it the GPUs that it is told of
    folder = tempfile.mkdtemp(prefix="wpray")  # short: sockets lie below it
    ray.init(
        num_cpus=2, num_gpus=tp, include_dashboard=False, object_store_memory=100_000_000,
        _temp_dir=folder, runtime_env={"worker_process_setup_hook": "sglang_on_ray.set_up"},
    )  # fmt: skip
    try:
        group = placement_group([{"CPU": 1, "GPU": tp}], strategy="STRICT_PACK")
        ray.get(group.ready(), timeout=READY_S)
        actors = [
            _create_scheduler_actor(
                group, 0, rank, server_args, port_args, tp_rank=rank, pp_rank=0, dp_rank=0,
                dist_init_addr=f"127.0.0.1:{port_args.nccl_port}", rank0_node_ip="127.0.0.1",
            )
            for rank in range(tp)
        ]  # fmt: skip
        told = ray.get([actor.get_info.remote() for actor in actors], timeout=READY_S)
        Path(out).write_text(json.dumps([info["status"] for info in told]))
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
