# SPDX-License-Identifier: Apache-2.0
"""What `doctor --ranks` finds out: which ranks reach which, and how a session of theirs would meet.

Owns one trial of all ranks of a job, each of which runs the command: they join a group as an engine
does, tell each other over the job's store what each host offers, dial it, and open a session. All
ranks come to the same findings. Each wait for another rank ends after `silence_s`.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from warmup_plugin.cli.doctor_checks import Finding
from warmup_plugin.cli.output import CommandError, name_ranks, plural
from warmup_plugin.coordination.base import JOB_STORE
from warmup_plugin.errors import SessionError
from warmup_plugin.runtime.safe_json import digest
from warmup_plugin.topology import host_name

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings

#: By which variables a launcher tells a process its rank and the number of ranks.
_LAUNCHERS: Final = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS"))
_RENDEZVOUS: Final = ("MASTER_ADDR", "MASTER_PORT")
#: What an engine's workers must have alike.
_PREFIXES: Final = ("WARMUP_PLUGIN_", "FLASHINFER_")
#: How many addresses a rank dials at a time.
_DIALS: Final = 16


class Host(NamedTuple):
    """One host, or one container with a network of its own, as its first rank has told it."""

    name: str
    ranks: list[int]
    choices: list[tuple[str, int]]
    nonce: str


class Reach(NamedTuple):
    """One address of a host: why the ranks of the other hosts do not reach it, by rank."""

    host: Host
    address: str
    faults: dict[int, str]
    num_asked: int


class Board:
    """What the ranks tell each other: a JSON value of each rank under a name."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size

    def tell(self, name: str, value: Any) -> list[Any]:
        """Put this rank's value there; return those of all ranks, by rank."""
        self._store.set(f"warmup_plugin/doctor/{name}/{self._rank}", json.dumps(value))
        keys = [f"warmup_plugin/doctor/{name}/{rank}" for rank in range(self._size)]
        return [json.loads(self._store.get(key)) for key in keys]


def launched(environ: Mapping[str, str]) -> tuple[int, int]:
    """Return rank and number of ranks as the launcher has told them.

    Raises `CommandError` where no launcher has, or where it is not said how the ranks meet.
    """
    for names in _LAUNCHERS:
        rank, size = (environ.get(name, "") for name in names)
        if rank.isdigit() and size.isdigit() and int(rank) < int(size):
            break
    else:
        raise CommandError(
            "--ranks is run on every rank by a launcher, which sets RANK and WORLD_SIZE: "
            "torchrun --nproc-per-node 2 -m warmup_plugin doctor --ranks",
            code=CommandError.USAGE,
        )
    absent = [name for name in _RENDEZVOUS if not environ.get(name)]
    if absent:
        raise CommandError(
            f"{absent[0]} is not set: the ranks of a job meet at MASTER_ADDR and MASTER_PORT of "
            "rank 0's host",
            code=CommandError.USAGE,
        )
    return int(rank), int(size)


