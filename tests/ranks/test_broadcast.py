# SPDX-License-Identifier: Apache-2.0
"""`broadcast`: the bytes that one rank has read are what every rank installs.

Files are seen by Python's audit hook, installed tables by the bytes that FlashInfer's own
`load_configs` finds at the path it is given, messages at the store.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import warmup_plugin

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment, Start

pytestmark = pytest.mark.multiprocess


def opened_by(start: Start) -> list[int]:
    """The ranks that have touched the table or its directory."""
    return [rank for rank, seen in enumerate(start.seen) if seen["opened"]]


def test_every_rank_installs_the_bytes_that_rank_0_has_read(
    deploy: Callable[..., Deployment],
) -> None:
    """The file's own bytes, on all four ranks; three of them never look at the directory."""
    job = deploy(dp=4, timing="rank_noise")
    cold = job.start("watching_the_wire")
    assert opened_by(cold) == [0]
    warm = job.start("watching_the_wire")
    warm.assert_warm()
    assert opened_by(warm) == [0]
    assert str(job.table) in warm.seen[0]["opened"]
    sha256 = hashlib.sha256(job.table.read_bytes()).hexdigest()
    assert [seen["loaded"][-1] for seen in warm.seen] == [sha256] * 4
    body = [value for seen in warm.seen for key, value in seen["sent"] if key == f"body/{sha256}"]
    assert body == [job.table.read_bytes()], "the table crosses once"


def test_the_first_rank_of_each_node_reads_and_nobody_else(
    deploy: Callable[..., Deployment],
) -> None:
    """Two nodes with directories of their own: two ranks touch them, cold and warm.

    They are also those that tune: whoever tunes has a journal there.
    """
    job = deploy(nodes=2, tp=2, pp=2, timing="rank_noise")
    one_of_a_stage = {"WARMUP_PLUGIN_STRATEGY": "leader"}
    for _ in ("cold", "warm"):
        assert opened_by(job.start("watching_the_wire", env=one_of_a_stage)) == [0, 2]


def test_messages_are_json(deploy: Callable[..., Deployment]) -> None:
    """All that any rank says in a session is text that any language can read, or a digit."""
    start = deploy(nodes=2, tp=2, timing="rank_noise").start("watching_the_wire")
    sent = [message for seen in start.seen for message in seen["sent"]]
    assert len(sent) > 20
    for key, value in sent:
        assert key.isascii()
        if value and key != "nonce":  # a number drawn at random, as text
            json.loads(value.decode("ascii"))


def test_nothing_is_pickled() -> None:
    """No module of the package names a serialiser that runs code, or a collective that uses one."""
    package = Path(warmup_plugin.__file__).parent
    sources = sorted(package.rglob("*.py"))
    assert len(sources) > 30
    found = {
        f"{path.relative_to(package)}: {name}"
        for path in sources
        for name in names_in(ast.parse(path.read_text(encoding="utf-8")))
        if is_unsafe(name)
    }
    assert found == set()


def names_in(tree: ast.AST) -> Iterator[str]:
    """Every name that a module imports, reads or looks up, dotted where it is an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Name):
            yield node.id


def is_unsafe(name: str) -> bool:
    modules = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml"}
    parts = name.split(".")
    return (
        not modules.isdisjoint(parts)
        or parts[-1].endswith(("_object", "_object_list"))
        or name in {"torch.load", "torch.save", "eval", "exec"}
    )


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "dist.all_gather_object(found, word)",
        "dist.broadcast_object_list([word])",
        "torch.load(path)",
        "eval(text)",
    ],
)
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    """The control: each of these would be found."""
    assert any(map(is_unsafe, names_in(ast.parse(line))))
