# SPDX-License-Identifier: Apache-2.0
"""How the ranks of the engine work together: gloo groups and the model's own collectives.

Owns the groups of one rank, what is sent over them, and the collective op that sums over tensor-
parallel ranks. Experts are exchanged by gathering the group's tokens and summing the group's
outputs: every rank then sees the same batch sizes at every start, for any routing. (With an
all-to-all they would follow the data, and so would the calls that are tuned.)
Fails as torch.distributed does: every wait is bounded by the group's timeout.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from warmup_plugin.cache.stamps import by_content
from warmup_plugin.engines.embedded.config import EngineConfig
from warmup_plugin.engines.embedded.host_clock import device_answers
from warmup_plugin.engines.embedded.ops import COLLECTIVE_CONFIG, Ops
from warmup_plugin.engines.embedded.runners import AllReduceRunner
from warmup_plugin.topology import RankInfo

with device_answers():
    from flashinfer import autotuner

Tensor = torch.Tensor

logger = logging.getLogger("warmup_plugin")

ALL_REDUCE = "embedded::all_reduce"


class Parallel:
    """One rank's groups. Made on every rank at once: making a group is collective."""

    def __init__(self, config: EngineConfig, ranks: RankInfo) -> None:
        self.ranks = ranks
        self.tp_group = self.ep_group = dist.group.WORLD
        timeout = timedelta(seconds=config.group_timeout_s)
        places = [config.place(rank) for rank in range(config.world_size)]
        for axis in ("tp", "ep"):
            for members in _neighbours(places, axis):
                group = dist.new_group(members, backend="gloo", timeout=timeout)
                if ranks.rank not in members:
                    continue
                setattr(self, f"{axis}_group", group)

    def receive(self, like: Tensor) -> Tensor:
        """Return the activations of the stage before."""
        dist.recv(like, src=self.ranks.rank - self.ranks.tp_size)
        return like

    def send(self, activations: Tensor) -> None:
        """Give the activations to the stage behind."""
        dist.send(activations.contiguous(), dst=self.ranks.rank + self.ranks.tp_size)

    def gather_vocab(self, logits: Tensor) -> Tensor:
        """Join the vocabulary shards of the tensor-parallel ranks."""
        if self.ranks.tp_size == 1:
            return logits
        return torch.cat(self._gather(logits, self.tp_group), dim=1)

    def gather_tokens(self, tokens: Tensor) -> Tensor:
        """Return the tokens of all ranks that share experts."""
        if self.ranks.ep_size == 1:
            return tokens
        return torch.cat(self._gather(tokens, self.ep_group))

    def gather_scores(self, scores: Tensor) -> Tensor:
        """Join the expert shards, given for the same tokens on each rank."""
        if self.ranks.ep_size == 1:
            return scores
        return torch.cat(self._gather(scores, self.ep_group), dim=1)

    def return_tokens(self, outputs: Tensor) -> Tensor:
        """Sum what each rank's experts made of the group's tokens; return this rank's tokens."""
        if self.ranks.ep_size == 1:
            return outputs
        dist.all_reduce(outputs, group=self.ep_group)
        return outputs.chunk(self.ranks.ep_size)[self.ranks.ep_rank]

    def _gather(self, part: Tensor, group: dist.ProcessGroup | None) -> list[Tensor]:
        parts = [torch.empty_like(part) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, part.contiguous(), group=group)
        return parts


def _neighbours(places: list[RankInfo], axis: str) -> list[list[int]]:
    """Return the rank lists of all groups of one axis: in order, the same on every rank."""
    groups: dict[tuple[int, ...], list[int]] = {}
    # Inside a stage the expert-parallel ranks are counted with tp running fastest.
    for place in sorted(places, key=lambda p: (p.pp_rank, p.dp_rank, p.tp_rank)):
        index = place.dp_rank * place.tp_size + place.tp_rank
        rest = index // (place.tp_size if axis == "tp" else place.ep_size)
        groups.setdefault((place.pp_rank, rest), []).append(place.rank)
    return list(groups.values())


