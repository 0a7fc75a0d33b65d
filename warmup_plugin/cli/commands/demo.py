# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin demo`: tune once, start warm, on this machine and without a GPU.

Owns the options of the demo. Its exit code is its verdict. Settings from the environment hold here
as everywhere; a layout that does not divide is wrong usage.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from warmup_plugin.cli import output
from warmup_plugin.cli.demo_clauses import NODES, prove
from warmup_plugin.cli.demo_progress import ticking
from warmup_plugin.cli.demo_run import start_twice
from warmup_plugin.cli.demo_text import print_starts
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.signals import ended_by_signals
from warmup_plugin.engines.embedded import EngineConfig
from warmup_plugin.settings import Settings, Strategy

HELP = "start a small engine cold, then warm, and compare; needs no GPU"
DESCRIPTION = """\
Start a small engine on this machine's CPU, one process per rank: cold, then
warm in new processes. FlashInfer's tuner is the real one; only the kernels are
small. Prints both starts side by side and says whether the second one had
anything left to time. Without sizes there are four ranks, TP2 x PP2. Needs
torch and FlashInfer installed."""
EXAMPLES = """\
examples:
  warmup-plugin demo                          four ranks, TP2 x PP2
  warmup-plugin demo --dp 2 --ep 2            two ranks that share the experts
  warmup-plugin demo --tp 2 --root /tmp/t     keep the tables; again: all warm
  warmup-plugin demo --tp 2 --root /tmp/t --tokens 300
                                              another config: reuses what it can
  warmup-plugin demo --tp 2 --strategy per_rank
                                              shares and keeps nothing
  warmup-plugin demo --design                 who tunes, sends, writes, waits

exit code: 0 if every line of the verdict says yes, 1 if one says no
"""

_AXES = {
    "tp": "ranks in tensor parallel",
    "pp": "ranks in pipeline parallel",
    "dp": "ranks in data parallel",
    "ep": "ranks that share the experts, of tp x dp",
}
#: Where no size is given.
_DEFAULT = {"tp": 2, "pp": 2}
#: They all run on this machine.
_MOST_RANKS = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    for axis, meaning in _AXES.items():
        default = "" if axis in _DEFAULT else " (default: 1)"
        parser.add_argument(f"--{axis}", type=int, metavar="N", help=f"{meaning}{default}")
    parser.add_argument(
        "--tokens", type=int, metavar="N", help="batch of the warm-up's forward (default: 100)"
    )
    parser.add_argument(
        "--strategy", choices=get_args(Strategy), help="who tunes what (default: sharded)"
    )
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="cache root to use (default: a temporary one)"
    )
    parser.add_argument("--keep", action="store_true", help="keep the temporary cache root")
    parser.add_argument(
        "--design", action="store_true",
        help="also start once with each strategy, and prove the clauses of the design",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, tokens: int | None, strategy: str | None, root: Path | None, keep: bool, design: bool,
    json: bool, **sizes: int | None,
) -> int:  # fmt: skip
    """Run both starts, print them, return the verdict."""
    if Settings.from_env().mode == "off":  # a malformed one is told here too, by this process
        message = "WARMUP_PLUGIN_MODE is 'off': must be another mode, or there is nothing to show"
        raise CommandError(message, code=CommandError.USAGE)
    env = {"WARMUP_PLUGIN_STRATEGY": strategy} if strategy else {}
    config = layout({axis: size for axis, size in sizes.items() if size is not None}, tokens)
    if design and config.world_size < NODES:
        message = (
            "--design with one rank: must be two ranks or more, or there is nobody to share with"
        )
        raise CommandError(message, code=CommandError.USAGE)
    with ended_by_signals():
        found = start_twice(config, root=root, keep=keep, env=env, watch=ticking)
        if design:
            found = replace(found, clauses=prove(config, watch=ticking))
    if json:
        output.print_json(found.document())
    else:
        print_starts(output.console(folded=True), found)
    return 0 if found.holds else CommandError.FAILED


def layout(sizes: Mapping[str, Any], tokens: int | None) -> EngineConfig:
    """Return the engine of these sizes, of the default ones if there are none.

    Raises:
        CommandError: sizes that do not divide what they split, or too many ranks.
    """
    try:
        config = EngineConfig(**(sizes or _DEFAULT))
        config = config if tokens is None else replace(config, tokens=tokens)
    except ValueError as error:
        raise CommandError(str(error), code=CommandError.USAGE) from None
    if config.world_size > _MOST_RANKS:
        message = f"tp*pp*dp={config.world_size}: must be at most {_MOST_RANKS} ranks"
        raise CommandError(message, code=CommandError.USAGE)
    return config
