# SPDX-License-Identifier: Apache-2.0
"""What a runner gives to a session: the arguments of `kernel_warmup.warm_up`, held to their rules.

Owns their types, and that a slip is told where it is made, on the rank that makes it, before any
rank waits for it: `RuleError` names argument, value and rule. Refuses a rank of a job that says
neither where it stands nor with whom (`SessionError`): alone it would certify what no other has.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

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
TuningContext = Callable[[], contextlib.AbstractContextManager[object]]
AnyPath = str | os.PathLike[str]

_NOT_GIVEN = RankInfo()
_PAIR = 2


def plain_context() -> contextlib.AbstractContextManager[object]:
    """Return FlashInfer's plain tuning context."""
    context: contextlib.AbstractContextManager[object] = compat.tuning_context()
    return context


class Arguments(TypedDict, total=False):
    """What `session` takes besides the identity; `warm_up` explains it."""

    ranks: RankInfo | None
    group: dist.ProcessGroup | None
    settings: Settings | None
    root: AnyPath | None
    engine_root: AnyPath | None
    others: Iterable[Path] | None
    ops: KnownOps | None
    tuning_context: TuningContext | None
    engine: tuple[str, str]
    progress: Progress | None
    keep_loaded: bool
    must_share: bool
    may_keep_step: bool
    link: StoreLink | None


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """The arguments of `kernel_warmup.warm_up`, where they are explained."""

    identity: Identity
    ranks: RankInfo = _NOT_GIVEN
    group: dist.ProcessGroup | None = None
    settings: Settings = msgspec.field(default_factory=Settings.from_env)
    root: Path | None = None
    engine_root: Path | None = None
    others: Iterable[Path] = ()
    ops: KnownOps | None = None
    tuning_context: TuningContext = plain_context
    engine: tuple[str, str] = ("custom", "0")
    progress: Progress | None = None
    keep_loaded: bool = False
    must_share: bool = False
    may_keep_step: bool = False
    link: StoreLink | None = None

    def __post_init__(self) -> None:
        """Hold every argument to its rule."""
        for name, (is_right, rule) in _RULES.items():
            value = getattr(self, name)
            if not is_right(value):
                raise RuleError(name, value, rule)
        for name in ("root", "engine_root"):
            if (path := getattr(self, name)) is not None:
                msgspec.structs.force_setattr(self, name, Path(path))
        if self.root is not None and not self.root.is_absolute():
            rule = "an absolute path: ranks of one job may start in different directories"
            raise RuleError("root", str(self.root), rule)

    @classmethod
    def of(cls, given: Arguments, identity: Identity) -> Options:
        """Take what was given; None is as good as nothing."""
        known: dict[str, Any] = {k: each for k, each in given.items() if each is not None}
        return cls(identity=identity, **known)

    @property
    def is_alone(self) -> bool:
        """Return whether this process warms up by itself."""
        return self.ranks.world_size == 1 and self.group is None

    def refuse_company(self) -> None:
        """Raise where this process is one of several and has been told nothing about that."""
        if self.ranks is not _NOT_GIVEN or self.group is not None:
            return
        size = _ranks_of_torch()
        if size > 1:
            raise SessionError(
                f"torch.distributed has {size} ranks here, and warm_up got neither ranks= nor "
                f"group=: pass ranks=RankInfo(rank=..., world_size={size}, ...); RankInfo() says "
                "that this process warms up alone"
            )


def _ranks_of_torch() -> int:
    """Return how many ranks this process's default group has; 1 where there is none."""
    dist: Any = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_available() or not dist.is_initialized():
        return 1
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
#: By argument: what is right, and how that is said.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "identity": (_is(Identity), "an Identity, as Identity.of(...) makes one"),
    "ranks": (_is(RankInfo), "a RankInfo"),
    "group": (_is_group, "a process group of which this rank is a member"),
    "settings": (_is(Settings), "a Settings, as Settings.from_env() makes one"),
    "root": (_is_path, "a path"),
    "engine_root": (_is_path, "a path"),
    "others": (_are_paths, "paths of tables, an iterable"),
    "ops": (_is(KnownOps, _NONE), "a KnownOps, as known_ops(...).plus(...) makes one"),
    "tuning_context": (callable, "a function that returns a context manager"),
    "engine": (_is_pair, "a pair of texts, name and version"),
    "progress": (lambda value: value is None or callable(value), "a function"),
    "keep_loaded": (_is(bool), "True or False"),
    "must_share": (_is(bool), "True or False"),
    "may_keep_step": (_is(bool), "True or False"),
}
