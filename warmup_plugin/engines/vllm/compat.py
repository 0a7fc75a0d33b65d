# SPDX-License-Identifier: Apache-2.0
"""vLLM's private names: every one that this package uses, and nowhere else.

Owns what of vLLM's `flashinfer_autotune` is replaced while it runs as the survey: where results are
kept (``_load_shared_autotune_cache``, ``resolve_rank_flashinfer_autotune_file``) and FlashInfer's
persistent store (``use_flashinfer_autotune_v2``). All else that it does stays vLLM's: token counts,
buckets, skip lists, speculative and deferred passes, its extra warm-ups, its barrier. No module of
vLLM is touched: the function runs over a copy of its globals.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from warmup_plugin.engines.function_copies import over

TESTED = ("0.33.0",)
FUNCTION = "flashinfer_autotune"
ROOT_VARIABLE = "VLLM_CACHE_ROOT"

#: Of a worker: it knows its rank, and its warm-up follows.
LOADING = "load_model"

_LOAD = "_load_shared_autotune_cache"
_FILE = "resolve_rank_flashinfer_autotune_file"
_STORE = "use_flashinfer_autotune_v2"
_LOGGER = "logger"
_PREFIXES = "DEFAULT_ENV_VAR_PREFIXES"
#: Beginnings of the names of what decides how a rank warms up.
HANDED_ON = frozenset({"WARMUP_PLUGIN_", "FLASHINFER_"})


def version() -> str:
    """Return vLLM's version."""
    import vllm

    return str(vllm.__version__)


def missing(module: ModuleType) -> list[str]:
    """Return the names that `flashinfer_autotune` no longer uses, or itself if it is not there."""
    own = getattr(module, FUNCTION, None)
    if not isinstance(own, FunctionType):
        return [FUNCTION]
    used = own.__code__.co_names
    return [name for name in (_LOAD, _FILE, _STORE) if name not in used]


def hand_settings_on(module: Any) -> None:
    """Let vLLM copy our variables, and FlashInfer's, to the engine cores that it makes by Ray.

    Not by ``VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY``: that is part of the key under which vLLM
    keeps what it has compiled. A release that has no such set copies what the user names there.
    """
    prefixes = getattr(module, _PREFIXES, None)
    if isinstance(prefixes, set):
        prefixes |= HANDED_ON


def as_survey(own: FunctionType, *, is_hit: bool) -> Callable[..., None]:
    """Return vLLM's function with only its persistence taken out.

    With ``is_hit`` it believes that its files were loaded and leaves its dummy runs out; what it
    would save is not: it has no file.
    """
    from warmup_plugin.engines.log_filter import LogWithout
    from warmup_plugin.tuner import compat

    replaced: dict[str, Any] = {
        _LOAD: lambda *_args: is_hit,
        _FILE: lambda _runner: compat.NOWHERE,
        _STORE: lambda _runner: False,
        _LOGGER: LogWithout(own.__globals__.get(_LOGGER), compat.NOWHERE),
    }
    function = over(own, replaced)

    def survey(*args: Any, **kwargs: Any) -> None:
        with compat.saving_all_but(compat.NOWHERE):
            function(*args, **kwargs)

    return survey


def cache_root() -> Path:
    """Return VLLM_CACHE_ROOT, absolute."""
    from vllm import envs

    return Path(envs.VLLM_CACHE_ROOT).expanduser().absolute()


def default_root(environ: Mapping[str, str]) -> Path:
    """Return the cache root without its variable, for callers that may not import vLLM."""
    home = environ.get("HOME") or str(Path.home())
    return Path(environ.get("XDG_CACHE_HOME") or f"{home}/.cache", "vllm")


def skip_ops() -> list[str]:
    """Return the ops that the operator takes out of tuning."""
    from vllm import envs

    return sorted(envs.VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS or ())


def has_symmetric_memory() -> bool:
    """Return whether ranks that choose differently would deadlock (NCCL symmetric memory)."""
    from vllm import envs

    return bool(envs.VLLM_USE_NCCL_SYMM_MEM)


def world() -> Any:
    """Return the coordinator of all ranks, data-parallel ones included where they meet."""
    from vllm.distributed.parallel_state import get_world_group

    return get_world_group()


def coordinates() -> dict[str, Any]:
    """Return this rank's place among tensor, pipeline and expert peers, as `RankInfo` has it."""
    from vllm.distributed import parallel_state as state

    tp, pp, ep = state.get_tp_group(), state.get_pp_group(), getattr(state, "_EP", None)
    found = {
        "tp_rank": tp.rank_in_group, "tp_size": tp.world_size,
        "pp_rank": pp.rank_in_group, "pp_size": pp.world_size,
    }  # fmt: skip
    if ep is not None:
        found |= {"ep_rank": ep.rank_in_group, "ep_size": ep.world_size}
    return found


def is_elastic(runner: Any) -> bool:
    """Return whether ranks come and go: their groups then have no store in common."""
    return bool(runner.vllm_config.parallel_config.enable_elastic_ep)


def rank_file(runner: Any) -> Path:
    """Return where vLLM itself keeps this rank's table; creates nothing."""
    from vllm.model_executor.warmup import flashinfer_autotune_cache as cache

    folder = cache.flashinfer_autotune_root() / cache.flashinfer_autotune_cache_hash(runner)
    dp_rank = runner.vllm_config.parallel_config.data_parallel_rank
    return Path(folder, cache.flashinfer_autotune_filename(dp_rank, world().rank_in_group))


def managed_root() -> Path | None:
    """Return where vLLM has FlashInfer keep its managed store; None for FlashInfer's default."""
    from vllm.model_executor.warmup import flashinfer_autotune_cache as cache

    root = cache.resolve_flashinfer_autotune_v2_root()
    return None if root is None else Path(os.fspath(root))
