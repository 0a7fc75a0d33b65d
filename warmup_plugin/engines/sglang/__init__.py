# SPDX-License-Identifier: Apache-2.0
"""SGLang's entry point: `register`, called by SGLang in every process it starts.

    register()            leaves a finder behind; costs nothing where nothing warms up
    compat.py             every private name of SGLang that this package uses, probed
    hook.py               what runs in place of SGLang's `flashinfer_autotune_context`, around it
    stages.py             over which ranks it is one session: all pipeline stages, or one
    identity.py           the identity of a model runner under SGLang's runtime context
    engine_tables.py      where SGLang's own tables lie
    megamoe.py            MegaMoE's records: each GPU's own, in SGLang's own file

Owns the official way in: the plugin group `sglang.srt.plugins` and SGLang's `HookRegistry`. The
function is also what to call by hand where SGLang loads no plugins (its Ray actors). Never raises.
"""

from __future__ import annotations

import logging
import os

__all__ = ["register"]

MODULE = "sglang.srt.model_executor.runner.flashinfer_autotune"
RUNNER = "sglang.srt.model_executor.model_runner"


def register() -> None:
    """Hook SGLang's warm-up when it is imported, unless ``WARMUP_PLUGIN_MODE`` is off.

    In a scheduler that is now, before SGLang applies its plugins' hooks; in the tokenizer's and
    detokenizer's processes never, where importing it alone would take seconds.
    """
    if os.environ.get("WARMUP_PLUGIN_MODE") == "off":
        return
    try:
        from warmup_plugin.engines.gate import after_import

        after_import(MODULE, _enter)
        if os.environ.get("WARMUP_PLUGIN_FLEET"):
            after_import(RUNNER, _watch_loading)
    except Exception:
        logging.getLogger("sglang").exception("warmup-plugin: SGLang is left alone")


def _enter(module: object) -> None:
    """Register our hooks with SGLang; runs when it has imported its warm-up."""
    from warmup_plugin.engines.sglang.hook import enter

    enter(module)


def _watch_loading(_module: object) -> None:
    """Have the fleet's process begun with the model's loading; runs once SGLang has its runner."""
    from warmup_plugin.engines.sglang.hook import watch_loading

    watch_loading()
