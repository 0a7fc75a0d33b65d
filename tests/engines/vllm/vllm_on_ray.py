# SPDX-License-Identifier: Apache-2.0
"""vLLM on a Ray cluster without GPUs: the script that makes an engine there, and its worker.

    python vllm_on_ray.py <json of the engine's arguments>

Owns what is read of a start: each worker, wherever it is, leaves a file below `SAID`. All between
the two, engine cores and workers as Ray's actors above all, is vLLM's own.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import vllm_worker

#: Variables of this test: where workers leave what they have to say.
SAID = "TEST_SAID_BY_WORKERS"


class Worker(vllm_worker.Worker):
    def compile_or_warm_up_model(self) -> Any:
        times = super().compile_or_warm_up_model()
        dp_rank = self.vllm_config.parallel_config.data_parallel_index
        said = {
            "host": socket.gethostname(), "mode": os.environ.get("WARMUP_PLUGIN_MODE"),
            "timer": os.environ.get("FLASHINFER_AUTOTUNE_TIMER"), **self.receipt(),
        }  # fmt: skip
        path = Path(os.environ[SAID], f"{dp_rank}-{self.rank}.json")
        path.write_text(json.dumps(said))
        return times


async def start(arguments: dict[str, Any]) -> None:
    """Make an engine, and end it once it is there."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(worker_cls="vllm_on_ray.Worker", **arguments), start_engine_loop=False
    )
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(start(json.loads(sys.argv[1])))