def examine(settings: Settings, environ: Mapping[str, str]) -> list[Finding]:
    """Return what all ranks have found; the same on every rank, once they have met."""
    rank, size = launched(environ)
    at = ":".join(environ[name] for name in _RENDEZVOUS)
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise CommandError(f"--ranks needs torch in this environment: {error}") from error
    try:
        dist.init_process_group(
            "gloo", init_method="env://", rank=rank, world_size=size,
            timeout=timedelta(seconds=settings.silence_s),
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        return [_not_met(rank, at, error)]
    from warmup_plugin.coordination.kv_client import default_store

    try:
        return list(_try_all(Board(default_store(), rank, size), rank, settings, environ))
    except RuntimeError as error:  # torch's: a rank that has ended, or a time-out
        return [_not_met(rank, at, error)]
    finally:
        dist.destroy_process_group()


def _not_met(rank: int, at: str, error: Exception) -> Finding:
    from warmup_plugin.coordination.kv_client import reason_of

    fix = (
        "every rank must run this command, and reach that address; GLOO_SOCKET_IFNAME names the "
        "network interface of the job"
    )
    return Finding(
        "group", "bad", f"rank {rank} has not met the others at {at}: {reason_of(error)}", fix
    )


def _try_all(
    board: Board, rank: int, settings: Settings, environ: Mapping[str, str]
) -> Iterator[Finding]:
    from warmup_plugin.coordination.addresses import offered
    from warmup_plugin.coordination.listeners import Listeners
    from warmup_plugin.coordination.offers import place

    told = board.tell("host", [host_name(), place(), _variables(environ)])
    places = [where for _, where, _ in told]
    is_first = places.index(places[rank]) == rank and len(set(places)) > 1
    nonce, wanted = secrets.token_hex(8), [settings.address] if settings.address else []
    with contextlib.ExitStack() as stack:
        card: list[Any] = [[], nonce]
        if is_first:
            addresses = wanted or offered(0, environ)
            listeners = stack.enter_context(
                contextlib.closing(Listeners(addresses, nonce, anywhere=bool(wanted)))
            )
            card = [listeners.choices, nonce]
        cards = board.tell("offers", card)
        hosts = [_host(first, told, cards) for first in sorted(map(places.index, set(places)))]
        dialled = board.tell("dialled", _dial([h for h in hosts if rank not in h.ranks]))
    yield _met(hosts, len(told))
    yield _settings([name for name, _, _ in told], [found for _, _, found in told])
    for reach in _reaches(hosts, dialled):
        yield _reached(reach)
    yield _session(settings, hosts)


def _host(first: int, told: Sequence[Any], cards: Sequence[Any]) -> Host:
    name, place, _ = told[first]
    ranks = [rank for rank, (_, other, _) in enumerate(told) if other == place]
    choices, nonce = cards[first]
    return Host(name, ranks, [(str(at), int(port)) for at, port in choices], nonce)


def _dial(hosts: Sequence[Host]) -> dict[str, str]:
    """Return why this rank does not reach an address of these hosts, by host and address."""
    from warmup_plugin.coordination.listeners import probe
    from warmup_plugin.coordination.opening import PROBE_S

    def dial(each: tuple[Host, tuple[str, int]]) -> str:
        host, choice = each
        try:
            return probe([choice], host.nonce, PROBE_S)[0]
        except OSError as error:  # this process's own lack
            return f"cannot dial: {error.strerror}"

    asked = [(host, choice) for host in hosts for choice in host.choices]
    with ThreadPoolExecutor(_DIALS) as pool:
        found = list(pool.map(dial, asked))
    return {
        _key(host, choice[0]): fault for (host, choice), fault in zip(asked, found, strict=True)
    }


def _key(host: Host, address: str) -> str:
    return f"{host.ranks[0]} {address}"


def _reaches(hosts: Sequence[Host], dialled: Sequence[dict[str, str]]) -> Iterator[Reach]:
    for host in hosts:
        for address, _ in host.choices:
            key = _key(host, address)
            asked = {rank: found[key] for rank, found in enumerate(dialled) if key in found}
            faults = {rank: fault for rank, fault in asked.items() if fault}
            yield Reach(host, address, faults, len(asked))


def _met(hosts: Sequence[Host], size: int) -> Finding:
    where = "; ".join(f"{host.name}: {name_ranks(host.ranks)}" for host in hosts)
    counted = f"{plural(size, 'rank')} on {plural(len(hosts), 'host')}"
    return Finding("group", "good", f"{counted}: {where}")


def _variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that workers must have alike, and a digest of each: it may be secret."""
    return {k: digest(v.encode()) for k, v in environ.items() if k.startswith(_PREFIXES)}


def _settings(names: Sequence[str], variables: Sequence[Mapping[str, str]]) -> Finding:
    for rank, found in enumerate(variables):
        if differing := {name for name, _ in found.items() ^ variables[0].items()}:
            listed = ", ".join(sorted(differing))
            words = f"rank {rank} ({names[rank]}) and rank 0 differ in {listed}"
            fix = "set them alike on every host; for a job of Ray's, as env_vars of its runtime_env"
            return Finding("settings", "bad", words, fix)
    return Finding("settings", "good", "WARMUP_PLUGIN_* and FLASHINFER_* are the same on all ranks")


def _reached(reach: Reach) -> Finding:
    what, at = f"rank {reach.host.ranks[0]}", f"{reach.host.name} offers {reach.address}"
    if not reach.faults:
        number = plural(reach.num_asked, "rank")
        return Finding(what, "good", f"{at}: reached by {number} of other hosts")
    reasons: dict[str, list[int]] = {}
    for rank, fault in reach.faults.items():
        reasons.setdefault(fault, []).append(rank)
    words = "; ".join(f"not by {name_ranks(ranks)} ({fault})" for fault, ranks in reasons.items())
    fix = "" if reach.host.ranks[0] else (
        f"open {reach.address} to them, or name an address that they reach with "
        "WARMUP_PLUGIN_ADDRESS on rank 0"
    )  # fmt: skip
    return Finding(what, "note", f"{at}: {words}", fix)


def _session(settings: Settings, hosts: Sequence[Host]) -> Finding:
    """Open a session as a start does, and say on which way it met."""
    from warmup_plugin.coordination.opening import connect

    began = time.monotonic()
    try:
        link = connect(None, settings)
    except SessionError as error:
        fix = "the engine would tune by itself: let the ranks reach an address of rank 0's host"
        return Finding("session", "bad", f"cannot open: {error}", fix)
    way, took_s = link.way, time.monotonic() - began
    link.close()
    if way == JOB_STORE:
        words = f"opens over the job's own store, in {took_s:.1f} s: no new port is reached"
        fix = f"nothing need be done; a port of {hosts[0].name} open to the others starts faster"
        return Finding("session", "note", words, fix)
    return Finding("session", "good", f"opens over {way}, in {took_s:.1f} s")


def is_told_by(found: Sequence[Finding], environ: Mapping[str, str]) -> bool:
    """Return whether this rank prints the findings: rank 0 those of all, any rank its own fault."""
    has_met = found[0].state == "good"
    return not has_met or launched(environ)[0] == 0
