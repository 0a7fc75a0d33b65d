#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Serve a model with vLLM; the second start tunes nothing. Arguments: the model, then vLLM's own.
set -euo pipefail

# One folder for all that should outlive the process; tables lie in flashinfer_autotune/ below it.
export VLLM_CACHE_ROOT=${VLLM_CACHE_ROOT:-$HOME/.cache/vllm}

exec vllm serve "${1:?usage: serve.sh MODEL [vllm serve options]}" "${@:2}"
