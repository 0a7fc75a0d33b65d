# SPDX-License-Identifier: Apache-2.0
"""One engine tunes, its replicas wait: a file that says who tunes an identity's tasks now.

    journal/tuning.json     {"card": the holder's process, "token": ..., "host": ...}

Owns that file. An optimisation and no lock: where it cannot be written, or its holder is gone, both
engines tune and the store merges what they publish. A holder that cannot be seen from here (another
machine, another container) is alive as long as it touches the file; one that can be seen, as long
as its process runs. Never raises `OSError`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from warmup_plugin.files import make_directory
from warmup_plugin.liveness import ProcessCard, own_card, view

JOURNAL: Final = "journal"
_NAME: Final = "tuning.json"
_TOUCH_S: Final = 2.0
#: A holder that nobody sees and that has not touched its file for this long is gone.
_STALE_S: Final = 30.0
_MOST_BYTES: Final = 4096


@contextlib.contextmanager
def hold(directory: Path) -> Iterator[str]:
    """Try to become the one who tunes for this directory, for the length of the body.

    Yields an empty string where that succeeded or cannot be known, else who holds the lease.
    """
    path = directory / JOURNAL / _NAME
    token = secrets.token_hex(8)
    try:
        make_directory(path.parent)
        holder = _take(path, token)
    except OSError:
        yield ""  # no lease to be had here; tuning twice is only a waste
        return
    if holder:
        yield holder
        return
    stop = threading.Event()
    toucher = threading.Thread(target=_touch, args=(path, stop), name="warmup-lease", daemon=True)
    toucher.start()
    try:
        yield ""
    finally:
        stop.set()
        toucher.join(timeout=5.0)
        with contextlib.suppress(OSError):
            if _read(path).get("token") == token:
                path.unlink()


def _take(path: Path, token: str) -> str:
    """Write the lease unless a living process holds it; return the holder then."""
    body = {"card": own_card().to_json(), "token": token, "host": socket.gethostname()}
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(8):  # each round another process has come or gone in between
        with contextlib.suppress(FileExistsError):
            with os.fdopen(os.open(path, flags, 0o644), "w", encoding="ascii") as file:
                json.dump(body, file)
            return ""
        found = _read(path)
        if _is_alive(path, found):
            return f"process {found.get('card', {}).get('pid')} on {found.get('host')}"
        _remove(path, found)
    return ""


def _read(path: Path) -> dict[str, Any]:
    """Return the lease's content; an empty one for a file that is none or is not written yet."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(path: Path, found: dict[str, Any]) -> bool:
    with contextlib.suppress(TypeError):
        seen = view(ProcessCard(**found.get("card", {})))
        if seen != "unseen":
            return seen != "gone"
    try:
        return time.time() - path.stat().st_mtime < _STALE_S
    except OSError:
        return False


def _remove(path: Path, found: dict[str, Any]) -> None:
    """Take a dead holder's file away, unless somebody else has done so and put in another."""
    aside = path.with_name(f".{_NAME}.{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside).get("token") != found.get("token"):
        with contextlib.suppress(OSError):
            os.link(aside, path)  # a living one's: put it back
    aside.unlink()


def _touch(path: Path, stop: threading.Event) -> None:
    while not stop.wait(_TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)
