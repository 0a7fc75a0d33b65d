# SPDX-License-Identifier: Apache-2.0
"""A hardened pod: read-only root, no /tmp, a random user, 64 MB to write to, 32 processes.

Home and FlashInfer's workspace are in that tmpfs, since FlashInfer cannot be imported without.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.engines.embedded.config import resolve

HERE = Path(__file__).parent
pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]

#: In a mount namespace of its own.
POD = """
set -eu
mount --make-rprivate /
for place in $(awk '$2 !~ "^/(proc|sys|dev)" {print $2}' /proc/mounts | sort -u); do
    mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount -t tmpfs -o size=64m,mode=1777 tmpfs /mnt
mount -t tmpfs -o size=64m,mode=1777 tmpfs /dev/shm  # which every pod has
for place in /tmp /var/tmp; do
    if [ -d "$place" ]; then mount -t tmpfs -o ro,size=4k tmpfs "$place"; fi
done
cd /
if touch /mnt/../read-only-root-test 2>/dev/null; then echo "the root is writable" >&2; exit 9; fi
# Python may stand in a directory that is closed to others: reading is allowed, writing is not.
exec prlimit --nproc="$2" setpriv --reuid="$1" --regid="$1" --clear-groups \
    --inh-caps=-all,+dac_read_search --ambient-caps=+dac_read_search \
    --bounding-set=-all,+dac_read_search --no-new-privs \
    env -u TMPDIR -u XDG_CACHE_HOME HOME=/mnt FLASHINFER_WORKSPACE_BASE=/mnt "${@:3}"
"""
#: Whom the system does not know; a pod of another test, on the same machine, has another one, since
#: the processes of a user are counted together.
USER = str(100_000 + os.getpid() % 100_000)


def in_the_pod(
    command: list[str], told: Any, *, processes: int = 32, limit_s: float = 150.0
) -> str:
    """Run a command there, with so many processes and threads; return what it prints."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        **{name: value for name, value in os.environ.items() if name.startswith("WARMUP_TEST_")},
    }
    done = subprocess.run(
        ["unshare", "-m", "bash", "-c", POD, "pod", USER, str(processes), *command],  # noqa: S607  # the system's own
        input=json.dumps(told), env=environment, check=False, capture_output=True, text=True,
        timeout=limit_s,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_engine_comes_up_cold_and_warm() -> None:
    """As it does alone; all that is kept is in the memory that there is."""
    if reason := resolve(f"{HERE / 'test_places.py'}:can_confine")():
        pytest.skip(reason)
    nothing: dict[str, Any] = {"denial": "", "ranks": []}
    cells = [{**nothing, "side": "alone"}, {**nothing, "side": "ours"},
             {**nothing, "side": "ours", "warm": True}]  # fmt: skip
    out = in_the_pod([sys.executable, str(HERE / "denied.py"), "/mnt/run"], cells)
    alone, cold, warm = (json.loads(line)["ranks"] for line in out.splitlines())
    assert [rank["up"] for rank in alone] == [True, True], alone
    for start in (cold, warm):
        assert [rank["how"] for rank in start] == ["certified", "certified"], start
        assert all(rank["kept"] for rank in start)
    assert min(rank["timed"] for rank in cold) > 0
    assert [rank["timed"] for rank in warm] == [0, 0]
