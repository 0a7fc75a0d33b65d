# SPDX-License-Identifier: Apache-2.0
"""SGLang's private names: every one that this package uses, and nowhere else.

Owns what of SGLang's `flashinfer_autotune_context` is replaced while it runs as the survey's: where
results are kept (``flashinfer_autotune_cache_path``), the vote on files
(``_drop_diverged_autotune_cache``), the switch for reuse. All else that it does stays SGLang's: the
stream, the skip list, the v2 context in which the default races, `autotune_dummy_run_mode`,
MegaMoE's context, FlashInfer's process group for what is passed through. No module of SGLang is
touched but through its `HookRegistry`: the function runs over a copy of its globals.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from warmup_plugin.engines.function_copies import Unmade, over
from warmup_plugin.engines.versions import taken_for

#: The tested releases, the newest first; in which of them FlashInfer's default races (`_RACE`).
RACES_DEFAULT = {
    "0.5.23": True, "0.5.22": False, "0.5.21": False, "0.5.20": False, "0.5.19": False,
}  # fmt: skip
TESTED = tuple(RACES_DEFAULT)
ROOT_VARIABLE = "SGLANG_CACHE_DIR"
CONTEXT = "flashinfer_autotune_context"
FORWARD = "run_flashinfer_autotune_forward"
#: Of a runner: it knows its rank, and its warm-up follows.
LOADING = "ModelRunner.load_model"

_FILE = "flashinfer_autotune_cache_path"
_GATE = "_drop_diverged_autotune_cache"
_SKIP = "get_flashinfer_autotune_skip_ops"
_LOGGER = "logger"
_REUSE = "SGLANG_FLASHINFER_AUTOTUNE_CACHE"
#: A context of FlashInfer in which its default is timed, too.
_RACE = "autotune_v2"


def version() -> str:
    """Return SGLang's version."""
    from sglang.version import __version__ as found

    return str(found)


def missing(module: ModuleType) -> list[str]:
    """Return the names that are not where they were, of the context and those it uses.

    A tested release, and a build of one, must have the default race as it did when it was tested.
    """
    own = _generator(getattr(module, CONTEXT, None))
    if own is None:
        return [CONTEXT]
    absent = [name for name in (_FILE, _GATE, _SKIP, "envs") if name not in own.__code__.co_names]
    if _REUSE not in own.__code__.co_names:
        absent.append(_REUSE)
    races = RACES_DEFAULT.get(taken_for(version(), TESTED))
    if races is not None and races != (_RACE in own.__code__.co_names):
        absent.append(_RACE if races else f"context without {_RACE}")
    wanted = ("Path", _FILE, _SKIP, FORWARD)
    return absent + [name for name in wanted if not hasattr(module, name) and name not in absent]


def _generator(own: Any) -> FunctionType | None:
    """Return the generator function behind SGLang's own context, None for another context."""
    found = getattr(own, "__wrapped__", None)
    if not isinstance(found, FunctionType) or not inspect.isgeneratorfunction(found):
        return None
    return found if found.__name__ == CONTEXT else None


def is_own(context: Any) -> bool:
    """Return whether this is SGLang's own context and no other plugin's hook on it."""
    return _generator(context) is not None


def races_default(context: Any) -> bool:
    """Return whether FlashInfer's default is timed, too, in SGLang's own context."""
    own = _generator(context)
    return own is not None and _RACE in own.__code__.co_names


def hook(context: Any, forward: Any) -> None:
    """Register both hooks with SGLang."""
    from sglang.srt.plugins.hook_registry import HookType

    from warmup_plugin.engines.sglang import MODULE

    around = {f"{MODULE}.{CONTEXT}": context, f"{MODULE}.{FORWARD}": forward}
    _register(around, HookType.AROUND)


def hook_loading(before: Callable[..., None]) -> None:
    """Register with SGLang what runs before a model is loaded."""
    from sglang.srt.plugins.hook_registry import HookType

    from warmup_plugin.engines.sglang import RUNNER

    _register({f"{RUNNER}.{LOADING}": before}, HookType.BEFORE)


def _register(hooks: Mapping[str, Callable[..., Any]], kind: Any) -> None:
    """Register hooks, which SGLang applies with all plugins' together once each has run.

    Outside of that (a module imported later, a call by hand) they are applied at once.
    """
    from sglang.srt.plugins import hook_registry
    from sglang.srt.plugins.hook_registry import HookRegistry

    for name, function in hooks.items():
        HookRegistry.register(name, function, kind)
    loading = getattr(hook_registry, "_current_plugin_source", None)
    if loading is None or loading.get() is None:
        HookRegistry.apply_hooks()


