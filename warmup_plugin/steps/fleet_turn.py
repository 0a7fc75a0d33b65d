# SPDX-License-Identifier: Apache-2.0
"""Whose turn it is to tune for the fleet: asked on rank 0, between two rounds of step 4.

Owns the wait for a host that tunes already, which `replica_wait_s` bounds, and what the receipt
says of it. The first answer has what is left of `fleet_wait_s`. A lease that cannot be had costs a
second tuning and a warning, never a start; one that is held costs this process nothing.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from warmup_plugin.errors import WarmupError
from warmup_plugin.fleet.turn_process import TurnProcess
from warmup_plugin.observability.report_rows import Wait
from warmup_plugin.runtime.polling import wait_until

if TYPE_CHECKING:
    from warmup_plugin.steps.context import Job

logger = logging.getLogger("warmup_plugin")

#: held: this start tunes for the fleet. adopted: it has taken what another host has published
#: meanwhile. free: no host tunes, and this one may not write. tried: another host has had no result
#: for the tasks that are left. over: it waits no longer. failed: there is no lease to be had. lost:
#: another host has taken it over.
Lease = Literal["", "held", "adopted", "free", "tried", "over", "failed", "lost"]
#: After these it is asked for; another host's table may leave tasks to tune.
_AGAIN: Final = ("", "adopted")


class FleetTurn:
    """One start's part in it. ``lease``: what has become of that, empty before it is asked for."""

    def __init__(self, url: str) -> None:
        self.lease: Lease = ""
        self._url = url
        self._process: TurnProcess | None = None
        self._reason = self._holder = ""
        self._seconds, self._has_waited = 0.0, False

    @property
    def may_ask(self) -> bool:
        """Return whether the lease is to be asked for, once more after another host's table."""
        return self.lease in _AGAIN

    def ask(
        self, job: Job, request: dict[str, Any], answer_s: float, until: float
    ) -> dict[str, Any]:
        """Wait for the turn, or for a table that this start does not know; return that.

        ``answer_s``: for all but the wait for a host that lives, which ends at ``until``.
        """
        began, self._has_waited = time.monotonic(), False
        self._process = TurnProcess(request)
        try:
            found = self._waited(job, answer_s, until)
        except WarmupError:  # the session is over
            raise
        except Exception as error:
            logger.exception("warmup-plugin: no turn is waited for:")
            found = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:300]}
        seconds = round(time.monotonic() - began, 4)
        if self._has_waited:
            self._seconds += seconds
            who = f"{self._holder}, for the fleet"
            job.trace.waited.append(Wait("wait", (0,), who, seconds))
        return self._taken(job, found, is_told=bool(request["holder"] or self._holder))

    def _waited(self, job: Job, answer_s: float, until: float) -> dict[str, Any]:
        process, found, is_heard = self._process, dict[str, Any](), False
        assert process is not None

        def is_over() -> bool:
            nonlocal found, is_heard
            while (line := process.line()) is not None:
                self._holder = line.get("holder") or self._holder
                self._has_waited |= line["state"] == "waits"
                is_heard = line["state"] in ("waits", "fetches")
                if not is_heard:
                    found = line
                    return True
            job.coordinator.note("wait", f"for {self._holder or 'the fleet'} to tune the same")
            return False

        def look(waited_s: float) -> None:
            nonlocal found
            if not is_heard and waited_s > answer_s:
                found = {"state": "failed", "reason": f"no answer within {answer_s:.1f} s"}
            elif is_heard and time.monotonic() > until:
                found = {"state": "over", "reason": "it was waited for as long as is allowed"}
            if found:
                raise TimeoutError

        try:
            wait_until(is_over, look)
        except TimeoutError:
            self.free()
        return found

    def _taken(self, job: Job, found: dict[str, Any], *, is_told: bool) -> dict[str, Any]:
        """Note how the wait has ended; return the bundle, empty without one.

        ``is_told``: it is a warning that this start tunes by itself; a reader without a host to
        wait for does so in any case.
        """
        state = found["state"]
        self._reason = str(found.get("reason", ""))
        self.lease = "adopted" if state in ("fetched", "kept") else state
        if state != "held":
            self.free()
        if found.get("is_takeover"):
            self._reason = f"{self._holder} has renewed it no longer"
        if is_told and state in ("failed", "over"):
            job.warn(f"fleet {self._url}: this start tunes by itself: {self._said()}")
        else:
            logger.info("warmup-plugin: fleet %s: %s", self._url, self._said())
        return found if self.lease == "adopted" else {}

    def _said(self) -> str:
        waited = f" after {self._seconds:.1f} s behind {self._holder}" if self._holder else ""
        reason = f": {self._reason}" if self._reason else ""
        return f"lease {self.lease}{waited}{reason}"

    def told(self) -> dict[str, Any]:
        """Return what the receipt says."""
        if self._process is not None:
            while (line := self._process.line()) is not None:
                if self.lease == "held" and line["state"] in ("lost", "failed"):
                    self.lease, self._reason = "lost", str(line.get("reason", ""))
                if line["state"] != "lost":  # its process has ended
                    self._process = None
                    break
        return {
            "lease": self.lease, "lease_reason": self._reason, "holder": self._holder,
            "waited": round(self._seconds, 4),
        }  # fmt: skip

    def handed_over(self) -> TurnProcess | None:
        """Return the process that holds the lease, for the publication that frees it."""
        process, self._process = self._process, None
        return process

    def free(self) -> None:
        """Have the lease freed, where it is held and no publication is to free it."""
        if self._process is not None:
            self._process.free()
            self._process = None
