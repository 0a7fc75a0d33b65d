# SPDX-License-Identifier: Apache-2.0
"""Sessions of toy ops in child processes, and what they leave on disk.

Owns the fixtures of this folder. FlashInfer is tuned in children only, over the embedded engine's
simulated clock; all come from one fork server, at 0.05 s each. What runs in them is in the files
`on_*.py`, on the ops of `toys.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded import EngineConfig, launch

HERE = Path(__file__).parent
TABLE = "rank_tp0_pp0_dp0.json"

#: The engine itself is hardly used here: as small as it gets.
SMALL = {"layers": 1, "hidden": 8, "ffn": 8, "heads": 2, "vocab": 8, "experts": 2}


@dataclass(frozen=True)
class Children:
    """Starts ranks; each start is in new processes."""

    root: Path

    def ranks(
        self, script: str, *, env: Mapping[str, str] | None = None, tp: int = 1, **arguments: Any
    ) -> list[Any]:
        """Run ``file:function`` of this folder on ``tp`` ranks; return what each returned."""
        name, _, function = script.partition(":")
        config = EngineConfig(**{**SMALL, "tp": tp, "heads": 2 * tp}, timing="deterministic")  # type: ignore[arg-type]
        return launch(
            config,
            root=self.root,
            env=env,
            script=f"{HERE / name}.py:{function}",
            arguments=arguments,
            timeout_s=60.0,
        )

    def one(self, script: str, env: Mapping[str, str] | None = None, **arguments: Any) -> Any:
        """Run it on one rank."""
        (result,) = self.ranks(script, env=env, **arguments)
        return result

    @property
    def table_path(self) -> Path:
        (found,) = self.root.glob(f"flashinfer_autotune/*/*/*/{TABLE}")
        return found

    @property
    def entries(self) -> dict[str, Any]:
        """The stored entries by file key; none where no file was written."""
        found = list(self.root.glob(f"flashinfer_autotune/*/*/*/{TABLE}"))
        document = json.loads(found[0].read_text()) if found else {}
        return {key: value for key, value in document.items() if not key.startswith("_")}

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest beside the table."""
        found: dict[str, Any] = json.loads(
            self.table_path.with_suffix(".manifest.json").read_text()
        )
        return found

    @property
    def is_complete(self) -> bool:
        """Whether the table answers all that was asked."""
        return bool(self.manifest["complete"])

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The stored tasks, as the manifest has them."""
        return list(self.manifest["tasks"].values())

    def outcomes(self, op: str) -> set[tuple[str, str]]:
        """Outcome and reason of every stored task of an op."""
        return {(t["outcome"], t.get("reason", "")) for t in self.tasks if t["op"] == op}

    def keys(self, op: str) -> list[str]:
        """The stored keys of an op."""
        return [key for key in self.entries if key.startswith(f"({op!r}, ")]


@pytest.fixture(scope="session")
def make_children() -> type[Children]:
    """Children for fixtures of a wider scope."""
    return Children


@pytest.fixture
def children(tmp_path: Path) -> Children:
    """Children that share an empty cache root."""
    return Children(tmp_path / "root")
