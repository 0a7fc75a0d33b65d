# SPDX-License-Identifier: Apache-2.0
"""Places where engines have to live: new images below one override, containers with nothing."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.faults.conftest import Job, Start

pytestmark = [pytest.mark.multiprocess, pytest.mark.timeout(300)]


def test_a_new_image_below_one_override(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Another cuDNN is another identity: cold once, and the old image finds its own again."""
    job = make_job("one")

    def start_with(cudnn: str) -> Start:
        everyone = {"on": [0, 1]}
        job.faults = [
            {"do": "override", **everyone},
            {"do": "stamp", "cudnn_version": cudnn, **everyone},
        ]
        (found,) = start([job], tp=2)
        found.assert_agreed()
        return found

    assert start_with("91002").tasks_tuned() > 0
    assert start_with("91500").tasks_tuned() > 0
    start_with("91500").assert_warm()
    start_with("91002").assert_warm()
    tables = list(job.roots[0].glob("*/rank_tp0_pp0_dp0.json"))
    assert len(tables) == 2
    assert not list(job.roots[0].glob("*/foreign"))


def test_two_gpus_on_one_root(
    start: Callable[..., list[Start]], make_job: Callable[..., Job]
) -> None:
    """Each has a directory of its own, and is warm whoever started last."""
    job = make_job("one")

    def start_on(gpu: str) -> Start:
        job.faults = [{"do": "stamp", "gpu": gpu, "on": [0, 1]}]
        (found,) = start([job], tp=2)
        found.assert_agreed()
        return found

    assert start_on("NVIDIA H100").tasks_tuned() > 0
    assert start_on("NVIDIA H200").tasks_tuned() > 0
    start_on("NVIDIA H100").assert_warm()
    start_on("NVIDIA H200").assert_warm()
    tables = "flashinfer_autotune/*/*/*/rank_tp0_pp0_dp0.json"
    assert len(list(job.roots[0].glob(tables))) == 2
    assert not list(job.roots[0].rglob("foreign"))


# -- a container with nothing ----------------------------------------------------------------------

#: In a mount namespace of its own: the whole file system read-only, but for 64 MB of tmpfs.
CONFINE = """
set -eu
mount --make-rprivate /
mkdir -p "$1"
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$1"
for place in $(awk '$2 !~ "^/(proc|sys|dev)" {print $2}' /proc/mounts | sort -u); do
    [ "$place" = "$1" ] || mount -o remount,bind,ro "$place" 2>/dev/null || true
done
if touch /read-only-root-test 2>/dev/null; then echo "the root is still writable" >&2; exit 9; fi
shift
# Python may stand in a directory that is closed to others: reading is allowed, writing is not.
exec setpriv --reuid="$1" --regid="$1" --clear-groups --inh-caps=-all,+dac_read_search \
    --ambient-caps=+dac_read_search --bounding-set=-all,+dac_read_search --no-new-privs \
    env -u XDG_CACHE_HOME HOME=/nonexistent "${@:2}"
"""
ENGINE = """
import json, os, sys
from pathlib import Path
from warmup_plugin.engines.embedded import EngineConfig, launch
config = EngineConfig(
    tp=2, layers=2, hidden=32, ffn=32, vocab=32, timing="deterministic"
)
root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
results = launch(config, root=root, timeout_s=90.0)
print(json.dumps({
    "uid": os.getuid(),
    "timed": [result.report.tactics_timed for result in results],
    "agreement": [result.report.agreement for result in results],
    "warnings": list(results[0].report.warnings),
    "path": results[0].report.path,
    "tasks": [dict(result.report.tasks) for result in results],
}))
"""
UID = 48731


def can_confine() -> str:
    """Return why this machine cannot do it, or an empty string."""
    if os.geteuid() != 0:
        return "needs root, to mount in a namespace of its own"
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs tmpfs /mnt"],  # noqa: S607
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    return f"cannot mount: {tried.stderr.strip()}" if tried.returncode else ""


@contextlib.contextmanager
def open_to_all(path: Path) -> Iterator[Path]:
    """Let another user come here: pytest's own directories are closed."""
    closed = [p for p in (path, *path.parents) if p.stat().st_mode & 0o005 != 0o005]
    modes = {p: p.stat().st_mode for p in closed}
    for each in closed:
        each.chmod(modes[each] | 0o055)
    try:
        yield path
    finally:
        for each, mode in modes.items():
            each.chmod(mode)


def confined(scratch: Path, *arguments: str) -> dict[str, Any]:
    """Run the engine as a random user on a read-only root, without a home.

    HOME names a directory that is not there: without it FlashInfer cannot be imported by a user of
    whom the system knows nothing (it asks for the home even where its workspace is named).
    """
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(scratch),
        "FLASHINFER_WORKSPACE_BASE": str(scratch),
        "OMP_NUM_THREADS": "1",
    }
    engine = [sys.executable, "-c", ENGINE, *arguments]
    command = ["unshare", "-m", "sh", "-c", CONFINE, "confine", str(scratch), str(UID), *engine]
    done = subprocess.run(
        ["bash" if word == "sh" else word for word in command],
        env=environment, check=False, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert found["uid"] == UID
    return found


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory with a short name: Python's own socket below it may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="w-") as folder:
        yield Path(folder)


def test_a_read_only_root_without_home_for_a_random_user(short_path: Path) -> None:
    """The engine starts from memory; with a baked table it starts warm and writes nothing."""
    if reason := can_confine():
        pytest.skip(reason)
    baked, scratch = short_path / "baked", short_path / "scratch"
    scratch.mkdir()
    with open_to_all(short_path):
        cold = confined(scratch)
        assert cold["agreement"] == ["certified", "certified"]
        assert cold["timed"][0] > 0
        assert any("/nonexistent/" in text for text in cold["warnings"])
        bake = subprocess.run(
            [sys.executable, "-c", ENGINE, str(baked)],
            check=True, capture_output=True, timeout=150,
        )  # fmt: skip
        assert json.loads(bake.stdout.splitlines()[-1])["timed"][0] > 0
        for path in (baked, *baked.rglob("*")):  # as an image's files are
            path.chmod(0o755 if path.is_dir() else 0o644)
        before = {path: path.stat().st_mtime_ns for path in baked.rglob("*")}
        warm = confined(scratch, str(baked))
        assert warm["agreement"] == ["certified", "certified"]
        assert warm["timed"] == [0, 0]
        assert {path: path.stat().st_mtime_ns for path in baked.rglob("*")} == before
