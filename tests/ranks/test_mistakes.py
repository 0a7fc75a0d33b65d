# SPDX-License-Identifier: Apache-2.0
"""What the author of a runner gets for a mistake: the rows of mistakes.py, on two ranks.

`docs/mistakes.md` shows the same rows; with ``WARMUP_WRITE_DOCS=1`` it is written anew from them.
"""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path

import pytest

from tests.ranks.mistakes import GROUP_TIMEOUT_S, MISTAKES, Mistake
from warmup_plugin.engines.embedded import EngineConfig, launch

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "mistakes.md"
PLAY = f"{Path(__file__).with_name('mistakes.py')}:play"
MARK = "<!-- From here on: tests/ranks/mistakes.py -->\n"

pytestmark = pytest.mark.multiprocess

Got = list[dict[str, str]]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Got:
    """What each rank got for each mistake, in one job that goes on after each of them."""
    config, root = EngineConfig(tp=2), tmp_path_factory.mktemp("mistakes")
    return launch(config, root=root, script=PLAY, timeout_s=100.0)


def assert_is(row: Mistake, ranks: list[str]) -> None:
    """Hold what the ranks got against the row, where … stands for anything."""
    for rank, got in enumerate(ranks):
        said = row.on_rank_1 if rank and row.on_rank_1 else row.gets
        pattern = ".*".join(map(re.escape, said.split("…")))
        assert re.fullmatch(pattern, got, re.DOTALL), f"rank {rank}: {got}"
    if not row.on_rank_1 and "…" not in row.gets:
        assert len(set(ranks)) == 1


@pytest.mark.parametrize(
    "name", [name for name, row in MISTAKES.items() if not row.apart and not row.shown_by]
)
def test_what_a_mistake_gets(name: str, together: Got) -> None:
    """On all ranks alike, and the ranks go on: the next mistake is made in the same processes."""
    assert_is(MISTAKES[name], [rank[name] for rank in together])


@pytest.mark.parametrize("name", [name for name, row in MISTAKES.items() if row.apart])
def test_what_a_mistake_gets_in_a_job_of_its_own(name: str, cache_root: Path) -> None:
    config = EngineConfig(tp=2, group_timeout_s=GROUP_TIMEOUT_S)
    got = launch(
        config, root=cache_root, script=PLAY, arguments={"name": name}, timeout_s=60.0,
        env={"WARMUP_PLUGIN_GRACE_S": "20"},
    )  # fmt: skip
    assert_is(MISTAKES[name], [rank[name] for rank in got])


@pytest.mark.parametrize("name", [name for name, row in MISTAKES.items() if row.shown_by])
def test_a_mistake_that_ends_a_process_is_made_elsewhere(name: str) -> None:
    path, _, function = MISTAKES[name].shown_by.partition("::")
    tree = ast.parse((CHECKOUT / path).read_text())
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def table() -> str:
    """Return the rows as the page shows them."""
    lines = ["| mistake | what every rank gets |", "|---|---|"]
    for row in MISTAKES.values():
        gets = f"`{row.gets}`" if re.match(r"\w+Error: ", row.gets) else row.gets
        if row.on_rank_1:
            also = f"`{row.on_rank_1}`" if "Error: " in row.on_rank_1 else row.on_rank_1
            gets = f"rank 0: {gets}; rank 1: {also}"
        lines.append(f"| {row.what} | {gets} |")
    return "\n".join(lines) + "\n"


def test_the_page_has_these_rows() -> None:
    head = PAGE.read_text().partition(MARK)[0]
    if os.environ.get("WARMUP_WRITE_DOCS"):
        PAGE.write_text(f"{head}{MARK}\n{table()}")
    assert PAGE.read_text() == f"{head}{MARK}\n{table()}"
