#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# FlashInfer 0.7.2.post1: what one tactic without memory costs depends on whether a process group is set.
#
# `AutoTuner.choose_one` times four tactics of one op; the third finds no memory (`MemoryError`), the
# fourth would be the fastest. Without a tuning process group the whole call gives up: nothing is
# stored and the op serves its default tactic -1. With one, of a single rank even, that tactic alone
# is out and the fourth wins. So the same model on the same GPU comes to other kernels with one rank
# than with several, and a single-GPU job that fills its memory loses kernels that it has room for.
#
# Seen on 2026-11-29 with FlashInfer 0.7.2.post1 and torch 2.13.0, on a CPU: the GPU's clock is stood
# in for, and the runner takes the time that it says. Output:
#
#     without a group: serves -1, stored 0
#     with a group of one rank: serves 3, stored 1
#
# Exit status 0 while that is so, 1 once it changes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check"
$pip torch==2.13.0
$pip numpy==2.4.6 requests==2.34.2
$pip --no-deps flashinfer-python==0.7.2.post1 apache-tvm-ffi==0.1.11 click==8.5.1 einops==0.8.2 \
    ninja==1.13.2 nvidia-ml-py==13.615.71 packaging==26.3 tabulate==0.10.0 tqdm==4.70.1

cat >"$work/look.py" <<'PYTHON'
import contextlib
from types import SimpleNamespace

import torch
import torch.distributed as dist

now = 0.0


class Event:
    def __init__(self, *_args, **_kwargs):
        self.at = 0.0

    def record(self, *_args):
        self.at = now

    def elapsed_time(self, end):
        return end.at - self.at

    def synchronize(self):
        pass


class Stream:
    cuda_stream, device = 0, torch.device("cpu")

    def synchronize(self):
        pass

    wait_stream = wait_event = lambda self, _other: None


stream = Stream()
for name, stand_in in {
    "CUDAGraph": object,
    "Event": Event,
    "current_stream": lambda *_: stream,
    "stream": contextlib.nullcontext,
    "synchronize": lambda *_: None,
    "empty_cache": lambda: None,
    "current_device": lambda: "cpu",
    "is_current_stream_capturing": lambda: False,
    "get_device_properties": lambda *_: SimpleNamespace(L2_cache_size=1 << 16),
}.items():
    setattr(torch.cuda, name, stand_in)

from flashinfer.autotuner import (  # noqa: E402
    AutoTuner,
    TunableRunner,
    TuningConfig,
    autotune,
    set_autotune_process_group,
)
from flashinfer.autotuner import autotuner  # noqa: E402

autotuner.delay_kernel = lambda _microseconds: None


class Gemm(TunableRunner):
    def get_valid_tactics(self, inputs, profile):
        return [0, 1, 2, 3]

    def forward(self, inputs, tactic=-1, do_preparation=False, **_options):
        global now
        if tactic == 2:
            raise MemoryError("this tactic's workspace does not fit")
        now += {-1: 9.0, 0: 3.0, 1: 2.0, 3: 1.0}[tactic]
        return inputs[0]


def tune(where):
    tuner = AutoTuner.get()
    tuner.clear_cache()
    call = ("demo::gemm", [Gemm()], TuningConfig(use_cuda_graph=False), [torch.zeros(4, 8), torch.zeros(8, 8)])
    with autotune(True):
        tuner.choose_one(*call)
    said = f"{where}: serves {tuner.choose_one(*call)[1]}, stored {len(tuner.profiling_cache)}"
    print(said)
    return said


alone = tune("without a group")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
set_autotune_process_group(dist.group.WORLD)
grouped = tune("with a group of one rank")
expected = ("without a group: serves -1, stored 0", "with a group of one rank: serves 3, stored 1")
raise SystemExit((alone, grouped) != expected)
PYTHON
cd "$work"
CUDA_VISIBLE_DEVICES='' FLASHINFER_AUTOTUNE_TIMER=cuda_event FLASHINFER_LOGGING_LEVEL=error "$work/venv/bin/python" look.py
