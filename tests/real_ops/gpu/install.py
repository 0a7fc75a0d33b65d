# SPDX-License-Identifier: Apache-2.0
"""A GPU that is not there: what FlashInfer's op code has to believe in to reach ``choose_one``.

`install(capability)` replaces, for the life of the process, what the files beside this one say, and
nothing else; each says what it assumes and what it hence does not show:

    S1 clock.py         what a kernel costs
    S2 device.py        what torch.cuda says of the device
    S3 tensors.py       tensors on the device
    S4 modules.py       FlashInfer's compiled modules
    S5 cudnn_graphs.py  cuDNN's graphs
    S6 dsl.py           the CuTe DSL's compiler
    scale, below        sizes that make a profile slow here and change no choice

Never replaced: AutoTuner and its methods, runner classes, tuning configurations, buckets, hooks,
initialisers, ``get_valid_tactics``, ``get_cache_key_extras``, ``validate_tactic``, the ops' front
ends and support checks; and of the plugin nothing at all.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

#: Before FlashInfer is imported. The last: its own switch for no pool of compiling processes.
ENVIRONMENT = {
    "FLASHINFER_AUTOTUNE_TIMER": "cuda_event",
    "TQDM_DISABLE": "1",
    "FLASHINFER_LOGGING_LEVEL": "error",
    "FLASHINFER_MM_FP4_CUTE_DSL_COMPILE_WORKERS": "0",
}


def install(capability: tuple[int, int], name: str = "no GPU", processors: int = 148) -> None:
    """Put the GPU in place, for this process."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    os.environ.setdefault("FLASHINFER_WORKSPACE_BASE", tempfile.mkdtemp(prefix="real-ops-"))
    from tests.real_ops.gpu import cudnn_graphs, device, dsl, modules, tensors

    device.install(capability, name, processors)
    on_host: Any = tensors.OnHost()
    on_host.__enter__()
    cudnn_graphs.install()
    from flashinfer.jit import cpp_ext
    from packaging.version import Version

    modules.replace_everywhere(cpp_ext.get_cuda_version, lambda: Version(device.CUDA_VERSION))
    modules.stub_generators()
    dsl.install()
    _scale()


def _scale() -> None:
    """Make small what is filled anew for each profile: 40 MiB and 8192 requests in earnest."""
    from flashinfer.autotuner import AutoTuner
    from flashinfer.gemm import gemm_base
    from flashinfer.mla import _core

    base: Any = gemm_base
    base.DEFAULT_WORKSPACE_SIZE = 64 * 1024
    mla: Any = _core
    mla._TRTLLM_GEN_MLA_MAX_BATCH = 512
    tuner = AutoTuner.get()
    tuner.warmup, tuner.repeat = 0, 1  # a simulated clock needs no repetition
