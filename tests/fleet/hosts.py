# SPDX-License-Identifier: Apache-2.0
"""A host of the tests without an engine, as a process that does what one does with the fleet.

    python hosts.py publish DIRECTORY NAME COUNT ACKNOWLEDGED
    python hosts.py read PLACE STOP
    python hosts.py start DIRECTORY BEAT_S GO

The fleet stands in the environment. Each acknowledged task is a line in a file of the host's own. A
host that starts says in lines of JSON what its start comes to; it tunes until GO is there.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.fleet.tables import LIMIT, WHOSE, write
from warmup_plugin.fleet.client import Worker
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pull import pull
from warmup_plugin.fleet.push import push
from warmup_plugin.fleet.turn_process import TurnProcess
from warmup_plugin.runtime.process_info import own_card


def main() -> None:
    """Do what the arguments say."""
    what, *words = sys.argv[1:]
    if what == "start":
        _start(Path(words[0]), float(words[1]), Path(words[2]))
        return
    objects = Objects(os.environ["WARMUP_PLUGIN_FLEET"], "given", timeout_s=30, writes=True)
    if what == "read":
        _read(objects, Path(words[0]), Path(words[1]))
    else:
        _publish(objects, Path(words[0]), words[1], int(words[2]), Path(words[3]))


def _publish(objects: Objects, directory: Path, name: str, count: int, log: Path) -> None:
    with log.open("a") as acknowledged:
        for number in range(count):
            write(directory, [f"{name}.{number}"])
            done = push(objects, WHOSE, directory, LIMIT)
            assert done.state in ("published", "unchanged"), done
            acknowledged.write(f"{name}.{number}\n")
            acknowledged.flush()


def _read(objects: Objects, place: Path, stop: Path) -> None:
    """Pull again and again; say how often, and every answer that no reader may get."""
    count, bad = 0, []
    while not stop.exists():
        found = pull(objects, WHOSE, place, LIMIT)
        count += 1
        if found.state not in ("fetched", "kept", "absent"):
            bad.append([found.state, found.reason])
    print(json.dumps({"reads": count, "bad": bad}))  # noqa: T201  # the answer


def request(do: str, place: Path, **more: Any) -> dict[str, Any]:
    """Return what a start asks of its process."""
    return {
        "do": do, "url": os.environ["WARMUP_PLUGIN_FLEET"], "credentials": "given",
        "limit_s": 120.0, "timeout_s": 60.0, "table_bytes": LIMIT, "whose": list(WHOSE),
        "place": str(place), **more,
    }  # fmt: skip


def turn_request(place: Path, beat_s: float, **more: Any) -> dict[str, Any]:
    """Return how a start of this process asks for the turn to tune."""
    return request(
        "turn", place, beat_s=beat_s, holder=f"process {os.getpid()}", parent=os.getpid(),
        engine=own_card().to_json(), **more,
    )  # fmt: skip


def _start(root: Path, beat_s: float, go: Path) -> None:
    """Start as an engine would: pull, wait for the turn, tune and publish, or adopt."""
    place = root / "fleet"
    found = Worker().ask(request("pull", place), 120.0)
    if found["state"] != "absent":
        _say(found)
        return
    turn = TurnProcess(turn_request(place, beat_s))
    while (line := turn.line(600.0)) is not None:
        _say(line)
        if line["state"] == "held":
            while not go.exists():
                time.sleep(0.05)
            write(root / "tables", ["x", "y"], tactic=os.getpid() % 7)
            _say(turn.ask(request("push", root / "tables", parent=os.getpid()), 120.0))
            return
        if line["state"] not in ("waits", "fetches"):
            turn.free()
            return


def _say(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)  # noqa: T201  # the answer


if __name__ == "__main__":
    main()
