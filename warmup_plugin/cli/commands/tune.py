# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin tune`: an engine's warm-up ahead of a rollout, and its tables in a file.

Owns the options, and where the tables go: a file that `unpack` takes, or a cache root. What runs
the ranks, here or on a Ray cluster, is beside it.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from warmup_plugin.cache.archive import read
from warmup_plugin.cli import archive
from warmup_plugin.cli.commands import pack, unpack
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.places import Root, absolute
from warmup_plugin.cli.signals import ended_by_signals
from warmup_plugin.cli.tuning import TuningJob, tune_here
from warmup_plugin.settings import Settings

HELP = "run an engine's warm-up ahead of a rollout, here or on a Ray cluster; keep its tables"
DESCRIPTION = """\
Run a command whose warm-up tunes, and put the tables that it leaves into one
file, or into a cache root. The command is one that ends by itself, or a server,
which is ended once the page of --ready answers. With --ranks it is run once for
each rank, with the variables that torchrun sets. With --ray the ranks are run
on a Ray cluster, which has the GPUs, finds room for them and tries again."""
EXAMPLES = """\
examples:
  warmup-plugin tune -o tables.tar --ready http://127.0.0.1:8000/health -- \\
      vllm serve my/model --tensor-parallel-size 8
  warmup-plugin tune -o tables.tar --ranks 2 -- python my_runner.py
  warmup-plugin tune -o tables.tar --ray auto --gpus 8 \\
      --ready http://127.0.0.1:8000/health -- vllm serve my/model -tp 8
  warmup-plugin tune -o tables.tar --ray auto --ranks 16 --place spread -- \\
      python -m my_runner

exit code: 0 if the tables are there and complete, 1 if not
"""
_PLACES = ("pack", "spread")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("command", metavar="COMMAND", nargs="+", help="what to run, after --")
    parser.add_argument(
        "-o", "--output", metavar="PATH", type=Path, required=True,
        help="the file to write, or a directory: a cache root to put the tables into",
    )  # fmt: skip
    parser.add_argument(
        "--ready", metavar="URL", default="", help="the command is a server, ready once this is 200"
    )
    parser.add_argument(
        "--ranks", metavar="N", type=int, default=1,
        help="the number of ranks; the command is run once for each (default: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--limit", metavar="S", type=float, default=TuningJob.limit_s,
        help=f"seconds for the command (default: {TuningJob.limit_s:g})",
    )  # fmt: skip
    parser.add_argument("--ray", metavar="ADDRESS", default="", help="auto, or that of a cluster")
    parser.add_argument(
        "--gpus", metavar="N", type=int, default=1, help="with --ray: GPUs of a rank (default: 1)"
    )
    parser.add_argument(
        "--place", choices=_PLACES, default=_PLACES[0],
        help="with --ray: all ranks on one node, or over several (default: pack)",
    )  # fmt: skip
    parser.add_argument(
        "--wait", metavar="S", type=float, default=600.0,
        help="with --ray: seconds to wait for room (default: 600)",
    )  # fmt: skip
    parser.add_argument(
        "--retries", metavar="N", type=int, default=1,
        help="with --ray: how often to try again after a failure (default: 1)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, command: list[str], output: Path, ready: str, ranks: int, limit: float, ray: str, gpus: int,
    place: str, wait: float, retries: int, json: bool,
) -> int:  # fmt: skip
    """Run the ranks, put the tables where they are wanted, and print what they are."""
    settings = Settings.from_env()
    if settings.mode != "on":
        message = f"WARMUP_PLUGIN_MODE is '{settings.mode}': must be on, or nothing is tuned"
        raise CommandError(message, code=CommandError.USAGE)
    for name, number, least in (("ranks", ranks, 1), ("gpus", gpus, 0), ("retries", retries, 0)):
        if number < least:
            message = f"--{name} {number}: must be at least {least}"
            raise CommandError(message, code=CommandError.USAGE)
    job = TuningJob(tuple(command), ranks, ready, limit)
    with ended_by_signals():
        if ray:
            from warmup_plugin.cli.tuning_on_ray import Wanted, tune_there

            data = tune_there(job, ray, Wanted(gpus, place, wait, retries))
        else:
            data = tune_here(job)
    files = list(read(io.BytesIO(data), settings.table_bytes))
    if output.is_dir():
        root = Root(absolute(output), "--output", "root")
        unpack.unpack(files, root, settings, replace=True, dry_run=False)
    else:
        archive.write_whole(output, data)
    pack.tell(output, data, files, as_json=json, err=False)
    return 0
