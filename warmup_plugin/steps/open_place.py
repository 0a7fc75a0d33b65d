# SPDX-License-Identifier: Apache-2.0
"""The files of a session: its directory, its journal, the record of its look at the environment.

Owns which rank may write where. Without a directory that may be used, a session keeps nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from warmup_plugin.cache.journal import Journal
from warmup_plugin.cache.paths import resolve
from warmup_plugin.cache.store import Store, unsafe
from warmup_plugin.errors import PlacementError
from warmup_plugin.steps.context import Job
from warmup_plugin.tuner import compat, environment, environment_stamp


def keep_look(job: Job) -> None:
    """Keep this node's look for its next start: its first rank does, after all else."""
    options = job.options
    folder = environment_stamp.folder_of(
        options.settings, options.cache_root, options.engine_cache_root
    )
    if (
        job.opened.mode == "on" and job.store is not None and job.directory is not None
        and folder is not None and folder.is_dir() and not environment_stamp.kept()
    ):  # fmt: skip
        environment_stamp.keep_later(folder)


def place(job: Job) -> None:
    """Find the directory, and hand it to the first rank of each node; without one, memory only."""
    options, directory, root, layers = job.options, None, None, list[Path]()
    roots: dict[str, Any] = {
        "argument": options.cache_root, "engine_root": options.engine_cache_root,
    }  # fmt: skip
    parts: dict[str, Any] = {
        "version": compat.version(), "arch": environment.architecture(), "environ": os.environ,
    }  # fmt: skip
    try:
        job.placement = resolve(options.settings, job.identity.digest, **roots, **parts)
        directory, root = job.placement.directory, job.placement.root
        layers = [
            resolve(options.settings, job.identity.digest, argument=layer, **parts).directory
            for layer in options.settings.layers
        ]
    except PlacementError as error:
        job.warn(f"memory only: {error}")
    if directory is not None and not unsafe(directory, root or directory, options.settings):
        job.directory = directory
    if job.shares and job.coordinator.rank in job.opened.writers:
        job.store = Store(directory, options.settings, root=root, layers=layers)


def open_journal(job: Job) -> None:
    """Let this rank keep what it finds out, whichever rank writes the table in the end."""
    if job.shares and job.opened.mode == "on" and job.directory is not None:
        job.journal = Journal(
            job.directory, f"{job.opened.session}.{job.coordinator.rank}",
            driver=environment.driver(), stamp=job.stamp,
        )  # fmt: skip
        job.stack.callback(job.journal.close)
