# SPDX-License-Identifier: Apache-2.0
"""Where a start keeps what it has of the fleet: bundles, and notes of which starts serve them.

Owns these places: below the cache root; bundles in a temporary folder where nothing may be written.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from warmup_plugin.cache.files import read_file, takes_files
from warmup_plugin.cache.store import unsafe
from warmup_plugin.fleet import quarantine
from warmup_plugin.steps.open_place import resolved

if TYPE_CHECKING:
    from warmup_plugin.settings import Settings
    from warmup_plugin.steps.context import Job
    from warmup_plugin.steps.fleet_ahead import Roots

#: Of a key's file.
_MOST_BYTES: Final = 1 << 16


def place_of(job: Job) -> Path:
    """Return where bundles of this start are put: kept for the next one where that is allowed."""
    root = job.files.placement.root if job.files.placement else None
    if root is not None and job.may_write and job.files.directory is not None:
        place = root / quarantine.PLACE / _trust(job.options.settings)
        if takes_files(place) and not unsafe(place, root, job.options.settings):
            return place
    folder = tempfile.mkdtemp(prefix="warmup-fleet-")
    job.stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def foreseen_place(roots: Roots, identity: str) -> Path | None:
    """Return where an earlier start of this host will have put its bundles, None without a root.

    Nothing is said of whether it may be used.
    """
    found, _, _ = resolved(roots, identity)
    return found.root / quarantine.PLACE / _trust(roots.settings) if found else None


def notes_of(job: Job) -> Path | None:
    """Return where this host notes which starts serve a bundle; None without a cache root."""
    if job.files.placement is None or job.files.directory is None:
        return None
    return quarantine.folder_of(job.files.placement.root)


def _trust(settings: Settings) -> str:
    """Return the folder of bundles that these keys allow: others' are not found there.

    So what an earlier start has left is used without the fleet only under the keys of that start.
    """
    paths = [*settings.fleet_keys, *filter(None, [settings.fleet_signing_key])]
    if not paths:
        return "any"
    found = hashlib.sha256()
    for path in paths:
        content = read_file(path, _MOST_BYTES).content
        found.update(content if isinstance(content, bytes) else b"unreadable")
    return f"keys-{found.hexdigest()[:16]}"
