# SPDX-License-Identifier: Apache-2.0
"""What a rank does in `test_strangers.py`: a start whose store's port a stranger is told.

A stranger may look at the ports of a machine; here rank 0 says which one it is, and begins once the
stranger is there, so that a start of a second is long enough to be met.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from warmup_plugin.coordination import coordinator, opening
from warmup_plugin.coordination.kv_client import StoreLink
from warmup_plugin.engines.embedded.worker import Engine, warm_up_rank
from warmup_plugin.errors import WarmupError

_MOST_S = 40.0


def tell_port(folder: Path) -> None:
    """Let rank 0 tell the port of its store, before any rank has left a word there."""
    settled = opening.Opening.settled

    def telling(self: opening.Opening, usable: Any) -> StoreLink | None:
        link = settled(self, usable)
        if link is not None and link.rank == 0:
            (folder / "part").write_text(str(link.port))
            (folder / "part").rename(folder / "port")
        until = time.monotonic() + _MOST_S
        while not (folder / "here").exists() and time.monotonic() < until:
            time.sleep(0.002)
        return link

    opening.Opening.settled = telling  # type: ignore[method-assign]  # of this process


def rest_at_meetings(seconds: float) -> None:
    """Let each meeting take a while, so that the stranger is at each of its keys."""
    meet = coordinator.Coordinator.meet

    def resting(self: Any, *args: Any) -> Any:
        time.sleep(seconds)
        return meet(self, *args)

    coordinator.Coordinator.meet = resting  # type: ignore[assignment,method-assign]  # of this process


def lose_claims() -> None:
    """Have each claim of a task be taken away as soon as it is there."""
    claim = StoreLink.claim

    def losing(self: StoreLink, key: str) -> bool:
        is_first = claim(self, key)
        if key.startswith("take/queue"):
            assert self.store is not None
            self.store.delete_key(self.prefix + key)
        return is_first

    StoreLink.claim = losing  # type: ignore[method-assign]  # of this process


def listening() -> list[str]:
    """Return where this process listens, as the kernel writes it."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            inodes.add(str(descriptor.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in inodes:
                found.append(columns[1])
    return found


def start(
    engine: Engine, folder: str = "", rests_s: float = 0.0, *, loses_claims: bool = False
) -> dict[str, Any]:
    """Warm up; return what came of it, whatever that is, and where this rank has listened."""
    if folder:
        tell_port(Path(folder))
    if loses_claims:
        lose_claims()
    rest_at_meetings(rests_s)
    before, during = set(listening()), set[str]()
    forward = engine.forward

    def looking() -> Any:
        during.update(listening())
        return forward()

    vars(engine)["forward"] = looking
    began = time.monotonic()
    found: dict[str, Any] = {"error": "", "agreement": "", "warnings": [], "timed": -1}
    try:
        report = warm_up_rank(engine).report
        found |= {
            "agreement": report.agreement, "warnings": list(report.warnings),
            "timed": report.tactics_timed, "certificate": report.certificate,
            "met_on": report.met_on, "missing": report.tasks.get("default", 0),
        }  # fmt: skip
    except WarmupError as error:
        found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = time.monotonic() - began
    found["listens"] = sorted(during - before)
    return found
