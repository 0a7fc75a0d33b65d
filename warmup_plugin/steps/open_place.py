# SPDX-License-Identifier: Apache-2.0
"""The files of a session: its directory, its journal, the record of its look at the environment.

Owns which rank may write where. Without a directory that may be used, a session keeps nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from warmup_plugin.cache.paths import Placement, resolve
from warmup_plugin.cache.store import Store, unsafe
from warmup_plugin.coordination.decisions import OpenDecision
from warmup_plugin.errors import PlacementError
from warmup_plugin.steps.context import Files, Job
from warmup_plugin.steps.options import Options
from warmup_plugin.tuner import compat, environment, environment_stamp

if TYPE_CHECKING:
    from warmup_plugin.cache.journal import Journal
    from warmup_plugin.steps.fleet_ahead import Roots


def keep_look(job: Job) -> None:
    """Keep this node's look for its next start: its first rank does, after all else."""
    options = job.options
    folder = environment_stamp.folder_of(
        options.settings, options.cache_root, options.engine_cache_root
    )
    if (
        job.opened.mode == "on" and job.store is not None and job.files.directory is not None
        and folder is not None and folder.is_dir() and not environment_stamp.kept()
    ):  # fmt: skip
        environment_stamp.keep_later(folder)


def place(
    options: Options, opened: OpenDecision, identity: str, *, rank: int, stamp: Mapping[str, str]
) -> Files:
    """Find the directory of an identity; without one that may be used, memory only.

    The first rank of each node gets its tables. Every rank keeps what it finds out, whichever
    writes the table in the end.
    """
    settings, shares = options.settings, opened.go == "share"
    found, layers, lack = resolved(options, identity)
    directory, root = (found.directory, found.root) if found else (None, None)
    is_safe = directory is not None and not unsafe(directory, root or directory, settings)
    usable = directory if is_safe else None
    keeps = shares and opened.mode == "on"
    journal = partial(_journal, usable if keeps else None, f"{opened.session}.{rank}", stamp)
    files = Files(journal, found, usable, lack=lack)
    if shares and rank in opened.writers:
        files = replace(files, store=Store(directory, settings, root=root, layers=layers))
    return files


def _journal(directory: Path | None, name: str, stamp: Mapping[str, str]) -> Journal:
    """Return this rank's journal; without a directory what it is told is forgotten."""
    from warmup_plugin.cache.journal import Journal  # a warm start has nothing to tell it

    return Journal(directory, name, driver=environment.driver(), stamp=stamp)


def resolved(options: Options | Roots, identity: str) -> tuple[Placement | None, list[Path], str]:
    """Return where an identity's tables lie, its directories in the layers, and what has none."""
    roots: dict[str, Any] = {
        "argument": options.cache_root, "engine_root": options.engine_cache_root,
    }  # fmt: skip
    parts: dict[str, Any] = {
        "version": compat.version(), "arch": environment.architecture(), "environ": os.environ,
    }  # fmt: skip
    found = None
    try:
        found = resolve(options.settings, identity, **roots, **parts)
        layers = [
            resolve(options.settings, identity, argument=layer, **parts).directory
            for layer in options.settings.layers
        ]
    except PlacementError as error:
        return found, [], str(error)
    return found, layers, ""