class AllReduce:
    """The tensor-parallel sum: a tunable op whose every tactic needs all ranks of the group.

    Like FlashInfer's PCIe-IPC all-reduce it looks after itself. It is tuned inside the forward, by
    all ranks together, and only while the engine's group is FlashInfer's tuning group, which makes
    the ranks agree on each timing; else the default serves. The group's first rank keeps the
    winners in a file of the op's own, and gives them to all ranks when the op is made.
    """

    def __init__(self, config: EngineConfig, parallel: Parallel, ops: Ops) -> None:
        assert parallel.tp_group is not None
        self._ops = ops
        self._group: dist.ProcessGroup = parallel.tp_group
        self._is_first = parallel.ranks.tp_rank == 0
        ranks = parallel.ranks
        place = f"tp{ranks.tp_size}_pp{ranks.pp_rank}_dp{ranks.dp_rank}"
        name = f"all_reduce_{place}_hidden{config.hidden}.json"
        self._path = Path(config.all_reduce_dir, name) if config.all_reduce_dir else None
        self._runner = AllReduceRunner(ALL_REDUCE, ops.timing, self._group)
        self._is_stored = self._is_usable = True
        if ranks.tp_size > 1:
            self._load()

    def __call__(self, part: Tensor) -> Tensor:
        """Return the sum over the group; with one rank there is nothing to sum."""
        if self._group.size() == 1:
            return part
        runner, tactic = self._choose(part)
        out: Tensor = runner([part], tactic=tactic)
        return out

    def _choose(self, part: Tensor) -> tuple[Any, Any]:
        tuning = autotuner.AutoTuner.get().is_tuning_mode
        if not self._is_usable or (tuning and tuning_group() is not self._group):
            return self._runner, -1
        chosen = self._ops.choose(ALL_REDUCE, [self._runner], COLLECTIVE_CONFIG, [part])
        if tuning and not self._is_stored:
            self._is_stored = True
            if self._is_first and self._path is not None:
                self._store(self._path)
        return chosen

    def _load(self) -> None:
        """Give the first rank's file to all: a rank that had another would tune alone, and wait."""
        content = b""
        if self._is_first and self._path is not None:
            with contextlib.suppress(OSError):
                content = self._path.read_bytes()
        content = _broadcast(content, self._group)
        self._is_stored = bool(content)
        if not content:
            return
        from warmup_plugin.tuner import compat  # which imports FlashInfer, as above

        try:
            with compat.as_file(_under_own_stamp(content)) as copy:
                loaded = bool(autotuner.AutoTuner.get().load_configs(copy))
        except Exception:  # FlashInfer raises many kinds for a damaged file
            logger.exception("embedded engine: cannot load %s", self._path)
            loaded = False
        votes = torch.tensor([loaded, not loaded], dtype=torch.int32)
        dist.all_reduce(votes, group=self._group)
        self._is_stored = loaded
        self._is_usable = 0 in votes.tolist()

    def _store(self, path: Path) -> None:
        """Keep this op's winners of all that FlashInfer would save."""
        from warmup_plugin.tuner import compat  # as above

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Beside the file: an engine that may live without any other directory.
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                everything = Path(folder, "all.json")
                autotuner.AutoTuner.get().save_configs(str(everything))
                document = json.loads(everything.read_text())
            own = {key: v for key, v in document.items() if key == "_metadata" or ALL_REDUCE in key}
            own["_metadata"].update(compat.stamp())
            temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
            temporary.write_text(json.dumps(own, indent=1, sort_keys=True))
            temporary.replace(path)
        except OSError as error:
            logger.warning("embedded engine: %s is not kept: %s", path, error)


def _under_own_stamp(content: bytes) -> bytes:
    """Return what another environment with equal packages has stored as FlashInfer loads it here.

    From 0.7.4 on it takes packages that are installed at another path for others.
    """
    from warmup_plugin.tuner import compat  # as above

    document, stamp = json.loads(content), compat.stamp()
    if by_content(document["_metadata"]) == by_content(stamp):
        document["_metadata"] = stamp
    return json.dumps(document).encode()


def _broadcast(content: bytes, group: dist.ProcessGroup) -> bytes:
    """Return the first rank's bytes on every rank of the group."""
    first = dist.get_global_rank(group, 0)
    size = torch.tensor([len(content)])
    dist.broadcast(size, src=first, group=group)
    if not size.item():
        return b""
    data = torch.zeros(int(size.item()), dtype=torch.uint8)
    if content:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    dist.broadcast(data, src=first, group=group)
    return data.numpy().tobytes()


def tuning_group() -> dist.ProcessGroup | None:
    """Return the group over which FlashInfer averages timings; releases before 0.6.18 have none."""
    get = getattr(autotuner, "get_autotune_process_group", None)
    group: dist.ProcessGroup | None = get() if get else None
    return group


@contextlib.contextmanager
def tuning_over(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Make ``group`` FlashInfer's tuning group, where the release knows one, as engines do."""
    put = getattr(autotuner, "set_autotune_process_group", None)
    before = tuning_group()
    if put is not None:
        put(group)
    try:
        yield
    finally:
        if put is not None:
            put(before)
