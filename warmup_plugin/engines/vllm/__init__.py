# SPDX-License-Identifier: Apache-2.0
"""vLLM's entry point: `register`, called by vLLM in every process it starts.

    register()            leaves a finder behind; costs nothing where nothing warms up
    compat.py             every private name of vLLM that this package uses, probed
    hook.py               what runs in place of vLLM's `flashinfer_autotune`, around it
    identity.py           the identity of a `VllmConfig`
    engine_tables.py      where vLLM's own tables lie

Also has vLLM hand our settings on to the engine cores that it makes by Ray, `off` included.
Owns the two official ways in: the plugin group `vllm.general_plugins`, and `WorkerExtension` for
``--worker-extension-cls``. Never raises: an exception here would end the launch.
"""

from __future__ import annotations

import logging
import os

__all__ = ["WorkerExtension", "register"]


def register() -> None:
    """Patch vLLM's warm-up when vLLM imports it, unless ``WARMUP_PLUGIN_MODE`` is off.

    In every mode this process's settings go along to the engine cores that it makes by Ray.
    """
    try:
        from warmup_plugin.engines.gate import after_import

        after_import("vllm.ray.ray_env", _hand_settings_on)
        if os.environ.get("WARMUP_PLUGIN_MODE") != "off":
            after_import("vllm.model_executor.warmup.kernel_warmup", _enter)
            if os.environ.get("WARMUP_PLUGIN_FLEET"):
                after_import("vllm.v1.worker.gpu_worker", _watch_loading)
    except Exception:
        logging.getLogger("vllm").exception("warmup-plugin: vLLM is left alone")


def _hand_settings_on(module: object) -> None:
    """Add to the prefixes of variables that vLLM copies; runs when vLLM imports them."""
    from warmup_plugin.engines.vllm.compat import hand_settings_on

    hand_settings_on(module)


def _enter(module: object) -> None:
    """Put our function in the place of vLLM's; runs when vLLM imports its kernel warm-up."""
    from warmup_plugin.engines.vllm.hook import enter

    enter(module)


def _watch_loading(module: object) -> None:
    """Have the fleet's process begun with the model's loading; runs once vLLM has its worker."""
    from warmup_plugin.engines.vllm.hook import watch_loading

    watch_loading(module)


class WorkerExtension:
    """``--worker-extension-cls warmup_plugin.engines.vllm.WorkerExtension``: workers only."""

    def init_worker_extension(self) -> None:
        """Register in this worker, where the plugin group is not loaded (``VLLM_PLUGINS``)."""
        register()
