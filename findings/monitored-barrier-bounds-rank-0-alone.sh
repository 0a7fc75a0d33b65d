#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# torch 2.13.0: the time-out of `monitored_barrier` bounds rank 0; the others wait as long as the group's.
#
# `torch.distributed.monitored_barrier(timeout=...)` is there to name a rank that does not come, in a
# time of the caller's choice. That holds where another rank than 0 is late: rank 0 gives up after
# that time, names it, and the others hear of it at once. Where rank 0 itself is late, nobody counts
# the time: all others wait for the group's own time-out, half an hour unless an engine has chosen
# another, and are then told to look into the log of the rank that has not come.
#
# Seen on 2026-11-30 with torch 2.13.0 (CPU build), gloo, three ranks, a group with a time-out of
# eight seconds and a barrier with one of two; seconds are whole ones. Output:
#
#     rank 1 is late: rank 0 ends after 2 s, rank 2 after 2 s
#     rank 0 is late: rank 1 ends after 8 s, rank 2 after 8 s
#
# Exit status 0 while that is so, 1 once it changes.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check numpy==2.4.6 torch==2.13.0

cat >"$work/look.py" <<'PYTHON'
import multiprocessing
import sys
import time
from datetime import timedelta

import torch.distributed as dist

GROUP_S, BARRIER_S, LATE_S = 8, 2, 14


def rank(number, late, path, told):
    dist.init_process_group(
        "gloo", init_method=f"file://{path}", rank=number, world_size=3,
        timeout=timedelta(seconds=GROUP_S),
    )
    began = time.monotonic()
    if number != late:
        try:
            dist.monitored_barrier(timeout=timedelta(seconds=BARRIER_S))
        except RuntimeError:
            told.put((number, round(time.monotonic() - began)))
    time.sleep(LATE_S - (time.monotonic() - began))  # nobody hears of another's end


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    for late in (1, 0):
        told = context.Queue()
        path = f"{sys.argv[1]}/store{late}"
        ranks = [context.Process(target=rank, args=(n, late, path, told)) for n in range(3)]
        for process in ranks:
            process.start()
        (a, a_s), (b, b_s) = sorted(told.get(timeout=60) for _ in range(2))
        print(f"rank {late} is late: rank {a} ends after {a_s} s, rank {b} after {b_s} s")
        for process in ranks:
            process.join()
PYTHON
"$work/venv/bin/python" -W ignore "$work/look.py" "$work" 2>/dev/null | tee "$work/seen"

sed -n 's/^#     //p' "$0" | diff - "$work/seen" || {
    echo 'monitored_barrier no longer waits as it did' >&2
    exit 1
}
