# SPDX-License-Identifier: Apache-2.0
"""The arguments of `kernel_warmup.warm_up` and `kernel_warmup.session`, and the rule of each.

Owns their types. A wrong argument is refused on the rank that passes it, before that rank waits for
another one: `RuleError` names argument, value and rule, and an unknown name is a `TypeError` with
the nearest known one. A rank of an initialised torch.distributed job that passes neither ``ranks``
nor ``group`` is refused (`SessionError`): alone it would certify what the other ranks do not serve.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import msgspec

from warmup_plugin.errors import RuleError, SessionError
from warmup_plugin.identity import Identity
from warmup_plugin.settings import Settings
from warmup_plugin.topology import RankInfo
from warmup_plugin.tuner import compat
from warmup_plugin.tuner.known_ops import KnownOps

if TYPE_CHECKING:
    import torch.distributed as dist  # noqa: TC004  # of a struct that is never decoded

    from warmup_plugin.coordination.kv_client import StoreLink  # noqa: TC004  # of a struct that is never decoded

#: Called as progress(step, task, tasks done, tasks in all) on the rank that works.
Progress = Callable[[str, str, int, int], None]
#: Makes the context in which the forward runs.
TuningContext = Callable[[], contextlib.AbstractContextManager[object]]
#: A path as text or as any object with ``__fspath__``.
AnyPath = str | os.PathLike[str]

#: The release that drops the former names of arguments.
DROPPED_IN = "0.2.0"
#: By former name of an argument: the name that it has now.
FORMER = {
    "root": "cache_root",
    "engine_root": "engine_cache_root",
    "others": "extra_tables",
    "keep_loaded": "keep_existing",
    "must_share": "require_sharing",
}
#: By function: the number of frames from `_renamed` to its caller. `contextlib` adds one.
_LEVELS = {"warm_up": 4, "session": 5}

_NOT_GIVEN = RankInfo()
_PAIR = 2


class EngineInfo(NamedTuple):
    """The name and the version under which an engine appears in manifests, receipts and figures.

    Attributes:
        name: the engine's name, not empty, such as ``"my-runner"``.
        version: the engine's version; two versions of one engine may use the same table.
    """

    name: str
    version: str


def plain_context() -> contextlib.AbstractContextManager[object]:
    """Return FlashInfer's plain tuning context."""
    context: contextlib.AbstractContextManager[object] = compat.tuning_context()
    return context


