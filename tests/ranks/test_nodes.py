# SPDX-License-Identifier: Apache-2.0
"""Several nodes, each with its own directory: what every node reads, writes and is warm from.

Nodes are simulated: ranks of one machine that say they are on several.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment

pytestmark = pytest.mark.multiprocess

#: By which ranks the two nodes are made up, and the names under which their first ranks write.
PLACES: dict[str, tuple[list[int], list[str]]] = {
    "in blocks": ([0, 0, 1, 1], ["rank_tp0_pp0_dp0.json", "rank_tp0_pp1_dp0.json"]),
    "dealt out": ([0, 1, 0, 1], ["rank_tp0_pp0_dp0.json", "rank_tp1_pp0_dp0.json"]),
    "rank 0 on the second": ([1, 0, 0, 1], ["rank_tp1_pp0_dp0.json", "rank_tp0_pp0_dp0.json"]),
}


def entries(job: Deployment, node: int, name: str = "") -> dict[str, Any]:
    """A node's table without its stamp."""
    name = name or job.tables(node)[0]
    table = json.loads((job.directory(node) / name).read_text())
    return {key: entry for key, entry in table.items() if not key.startswith("_")}


def test_a_node_that_cannot_write_starts_warm_from_the_other(
    deploy: Callable[..., Deployment],
) -> None:
    """The second node's directory is empty and read-only: nothing is in it, nothing is timed."""
    job = deploy(nodes=2, tp=2, timing="rank_noise")
    job.roots[1].mkdir(mode=0o555)
    cold = job.start("obeying_permissions")
    assert cold.timed_in_all > 100
    assert cold.reports[0].published == (str(job.table),)
    warm = job.start("obeying_permissions")
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert warm.served == cold.served
    assert list(job.roots[1].iterdir()) == []
    for start in (cold, warm):
        assert any(f"{job.roots[1]}" in text and "not writable" in text for text in start.warnings)
        assert len(start.seen[1]) == 1, "one warning is logged"


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_first_rank_of_each_node_writes_and_nobody_else(
    place: tuple[list[int], list[str]], deploy: Callable[..., Deployment]
) -> None:
    """One table on each node, named after that node's first rank, with the same entries."""
    node_of_rank, names = place
    job = deploy(nodes=2, tp=2, pp=2, timing="rank_noise", options={"node_of_rank": node_of_rank})
    cold = job.start()
    assert [job.tables(node) for node in (0, 1)] == [[name] for name in names]
    written = {str(job.directory(node) / names[node]) for node in (0, 1)}
    assert {frozenset(report.published) for report in cold.reports} == {frozenset(written)}
    assert entries(job, 0) == entries(job, 1)
    assert not cold.disputed
    before = job.marks()
    warm = job.start()
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert job.marks() == before


@pytest.mark.parametrize("lost", [0, 1])
def test_each_node_s_table_suffices(lost: int, deploy: Callable[..., Deployment]) -> None:
    """With either node's directory gone, all ranks are warm, and the node has its table again."""
    job = deploy(nodes=2, tp=2, timing="rank_noise")
    cold = job.start()
    kept = job.directory(1 - lost) / job.tables(1 - lost)[0]
    before, content = kept.stat(), entries(job, 1 - lost)
    shutil.rmtree(job.roots[lost] / "flashinfer_autotune")
    warm = job.start()
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert entries(job, lost) == content
    assert kept.stat().st_mtime_ns == before.st_mtime_ns
    (published,) = {report.published for report in warm.reports}
    assert published == (str(job.directory(lost) / job.tables(lost)[0]),)
    again = job.start()
    again.assert_warm()
    assert {report.published for report in again.reports} == {()}


def test_nodes_with_other_winners_agree_on_one(deploy: Callable[..., Deployment]) -> None:
    """Tables that two nodes tuned apart: one union serves everywhere, nothing is timed again."""
    job = deploy(nodes=2, tp=2, timing="rank_noise")
    apart = [deploy(roots=[root], tp=2, timing="rank_noise") for root in job.roots]
    for deployment, tuner in zip(apart, (0, 1), strict=True):
        deployment.start("tuning_as", rank=tuner)
    before = [entries(job, node) for node in (0, 1)]
    assert before[0] != before[1]
    warm = job.start()
    warm.assert_warm()
    assert not warm.disputed
    union = entries(job, 0)
    assert union == entries(job, 1, "rank_tp1_pp0_dp0.json") == before[0]
    assert union != before[1]
    again = job.start()
    again.assert_warm()
    assert again.certificate == warm.certificate
    assert again.served == warm.served


def test_two_nodes_on_one_shared_directory(deploy: Callable[..., Deployment]) -> None:
    """Seen to be one: rank 0 alone writes, one table; later starts write nothing."""
    job = deploy(tp=2, pp=2, timing="rank_noise", options={"nodes": 2})
    cold = job.start()
    assert {report.published for report in cold.reports} == {(str(job.table),)}
    assert job.tables() == [job.table.name]
    before = job.marks()
    warm = job.start()
    warm.assert_warm()
    assert warm.certificate == cold.certificate
    assert job.marks() == before