class _Envs:
    """SGLang's switches, but that its files seem to be reused: it then clears nothing."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return _Always() if name == _REUSE else getattr(self._own, name)


class _Always:
    @staticmethod
    def get() -> bool:
        return True


def as_survey(own: Any) -> Callable[..., Any]:
    """Return SGLang's context with only its persistence taken out.

    It looks for its file where there can be none, and what it would save there is not: all that the
    tuner holds, written out once more at the end of each context.
    """
    from warmup_plugin.engines.log_filter import LogWithout
    from warmup_plugin.tuner import compat

    generator = _generator(own)
    assert generator is not None
    replaced = {
        _FILE: lambda _runner: compat.NOWHERE,
        _GATE: lambda *_args: None,
        "envs": _Envs(generator.__globals__["envs"]),
        _LOGGER: LogWithout(generator.__globals__.get(_LOGGER), compat.NOWHERE),
    }
    context = contextlib.contextmanager(over(generator, replaced))

    @contextlib.contextmanager
    def survey(*args: Any, **kwargs: Any) -> Iterator[None]:
        with compat.saving_all_but(compat.NOWHERE), context(*args, **kwargs):
            yield

    return survey


def rank_file(model_runner: Any) -> Path:
    """Return where SGLang itself keeps this rank's table; creates nothing."""
    module = _module()
    found = over(getattr(module, _FILE), {"Path": Unmade})(model_runner)
    return Path(str(found))


def _module() -> Any:
    import importlib

    from warmup_plugin.engines.sglang import MODULE

    return importlib.import_module(MODULE)


def skip_ops(model_runner: Any) -> list[str]:
    """Return the ops that the operator takes out of tuning."""
    return sorted(getattr(_module(), _SKIP)(model_runner))


def cache_root() -> Path:
    """Return SGLANG_CACHE_DIR, absolute."""
    from sglang.srt.environ import envs

    return Path(envs.SGLANG_CACHE_DIR.get()).expanduser().absolute()


def default_root(environ: Mapping[str, str]) -> Path:
    """Return the cache root without its variable, for callers that may not import SGLang."""
    return Path(environ.get("HOME") or Path.home(), ".cache", "sglang")


def reuses() -> bool:
    """Return whether what is tuned may be taken from files, and kept in them."""
    from sglang.srt.environ import envs

    return bool(getattr(envs, _REUSE).get())


def parallel() -> Any:
    """Return SGLang's ranks, sizes and groups."""
    from sglang.srt.runtime_context import get_parallel

    return get_parallel()


def world() -> Any:
    """Return the group of all pipeline stages, None where this rank's stage is all there is."""
    if of_parallel("pp_size", 1) == 1:
        return None
    try:
        found = parallel().world_group
    except (AttributeError, RuntimeError, ValueError):
        return None
    return found if found.world_size > parallel().tp_group.world_size else None


def namespaces() -> Any:
    """Return SGLang's settings as it has resolved them, by namespace."""
    from types import SimpleNamespace

    from sglang.srt import runtime_context as context

    return SimpleNamespace(
        model=context.get_model(), exec=context.get_exec(), schedule=context.get_schedule(),
        spec=context.get_spec(), lora=context.get_lora(), parallel=context.get_parallel(),
        disagg=context.get_disagg(),
    )  # fmt: skip


def of_parallel(name: str, default: int) -> int:
    """Return a rank or size; the default where SGLang has not set it, which it answers by error."""
    try:
        found = getattr(parallel(), name)
    except (AssertionError, AttributeError, RuntimeError, ValueError):
        return default
    return default if found is None else int(found)


def has_symmetric_memory() -> bool:
    """Return whether ranks that choose differently would deadlock (NCCL symmetric memory)."""
    return bool(namespaces().exec.comm.enable_symm_mem)


def is_elastic() -> bool:
    """Return whether ranks come and go: a joiner's start is not the others'."""
    return namespaces().exec.moe.elastic_ep_backend is not None


def megamoe_namespace() -> str:
    """Return under which name FlashInfer keeps MegaMoE's records for SGLang."""
    from sglang.srt.layers.moe import flashinfer_megamoe_autotune as module

    return str(module._CACHE_NAMESPACE)  # noqa: SLF001  # one of the private names


def uses_megamoe(model_runner: Any) -> bool:
    """Return whether MegaMoE tunes itself inside the context, and keeps records in the file."""
    backend = namespaces().exec.moe.moe_runner_backend
    return backend == "flashinfer_megamoe" and not model_runner.is_draft_worker
