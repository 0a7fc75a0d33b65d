# SPDX-License-Identifier: Apache-2.0
"""What runs in the place of vLLM's `flashinfer_autotune`: the nine steps, around it.

Owns how vLLM's function becomes the survey's forward and what its ranks are called here. Whether
the nine steps run or vLLM's own function does, untouched, all ranks of its world decide together,
and `engines/attempt.py` says what a failure leads to. A forward that fails, a rank that is lost
leave as exceptions on every rank, upon which vLLM ends the launch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import sys
from dataclasses import replace
from types import FunctionType
from typing import TYPE_CHECKING, Any

from warmup_plugin.engines import gate
from warmup_plugin.engines.vllm import compat
from warmup_plugin.observability.exposition import left_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from warmup_plugin.observability.report import WarmupReport
    from warmup_plugin.settings import Settings
    from warmup_plugin.topology import RankInfo

logger = logging.getLogger("warmup_plugin")

#: The receipt of this process's last warm-up; None before, and where vLLM's own has run.
last_report: WarmupReport | None = None
_sessions = itertools.count()


def enter(module: Any) -> None:
    """Put our function in the place of vLLM's, unless this package may not act here."""
    gate.log_through("vllm")
    own = getattr(module, compat.FUNCTION, None)
    if hasattr(own, "warmup_plugin"):
        return
    settings = gate.usable_settings("vLLM", compat.version(), compat.TESTED, compat.missing(module))
    if settings is not None:
        setattr(module, compat.FUNCTION, _in_place_of(own, settings))


def watch_loading(module: Any) -> None:
    """Have the fleet's process begun when vLLM's worker begins to load its model.

    Only where we are in, so that a warm-up of ours follows, and where the worker is as it was.
    """
    worker: Any = getattr(module, "Worker", None)
    own = getattr(worker, compat.LOADING, None)
    warmup = sys.modules.get("vllm.model_executor.warmup.kernel_warmup")
    is_in = hasattr(getattr(warmup, compat.FUNCTION, None), "warmup_plugin")
    if own is None or not is_in or hasattr(own, "warmup_plugin"):
        return

    @functools.wraps(own)
    def load_model(*args: Any, **kwargs: Any) -> Any:
        gate.begin_with_loading(
            lambda: int(compat.world().rank_in_group), lambda settings: _about(settings, args[0])
        )
        return own(*args, **kwargs)

    vars(load_model)["warmup_plugin"] = own
    setattr(worker, compat.LOADING, load_model)


def _about(settings: Settings, worker: Any) -> dict[str, Any]:
    """Return whose tables a worker's warm-up will ask for, as far as it is known before loading."""
    from warmup_plugin.engines.vllm.identity import identity_of

    return {"identity": identity_of(worker.vllm_config), **_roots(settings)}


def _in_place_of(own: Any, settings: Settings) -> Callable[..., None]:
    @functools.wraps(own)
    def flashinfer_autotune(runner: Any, *, skip_attn: bool = False) -> None:
        _warm_up(own, settings, runner, skip_attn=skip_attn)

    vars(flashinfer_autotune)["warmup_plugin"] = own
    return flashinfer_autotune


def _warm_up(own: FunctionType, settings: Settings, runner: Any, *, skip_attn: bool) -> None:
    """Warm up by the nine steps, or as without this package: the same on every rank."""
    global last_report  # noqa: PLW0603  # the receipt is of the process, as the tuner is
    last_report = None
    world = compat.world()
    if compat.is_elastic(runner):
        logger.warning("warmup-plugin: vLLM warms up as without this package: elastic experts")
        left_alone(("vllm", compat.version()), settings)
        own(runner, skip_attn=skip_attn)
        return
    from warmup_plugin.engines import attempt
    from warmup_plugin.kernel_warmup import warm_up

    pass_ = _Pass(own, runner, skip_attn=skip_attn)
    failure: Exception | str
    try:
        group = world.cpu_group if world.world_size > 1 else None
        given, failure = attempt.Attempt(
            attempt.Scope(world.rank_in_group, world.world_size, group)
        ).prepared(
            lambda: _given(settings, runner, world), settings, str(next(_sessions)),
            lambda: _roots(settings),
        )  # fmt: skip
        if not failure:
            last_report = warm_up(pass_, tuning_context=contextlib.nullcontext, **given)
    except Exception as error:  # noqa: BLE001  # raised again where it is not ours
        failure = error
    if failure:
        attempt.follow(failure, settings, "vLLM")
        own(runner, skip_attn=skip_attn)
        return
    if not pass_.has_begun:  # on_hit=skip: the table is complete, the dummy runs are left out
        pass_(is_hit=True)


class _Pass:
    """vLLM's own function as the survey's forward."""

    def __init__(self, own: FunctionType, runner: Any, *, skip_attn: bool) -> None:
        self._own, self._runner, self._skip_attn = own, runner, skip_attn
        self.has_begun = False

    def __call__(self, *, is_hit: bool = False) -> None:
        self.has_begun = True
        compat.as_survey(self._own, is_hit=is_hit)(self._runner, skip_attn=self._skip_attn)


def _given(settings: Settings, runner: Any, world: Any) -> dict[str, Any]:
    """Return the arguments of `warm_up`."""
    from warmup_plugin.engines.vllm.engine_tables import own_tables
    from warmup_plugin.engines.vllm.identity import identity_of

    if compat.has_symmetric_memory():
        settings = replace(settings, require_agreement=True)
    return {
        "identity": identity_of(runner.vllm_config),
        "ranks": _ranks(runner, world),
        "settings": settings,
        **_roots(settings),
        "engine": ("vllm", compat.version()),
        "extra_tables": own_tables(runner),
    }


def _roots(settings: Settings) -> dict[str, Path | None]:
    found = gate.engine_root(compat.ROOT_VARIABLE, compat.cache_root, settings)
    return {"engine_cache_root": found}


def _ranks(runner: Any, world: Any) -> RankInfo:
    from warmup_plugin.topology import RankInfo

    parallel = runner.vllm_config.parallel_config
    place = compat.coordinates()
    # Replicas that never meet are engines of their own: each is data-parallel rank 0 of one.
    dp_size = max(1, world.world_size // (place["tp_size"] * place["pp_size"]))
    return RankInfo(
        rank=world.rank_in_group, world_size=world.world_size, local_rank=world.local_rank,
        dp_rank=parallel.data_parallel_rank if dp_size > 1 else 0, dp_size=dp_size,
        device_index=getattr(getattr(runner, "device", None), "index", None) or 0,
        **place,
    )  # fmt: skip
