#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Serve a model with SGLang; the second start tunes nothing. Arguments: the model, then SGLang's own.
set -euo pipefail

# One folder for all that should outlive the process; tables lie in flashinfer_autotune/ below it.
export SGLANG_CACHE_DIR=${SGLANG_CACHE_DIR:-$HOME/.cache/sglang}

exec sglang serve --model-path "${1:?usage: serve.sh MODEL [sglang serve options]}" "${@:2}"
