# SPDX-License-Identifier: Apache-2.0
"""The ranks of `tune` on a Ray cluster: the one importer of Ray.

Owns what Ray is asked for: a placement group with one bundle for each rank, an actor in each, and
one task over them, which Ray runs again where it fails. Finds no room and schedules nothing itself.
This package must be installed on the nodes, as the engine is. Raises `CommandError`.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.tuning import Place, Rank, TuningJob, free_port

_STRATEGIES: Final = {"pack": "STRICT_PACK", "spread": "SPREAD"}
#: A driver's variables do not reach the workers of a cluster.
_HANDED_ON: Final = ("WARMUP_PLUGIN_", "FLASHINFER_")
#: How long ranks may take to end once one has failed.
_END_S: Final = 60.0


@dataclass(frozen=True)
class Wanted:
    """What a cluster is asked for, and for how long."""

    gpus: int = 1
    place: str = "pack"
    wait_s: float = 600.0
    retries: int = 1


class RankActor(Rank):
    """A rank on the node where Ray has found room for it."""

    def where(self) -> tuple[str, str, int, list[str]]:
        """Return node, address, a free port there, and the GPUs that Ray has given."""
        import ray

        context, address = ray.get_runtime_context(), ray.util.get_node_ip_address()
        gpus = [str(each) for each in context.get_accelerator_ids().get("GPU", [])]
        return context.get_node_id(), address, free_port(address), gpus


def tune_there(job: TuningJob, address: str, wanted: Wanted) -> bytes:
    """Run the ranks on a cluster; return the archive.

    Raises:
        CommandError: no Ray, no cluster, no room in time, or a rank that failed each time.
    """
    try:
        import ray
    except ImportError:
        raise CommandError("--ray needs Ray: pip install 'warmup-plugin[ray]'") from None
    env = {name: text for name, text in os.environ.items() if name.startswith(_HANDED_ON)}
    try:
        ray.init(address, runtime_env={"env_vars": env}, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise CommandError(f"--ray {address}: {error}") from None
    try:
        group = _room(job, wanted)
        whole = ray.remote(_all_ranks).options(
            num_cpus=0, max_retries=wanted.retries, retry_exceptions=[CommandError]
        )
        return bytes(_got(whole.remote(job, group, wanted.gpus)))
    finally:
        ray.shutdown()  # with it all that this job has taken


def _room(job: TuningJob, wanted: Wanted) -> Any:
    """Return a placement group that Ray has found room for."""
    from ray.util import placement_group, placement_group_table

    bundle = {"CPU": 1.0} | ({"GPU": float(wanted.gpus)} if wanted.gpus else {})
    group = placement_group([bundle] * job.ranks, strategy=_STRATEGIES[wanted.place])
    if not group.wait(wanted.wait_s):
        state = placement_group_table(group)["stats"]["scheduling_state"]
        what = f"{job.ranks} x {bundle} by {_STRATEGIES[wanted.place]}"
        raise CommandError(f"Ray has no room for {what} after {wanted.wait_s:g} s: {state}")
    return group


def _all_ranks(job: TuningJob, group: Any, gpus: int) -> bytes:
    """Run each rank in its bundle; a task of Ray's, which runs it again where it raises."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Into

    actors = [
        ray.remote(RankActor)
        .options(num_cpus=1, num_gpus=gpus, max_concurrency=2, scheduling_strategy=Into(group, n))
        .remote()
        for n in range(job.ranks)
    ]
    found = list(zip(_got([each.where.remote() for each in actors]), actors, strict=True))
    found.sort(key=lambda each: each[0][0])  # the ranks of a node follow one another
    spots = _places([where for where, _ in found])
    running = [a.run.remote(job, p) for (_, a), p in zip(found, spots, strict=True)]
    try:
        left = list(running)
        while left and not (job.ready and running[0] not in left):
            (ended,), left = ray.wait(left)
            _got(ended)
        return bytes(_got(running[0]))
    finally:
        for actor in actors:
            actor.stop.remote()
        ray.wait(running, num_returns=len(running), timeout=_END_S)
        for actor in actors:
            ray.kill(actor)


def _places(found: list[tuple[str, str, int, list[str]]]) -> list[Place]:
    """Return where each rank stands; each sees the GPUs of all ranks of its node."""
    sizes, seen = Counter(node for node, *_ in found), Counter[str]()
    gpus = {node: tuple(g for n, _, _, own in found if n == node for g in own) for node in sizes}
    _, address, port, _ = found[0]
    spots = []
    for rank, (node, *_) in enumerate(found):
        spots.append(Place(rank, seen[node], sizes[node], address, port, gpus[node]))
        seen[node] += 1
    return spots


def _got(refs: Any) -> Any:
    """Return what Ray answers; what a rank has said of its failure is raised as it said it."""
    import ray

    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, CommandError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        raise CommandError(f"Ray: {error}") from None
