# SPDX-License-Identifier: Apache-2.0
"""A host of the publication tests, as a process that publishes or reads until it is ended.

    python hosts.py publish DIRECTORY NAME COUNT ACKNOWLEDGED
    python hosts.py read PLACE STOP

The fleet stands in the environment. Each acknowledged task is a line in a file of the host's own.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # after all else: the package stays the wheel's

from tests.fleet.tables import LIMIT, WHOSE, write
from warmup_plugin.fleet.objects import Objects
from warmup_plugin.fleet.pull import pull
from warmup_plugin.fleet.push import push


def main() -> None:
    """Do what the arguments say."""
    what, *words = sys.argv[1:]
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


if __name__ == "__main__":
    main()
