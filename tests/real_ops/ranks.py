# SPDX-License-Identifier: Apache-2.0
"""Cases on two ranks, with times that differ between them: cold and warm.

Owns the two processes and their gloo group. What each measures is different by design, so that
ranks that chose apart would disagree.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.real_ops.cases import gemms, moes, others
from tests.real_ops.cases.case import Make
from tests.real_ops.compare import Outcome, count
from tests.real_ops.gpu import clock, device
from tests.real_ops.inside import entries, in_child, ours, served
from warmup_plugin import RankInfo

SIZE = 2

#: Name -> (what rank r builds, the batches that rank r calls it at, served batches).
CASES: dict[str, tuple[Callable[[int], Make], Callable[[int], tuple[int, ...]]]] = {
    "cutlass_fused_moe tp2": (
        lambda r: moes.cutlass(ranks={"tp_size": 2, "tp_rank": r}), lambda _: (8192,),
    ),
    "cutlass_fused_moe ep2": (
        lambda r: moes.cutlass(ranks={"ep_size": 2, "ep_rank": r}), lambda _: (8192,),
    ),
    "trtllm fp4 routed moe ep2": (
        lambda r: moes.trtllm("trtllm_fp4_block_scale_routed_moe", "packed", ep=(2, r)),
        lambda _: (8192,),
    ),
    "cute_dsl_fused_moe ep2": (lambda r: others.cute_moe(ep=(2, r)), lambda _: (512,)),
    "mm_fp4 trtllm": (lambda _: gemms.fp4("trtllm"), lambda _: (8192,)),
    "bmm_fp8 auto": (lambda _: gemms.bmm_fp8("auto"), lambda _: (8192,)),
    "mm_mxfp8 cute-dsl, ranks of other batches": (
        lambda _: gemms.mxfp8("cute-dsl"), lambda r: (512,) if r == 0 else (8,),
    ),
    "mm_bf16 cute-dsl": (lambda _: gemms.bf16("cute-dsl", pdl=True), lambda _: (512, 16)),
    "mm_mxfp8 low latency": (lambda _: gemms.mxfp8("cutedsl_low_latency"), lambda _: (8,)),
}  # fmt: skip
SERVED = (1, 7, 8)


def starts(name: str, margin: float) -> list[list[dict[str, Any]]]:
    """Start both ranks cold, then warm; return what each came to, by start and rank."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        return [_start(name, margin, root, Path(folder, f"meet{n}")) for n in range(2)]


def _start(name: str, margin: float, root: Path, meet: Path) -> list[dict[str, Any]]:
    """Run rank 1 in a child of this process, rank 0 in another, at the same time."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        found = in_child(lambda: _rank(name, 1, margin, root, meet))
        with os.fdopen(writer, "w") as file:
            json.dump(found, file)
        os._exit(0)
    os.close(writer)
    first = in_child(lambda: _rank(name, 0, margin, root, meet))
    with os.fdopen(reader) as file:
        second = json.load(file)
    os.waitpid(pid, 0)
    return [first, second]


def _rank(name: str, rank: int, margin: float, root: Path, meet: Path) -> dict[str, Any]:
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=SIZE)
    clock.Noise.where = f"on rank {rank}"
    device.be_device(rank)
    outcome = Outcome()
    count(outcome)
    make, sizes = CASES[name]
    step = make(rank)()

    def forward() -> None:
        for size in sizes(rank):
            step(size)
            dist.all_reduce(torch.zeros(1))

    ranks = RankInfo(
        rank=rank, world_size=SIZE, local_rank=rank, tp_rank=rank, tp_size=SIZE, ep_rank=rank,
        ep_size=SIZE, device_index=rank, expert_offset=rank * moes.EXPERTS // SIZE,
    )  # fmt: skip
    report = ours(forward, root, margin, ranks=ranks, group=dist.group.WORLD)
    outcome.report = report.to_json()
    done = outcome.timed, outcome.synthesised
    outcome.entries, outcome.served = entries(), served(step, SERVED)
    outcome.timed, outcome.synthesised = done
    outcome.profiled = {}
    dist.barrier()
    return asdict(outcome)
