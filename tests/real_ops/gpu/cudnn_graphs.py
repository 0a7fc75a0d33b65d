# SPDX-License-Identifier: Apache-2.0
"""S5: cuDNN's graphs.

Owns the stand-in for ``cudnn.pygraph``: a graph has two to four plans by a hash of its description,
and running one spends time. Assumes that engines and knobs follow from the graph. Does not show
real plans, or plans that cannot be built.
"""

from __future__ import annotations

from typing import Any

from tests.real_ops.gpu.clock import canonical, digest, spend


class _Part:
    """A tensor of a graph, or anything else that is described by calls."""

    def __init__(self, said: list[Any]) -> None:
        self.__dict__["said"] = said

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def describe(*args: Any, **kwargs: Any) -> _Part:
            self.said.append((name, canonical(args), canonical(kwargs)))
            return self if type(self) is _Part else _Part(self.said)

        return describe


class Graph(_Part):
    """``cudnn.pygraph``: candidates and times follow from what it was told."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("handle", None)
        super().__init__([(canonical(args), canonical(kwargs))])

    def build_plans(self, *_args: Any) -> None:
        self.__dict__["identity"] = digest(self.said)

    def get_execution_plan_count(self) -> int:
        return int(2 + self.identity % 3)

    def get_engine_and_knobs_at_index(self, index: int) -> tuple[int, dict[int, int]]:
        return (self.identity // 7) % 5 + index, {1: self.identity % 4, 2: index}

    def get_workspace_size(self, *_args: Any) -> int:
        return 0

    def get_workspace_size_plan_at_index(self, *_args: Any) -> int:
        return 0

    def execute(self, pack: Any, _workspace: Any, handle: Any = None, **overrides: Any) -> None:
        del handle
        spend("cudnn.execute", self.identity, pack, overrides)

    def execute_plan_at_index(
        self, pack: Any, _workspace: Any, index: int, handle: Any = None, **overrides: Any
    ) -> None:
        del handle
        plan = self.get_engine_and_knobs_at_index(index)
        spend("cudnn.execute", self.identity, pack, plan, overrides)


def install() -> None:
    """Put the graphs in cuDNN's place."""
    import cudnn

    cudnn.pygraph = Graph
    cudnn.create_handle = lambda: 1
    cudnn.set_stream = lambda *_args, **_kwargs: None
    cudnn.backend_version = lambda: 92400
