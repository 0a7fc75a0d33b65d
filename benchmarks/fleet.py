# SPDX-License-Identifier: Apache-2.0
"""A warm start from the fleet against one from the local disk, over loopback.

    python benchmarks/fleet.py [--ranks 1 2] [--entries 856 10000] [--repeats 9] [--lead 2]

The fleet is moto's S3 server on this machine. ``fetched``: the host has nothing; ``kept``: it has
the bundle of an earlier start, and asks for the pointer only. Times are of the whole `warm_up`.
The process that asks begins ``--lead`` seconds before that, as it does while an engine loads its
model, which takes longer, and knows the identity by then; ``unknown``: it does not; ``at once``: it
begins with `warm_up`, as in a runner that does not say when it loads. All starts, those from disk
too, have these seconds.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from warmup_plugin.cli import main as command_line
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.tuner import kept_environment

RANK = Path(__file__).with_name("warm_start_rank.py")
SERVER = Path(__file__).parents[1] / "tests" / "fleet" / "moto_server.py"
#: Entries -> calls of ``choose_one``, buckets of each.
SHAPES: Final = {856: (107, 8), 10_000: (1_000, 10)}
TARGET: Final = 1.2
#: Name -> what its receipt says, what begins early, whether the host has nothing.
STARTS: Final = {
    "fetched": ("fetched", "reading", True),
    "kept": ("kept", "reading", False),
    "fetched, unknown": ("fetched", "process", True),
    "kept, unknown": ("kept", "process", False),
    "fetched at once": ("fetched", "", True),
    "kept at once": ("kept", "", False),
}


def run(num_ranks: int, **arguments: Any) -> list[dict[str, Any]]:
    """Start `warm_start_rank.start` in one fresh process per rank."""
    found: list[dict[str, Any]] = launch(
        EngineConfig(tp=num_ranks, timing="deterministic"),
        script=f"{RANK}:start", arguments=arguments, timeout_s=170.0,
    )  # fmt: skip
    return found


def whole_ms(ranks: list[dict[str, Any]], entries: int, state: str | None) -> float:
    """Return how long all ranks took, once it is clear that it was the start that is meant."""
    for rank in ranks:
        told = (rank["tasks"].get("from_cache"), rank["tactics_timed"], rank["agreement"])
        if told != (entries, 0, "certified"):
            raise SystemExit(f"not a warm start with {entries} entries: {told}, {rank}")
    if ranks[0]["fleet"].get("state") != state:
        raise SystemExit(f"not {state}: {ranks[0]['fleet']}")
    began = min(rank["marks"]["began"][0] for rank in ranks)
    return 1e3 * float(max(rank["marks"]["ended"][0] for rank in ranks) - began)


def measure(
    num_ranks: int, entries: int, repeats: int, lead_s: float, folder: Path
) -> dict[str, list[float]]:
    """Measure a start from disk and those of `STARTS`, by turns."""
    calls, buckets = SHAPES[entries]
    shape: dict[str, Any] = {"num_calls": calls, "num_buckets": buckets, "lead_s": lead_s}
    disk, empty, kept = folder / "disk", folder / "empty", folder / "kept"
    url = f"s3://tables/{secrets.token_hex(8)}"
    run(1, root=str(disk), **shape)
    if command_line(["--quiet", "fleet", "push", "--url", url, "--root", str(disk)]):
        raise SystemExit("nothing is published")
    run(num_ranks, root=str(kept), fleet=url, **shape)
    found: dict[str, list[float]] = {"disk": [], **{name: [] for name in STARTS}}
    for _ in range(repeats):
        found["disk"].append(whole_ms(run(num_ranks, root=str(disk), **shape), entries, None))
        for name, (state, early, is_empty) in STARTS.items():
            root = empty if is_empty else kept
            if is_empty:
                _forget_tables(disk, empty)
            ranks = run(num_ranks, root=str(root), fleet=url, **shape, early=early)
            found[name].append(whole_ms(ranks, entries, state))
    return found


def _forget_tables(disk: Path, empty: Path) -> None:
    """Leave a host what its first start has found out about it, and no table."""
    shutil.rmtree(empty, ignore_errors=True)
    for look in disk.rglob(kept_environment.FOLDER):
        shutil.copytree(look, empty / look.relative_to(disk))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all cells; return 1 where one misses the target."""
    parser = argparse.ArgumentParser(description="Warm from the fleet against warm from disk.")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--entries", type=int, nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--lead", type=float, default=2.0)
    given = parser.parse_args(argv)
    server = subprocess.Popen(
        [sys.executable, str(SERVER)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    os.environ.update(
        AWS_ENDPOINT_URL=server.stdout.readline().strip(), AWS_ALLOW_HTTP="true",
        AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", AWS_REGION="us-east-1",  # noqa: S106  # moto's
    )  # fmt: skip
    missed = 0
    print("ranks  entries  disk, ms  " + "  ".join(f"{name}, ms  ratio" for name in STARTS)
          + "   (fastest / median)")  # fmt: skip
    try:
        for entries in given.entries:
            for num_ranks in given.ranks:
                with tempfile.TemporaryDirectory(prefix="fleet-") as folder:
                    found = measure(num_ranks, entries, given.repeats, given.lead, Path(folder))
                print(line(num_ranks, entries, found), flush=True)
                missed += median(found["fetched"]) > TARGET * median(found["disk"])
    finally:
        server.kill()
        server.wait()
    verdict = f"missed in {missed} rows" if missed else "met"
    print(f"target, a median ratio of at most {TARGET} for what is fetched: {verdict}")
    return 1 if missed else 0


def line(num_ranks: int, entries: int, found: dict[str, list[float]]) -> str:
    """Return one row of the table."""
    both = {name: (min(values), median(values)) for name, values in found.items()}

    def ratio(name: str) -> str:
        return " / ".join(f"{a / b:.2f}" for a, b in zip(both[name], both["disk"], strict=True))

    cells = {name: f"{low:.0f} / {middle:.0f}" for name, (low, middle) in both.items()}
    columns = "  ".join(f"{cells[name]}  {ratio(name)}" for name in STARTS)
    return f"{num_ranks:5} {entries:8}  {cells['disk']}  {columns}"


if __name__ == "__main__":
    sys.exit(main())