class FormerArguments(TypedDict, total=False):
    """Former names of arguments, which `DROPPED_IN` drops; `FORMER` has the names of today."""

    root: AnyPath | None
    engine_root: AnyPath | None
    others: Iterable[Path] | None
    keep_loaded: bool
    must_share: bool


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `kernel_warmup.warm_up`, which explains each of them."""

    identity: Identity
    ranks: RankInfo = _NOT_GIVEN
    group: dist.ProcessGroup | None = None
    settings: Settings = msgspec.field(default_factory=Settings.from_env)
    cache_root: Path | None = None
    engine_cache_root: Path | None = None
    extra_tables: Iterable[Path] = ()
    ops: KnownOps | None = None
    tuning_context: TuningContext = plain_context
    engine: tuple[str, str] = ("custom", "0")
    progress: Progress | None = None
    keep_existing: bool = False
    require_sharing: bool = False
    may_keep_step: bool = False
    link: StoreLink | None = None

    def __post_init__(self) -> None:
        """Hold every argument to its rule."""
        for name, (is_right, rule) in _RULES.items():
            value = getattr(self, name)
            if not is_right(value):
                raise RuleError(name, value, rule)
        for name in ("cache_root", "engine_cache_root"):
            if (path := getattr(self, name)) is not None:
                msgspec.structs.force_setattr(self, name, Path(path))
        if self.cache_root is not None and not self.cache_root.is_absolute():
            rule = "an absolute path: ranks of one job may start in different directories"
            raise RuleError("cache_root", str(self.cache_root), rule)

    @classmethod
    def of(cls, given: Mapping[str, object], *, function: str = "warm_up") -> Options:
        """Return the options that a call of ``function`` gives; None is as good as nothing.

        ``given``: the arguments by name. Its entry ``former``, where there is one, holds those that
        came under a former or an unknown name. Raises `TypeError` for an unknown or a doubled name.
        """
        found = dict(given)
        former = found.pop("former", None)
        if isinstance(former, Mapping):
            found |= _renamed(former, found, function)
        known: dict[str, Any] = {n: value for n, value in found.items() if value is not None}
        known.setdefault("identity", None)  # refused with the rule of an identity
        return cls(**known)

    @property
    def is_alone(self) -> bool:
        """Return whether this process warms up by itself."""
        return self.ranks.world_size == 1 and self.group is None

    def refuse_company(self) -> None:
        """Raise where ``ranks`` and ``group`` do not fit this process's part of torch.distributed.

        It is one of several ranks and got neither of them, or it is to meet others and has no
        group to meet them in.
        """
        size = _ranks_of_torch()
        if self.ranks is _NOT_GIVEN and self.group is None and size > 1:
            raise SessionError(
                f"torch.distributed has {size} ranks here, and warm_up got neither ranks= nor "
                f"group=: pass ranks=RankInfo(rank=..., world_size={size}, ...); RankInfo() says "
                "that this process warms up alone"
            )
        if self.ranks is _NOT_GIVEN and self.group is not None and self.group.size() > 1:
            raise SessionError(
                f"group= has {self.group.size()} ranks, and warm_up got no ranks=: pass "
                f"ranks=RankInfo(rank=..., world_size={self.group.size()}, ...)"
            )
        if self.ranks.world_size > 1 and self.group is None and self.link is None and not size:
            raise SessionError(
                f"ranks= says that there are {self.ranks.world_size} ranks, and torch.distributed "
                "is not initialised here: call torch.distributed.init_process_group first"
            )


def check_forward(forward: object) -> None:
    """Raise where ``forward`` is not a function that runs when it is called without arguments."""
    rule = "a function without arguments"
    if not callable(forward):
        is_short = isinstance(forward, (str, int, float, type(None)))
        raise RuleError("forward", forward if is_short else type(forward).__name__, rule)
    import inspect  # torch has it by now; to read the arguments takes it only here

    name = getattr(forward, "__qualname__", type(forward).__name__)
    for is_lazy in (
        inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction,
    ):  # fmt: skip
        if is_lazy(forward):
            raise RuleError(
                "forward", name, f"{rule} that runs when called, not a coroutine or a generator"
            )
    try:
        signature = inspect.signature(forward)
    except ValueError:  # some functions in C have none to read
        return
    try:
        signature.bind()
    except TypeError as error:
        raise RuleError("forward", name, f"{rule} ({error})") from None


def _renamed(
    former: Mapping[str, object], given: Mapping[str, object], function: str
) -> dict[str, object]:
    """Return arguments under the names of today, with a `DeprecationWarning` for each."""
    found: dict[str, object] = {}
    for name, value in former.items():
        new = FORMER.get(name)
        if new is None:
            import difflib  # a start that has no such argument does without

            near = difflib.get_close_matches(name, sorted({*given, *FORMER.values()}), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}{hint}")
        # An argument that is not given has its default, None or False.
        if given.get(new) is not None and given[new] is not False:
            raise TypeError(f"{function}() got both {new!r} and its former name {name!r}")
        warnings.warn(
            f"the argument {name!r} of {function}() is now called {new!r}; warmup-plugin "
            f"{DROPPED_IN} drops the former name",
            DeprecationWarning,
            stacklevel=_LEVELS[function],
        )
        found[new] = value
    return found


def _ranks_of_torch() -> int:
    """Return the number of ranks in this process's default group; 0 where there is none."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 0
    return int(dist.get_world_size())


def _is(*types: type) -> Callable[[object], bool]:
    return lambda value: isinstance(value, types)


def _is_path(value: object) -> bool:
    return value is None or (isinstance(value, (str, os.PathLike)) and bool(os.fspath(value)))


def _is_group(value: object) -> bool:
    return value is None or (hasattr(value, "rank") and hasattr(value, "size"))


def _are_paths(value: object) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, (str, bytes))


def _is_pair(value: object) -> bool:
    if not isinstance(value, tuple) or len(value) != _PAIR:
        return False
    return all(isinstance(part, str) for part in value) and bool(value[0])


_NONE = type(None)
#: By name of an argument: the test that it must pass, and the rule in words.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "identity": (_is(Identity), "an Identity, as Identity.of(...) makes one"),
    "ranks": (_is(RankInfo), "a RankInfo"),
    "group": (_is_group, "a process group of which this rank is a member"),
    "settings": (_is(Settings), "a Settings, as Settings.from_env() makes one"),
    "cache_root": (_is_path, "a path"),
    "engine_cache_root": (_is_path, "a path"),
    "extra_tables": (_are_paths, "paths of tables, an iterable"),
    "ops": (_is(KnownOps, _NONE), "a KnownOps, as known_ops(...).plus(...) makes one"),
    "tuning_context": (callable, "a function that returns a context manager"),
    "engine": (_is_pair, "an EngineInfo, or a pair of texts: name and version"),
    "progress": (lambda value: value is None or callable(value), "a function"),
    "keep_existing": (_is(bool), "True or False"),
    "require_sharing": (_is(bool), "True or False"),
    "may_keep_step": (_is(bool), "True or False"),
}
