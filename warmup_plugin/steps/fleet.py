# SPDX-License-Identifier: Apache-2.0
"""The fleet, before step 1 and after step 9: what it gives a start, and what it is given.

Owns which rank asks (rank 0, whose table all ranks get), when a table is given away (after it is
certified, once the engine serves), and what of all that the receipt says. `fleet_place.py` says
where a bundle is put. In between, where tasks are left to tune, it asks whose turn that is
(`fleet_turn.py`). Imported where a fleet is set. No fault of the fleet raises here, and no rank is
in a collective meanwhile.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.errors import ForwardError, loss_in
from warmup_plugin.fleet import client, location, quarantine, waiting
from warmup_plugin.observability.report_rows import FleetAnswer, FleetCheck
from warmup_plugin.runtime.process_info import own_card
from warmup_plugin.settings import REPLAYS
from warmup_plugin.steps.fleet_ahead import Roots, announce
from warmup_plugin.steps.fleet_place import notes_of, place_of
from warmup_plugin.steps.fleet_request import request_of
from warmup_plugin.steps.fleet_turn import FleetTurn
from warmup_plugin.topology import host_name
from warmup_plugin.tuner import environment

if TYPE_CHECKING:
    from warmup_plugin.identity import Factors
    from warmup_plugin.settings import Settings
    from warmup_plugin.steps.context import Job
    from warmup_plugin.steps.options import Options
    from warmup_plugin.tuner.spot_check import Sample

logger = logging.getLogger("warmup_plugin")

#: A publication waits for nobody: it may take its time, and ends all the same.
_PUBLISH_S: Final = 120.0
_PUBLISH_REQUEST_S: Final = 15.0
_HEALTH_S: Final = 2 * 3600.0
#: Of so many tasks the fleet is told: one more than a lease tells of.
_MOST_TASKS: Final = 65


class Fleet:
    """One session's dealings with the fleet, on rank 0."""

    def __init__(self, settings: Settings) -> None:
        assert settings.fleet is not None
        self._settings, self.url = settings, settings.fleet
        self._answer: dict[str, Any] = {}
        self._place: Path | None = None
        self._passed_over: dict[str, str] = {}
        self._passes_over = False
        self._relied_on: set[str] = set()
        self.sample: Sample | None = None
        self.checks: list[FleetCheck] = []
        self._turn = FleetTurn(self.url)
        self._publishes = "" if settings.fleet_role == "write" else "no: the role is read"
        self._lack = location.lacking(
            location.parse(self.url), settings.fleet_credentials, os.environ
        )
        # Early: it is up by the time that the ranks have met, or was there before.
        self._worker = None if self._lack else waiting.taken() or client.Worker()

    def close(self) -> None:
        """End what is left at the session's end: a process that was not asked, a lease."""
        if self._worker is not None:
            self._worker.close()
        self._turn.free()

    def begin(self, options: Options, factors: Factors) -> None:
        """Have the process read what this session is going to ask for, if the ranks are alike."""
        if self._worker is not None:
            roots = Roots(options.settings, options.cache_root, options.engine_cache_root)
            announce(self._worker, factors, roots)

    def ask(self, job: Job) -> None:
        """Take the latest bundle of this identity as one more layer of the store; never raises."""
        try:
            self._answer = self._asked(job)
        except Exception as error:
            logger.exception("warmup-plugin: the fleet is not asked:")
            self._answer = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
        finally:
            if self._worker is not None:
                self._worker.close()
        self._say(job)

    @property
    def adopted(self) -> str:
        """Return in words what another host has tuned while this start waited; empty without it."""
        if self._turn.lease != "adopted":
            return ""
        return f"the fleet's bundle {self._answer['bundle'][:12]}"

    def may_wait(self, job: Job) -> bool:
        """Return whether it is to be asked who tunes, before this start does; asks nothing.

        A start with a budget is to serve soon: it waits for one other host's tuning, not for more.
        """
        if self.adopted and job.opened.budget_s:
            return False
        was_asked = self._answer.get("state", "failed") != "failed" and self._place is not None
        was_asked &= not self._passes_over
        return was_asked and job.store is not None and self._turn.may_ask

    def await_turn(self, job: Job, tasks: Sequence[str], until: float) -> None:
        """Wait until this start is to tune these tasks, or has the table of a host that did."""
        assert self._place is not None
        assert job.store is not None
        settings, seconds = self._settings, self._answer["seconds"]
        may_hold = settings.fleet_role == "write" and job.may_write
        request = {
            **self._request("turn", job, self._place, _PUBLISH_S),
            "timeout_s": _PUBLISH_REQUEST_S, "parent": os.getpid(), "engine": own_card().to_json(),
            "holder": f"process {os.getpid()} on {host_name()}" if may_hold else "",
            "beat_s": settings.fleet_beat_s, "bundle": self._answer.get("bundle", ""),
            "tasks": tasks[:_MOST_TASKS],
        }  # fmt: skip
        found = self._turn.ask(job, request, settings.fleet_wait_s - seconds, until)
        if found:
            self._answer = {**found, "seconds": seconds}
            job.store.layers = (*job.store.layers, Path(found["directory"]))

    def has_read(self, job: Job, parts: Sequence[CachedTable], union: CachedTable | None) -> None:
        """Know to which bundles the table is owed that rank 0 begins with."""
        self._relied_on = quarantine.relied_on(parts, union)
        number = 0 if job.opened.mode in REPLAYS else self._settings.fleet_spot_check
        if number and union is not None:
            from warmup_plugin.tuner.spot_check import Sample  # only where it is asked for

            self.sample = Sample(quarantine.winners(parts, union), number, job.ops.one_rank)

    def begins_to_serve(self, job: Job) -> None:
        """Note it before the forward runs a bundle's winners: they may end this start."""
        if job.may_write and (folder := notes_of(job)) is not None:
            for bundle in self._relied_on:
                quarantine.begin(folder, bundle, job.identity.digest, environment.driver())

    @property
    def has_sample(self) -> bool:
        """Return whether the forward has met winners of the fleet that are to be timed."""
        return self.sample is not None and bool(self.sample.tasks)

    def has_failed(self, job: Job, error: BaseException) -> None:
        """Take the notes back unless the session's failure may be the work of a winner.

        That is one of a forward, or the loss of a rank, before the last record.
        """
        is_forwards = error is job.trace.forward_error and isinstance(error, Exception)
        may_be = is_forwards or isinstance(error, ForwardError) or loss_in(error) is not None
        if job.trace.is_settled or not may_be:
            self.has_served()

    def has_served(self) -> None:
        """Take the notes back: what ends this start from now on is not the forward."""
        for bundle in self._relied_on:
            quarantine.take_back(bundle)

    def _asked(self, job: Job) -> dict[str, Any]:
        if job.store is None:
            return {"state": "failed", "reason": "this rank reads no tables in this session"}
        place = self._place = place_of(job)
        if (folder := notes_of(job)) is not None:
            self._passed_over = quarantine.passed_over(folder, environment.driver())
        if self._worker is None:
            answer: dict[str, Any] = {"state": "failed", "reason": self._lack}
        else:
            request = self._request("pull", job, place, self._settings.fleet_wait_s)
            began = time.monotonic()
            answer = self._worker.ask(request, self._settings.fleet_wait_s)
            answer["seconds"] = round(time.monotonic() - began, 4)
        if answer["state"] in ("failed", "refused"):
            self._use_kept(place / job.identity.digest, answer)
        if directory := answer.get("directory"):
            job.store.layers = (*job.store.layers, Path(directory))
        return answer

    def _use_kept(self, directory: Path, answer: dict[str, Any]) -> None:
        """Have a bundle of an earlier start used, where there is one that is not passed over."""
        whys = self._passed_over.items()
        here = [why for bundle, why in whys if (directory / f"bundle-{bundle}").exists()]
        self._passes_over = answer["reason"] in self._passed_over.values()
        if answer["state"] == "failed":
            self._passes_over = bool(here)
            answer["reason"] = "; ".join([answer["reason"], *here])
        kept = client.kept_directory(directory, self._passed_over)
        if kept is not None:
            answer["directory"] = str(kept)
            answer["reason"] += f"; {kept.name[:19]} of an earlier start is used"

    def _say(self, job: Job) -> None:
        state, reason = self._answer["state"], self._answer.get("reason", "")
        if state in ("failed", "refused"):
            job.warn(f"fleet {self.url}: {reason}")
            return
        bundle = str(self._answer.get("bundle", ""))[:12]
        what = f"{state} bundle {bundle}" if bundle else reason
        logger.info("warmup-plugin: fleet %s: %s (%.2f s)", self.url, what,
                    self._answer["seconds"])  # fmt: skip

    def told(self, job: Job, agreement: str, *, is_warm: bool) -> FleetAnswer:
        """Return what the receipt says; begin the publication that it speaks of."""
        self.has_served()
        turn = self._turn.told()
        publishes = self._publishes or self._publish(job, agreement, is_warm=is_warm)
        answer = self._answer or {"state": "failed", "reason": "it was not asked"}
        checks = msgspec.to_builtins(self.checks)
        whose = {"url": self.url, "role": self._settings.fleet_role, "publishes": publishes}
        return msgspec.convert({**answer, **whose, **turn, "checks": checks}, FleetAnswer)

    def _publish(self, job: Job, agreement: str, *, is_warm: bool) -> str:
        """Begin to give this start's table away; return what is going to happen."""
        directory = job.store.directory if job.may_write and job.store is not None else None
        why = self._why_not(job, agreement, is_warm=is_warm)
        if why or directory is None:
            return f"no: {why or 'this start keeps no table on disk'}"
        settings = self._settings
        after_s = settings.fleet_publish_after_s
        request = {
            **self._request("push", job, directory, _PUBLISH_S),
            "timeout_s": _PUBLISH_REQUEST_S, "parent": os.getpid(), "after_s": after_s,
            "health": settings.fleet_health, "health_limit_s": after_s + _HEALTH_S,
            "tasks": [row.task for row in job.trace.winners if row.reason][:_MOST_TASKS],
        }  # fmt: skip
        limit_s = after_s + (_HEALTH_S if settings.fleet_health else 0) + 2 * _PUBLISH_S
        holder = self._turn.handed_over()
        if why := client.publish(request, limit_s, self.url, holder):
            return f"no: {why}"
        page = f" and {settings.fleet_health} answers" if settings.fleet_health else ""
        return f"once the engine has lived for {after_s:g} s{page}"

    def _why_not(self, job: Job, agreement: str, *, is_warm: bool) -> str:
        """Return why this start's table is not to be given away, empty where it is."""
        if self._lack:
            return self._lack
        if agreement != "certified":
            return f"the agreement is {agreement}"
        if slower := sum(row.is_slower for row in self.checks):
            return f"{slower} of the fleet's winners are slower here than FlashInfer's default"
        if self._passes_over:  # united with it, this host's table would be one more that holds it
            return "this host passes the fleet's bundle over"
        is_all_given = is_warm or (bool(self.adopted) and not job.trace.winners)
        return "the fleet has all of it" if is_all_given and self._gave_all(job) else ""

    def _gave_all(self, job: Job) -> bool:
        """Return whether the fleet's bundle is all that has been read."""
        if self._answer["state"] not in ("fetched", "kept"):
            return False
        mine = self._answer["directory"]
        return all(row.path.startswith(mine) for row in job.trace.read)

    def _request(self, do: str, job: Job, place: Path, limit_s: float) -> dict[str, Any]:
        request = request_of(self._settings, do, job.identity.digest, place, limit_s)
        return {**request, "passed_over": self._passed_over if do != "push" else {}}
