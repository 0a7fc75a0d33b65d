# SPDX-License-Identifier: Apache-2.0
"""One engine tunes, its replicas wait: a file that says who tunes an identity's tasks now.

    journal/tuning.json     {"card": the holder's process, "token": ..., "host": ...}

Owns that file. An optimisation and no lock: where it cannot be written, both engines tune and the
store merges what they publish. A holder that cannot be seen from here (another machine, another
container) is alive as long as it touches the file; one that can be seen, as long as its process
runs. Never raises `OSError`. Not promised: one holder, where the file system has no locks between
hosts and two of them take a dead one's place in the same instant.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from warmup_plugin.cache.files import make_directory, read_file
from warmup_plugin.cache.locks import locked
from warmup_plugin.cache.paths import JOURNAL
from warmup_plugin.runtime.process_info import ProcessCard, own_card, view
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.topology import host_name

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
        make_directory(path.parent, directory)
        holder = _take(path, token)
    except OSError:
        yield ""  # no lease to be had here; tuning twice is only a waste
        return
    if holder:
        yield holder
        return
    stop = threading.Event()
    toucher = threading.Thread(
        target=_touch, args=(path, token, stop), name="warmup-lease", daemon=True
    )
    with contextlib.suppress(RuntimeError):  # no thread: who cannot see this process takes over
        toucher.start()
    try:
        yield ""
    finally:
        stop.set()
        if toucher.ident is not None:
            toucher.join(timeout=5.0)
        with contextlib.suppress(OSError), locked(path.parent):
            if _read(path).get("token") == token:
                path.unlink()


def holder(directory: Path) -> str:
    """Return who tunes for this directory now, an empty string where no engine does."""
    path = directory / JOURNAL / _NAME
    found = _read(path)
    return _said(found) if _is_alive(path, found) else ""


def _take(path: Path, token: str) -> str:
    """Write the lease unless a living process holds it; return the holder then."""
    with locked(path.parent):  # else two could take a dead holder's place, each after the other
        found = _read(path)
        if _is_alive(path, found):
            return _said(found)
        path.unlink(missing_ok=True)
        try:
            _write(path, {"card": own_card().to_json(), "token": token})
        except FileExistsError:  # no lock here, and somebody was faster
            return _said(_read(path))
    return ""


def _write(path: Path, lease: dict[str, Any]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o644), "w", encoding="ascii") as file:
        try:
            json.dump({**lease, "host": host_name()}, file)
            file.flush()
        except OSError:
            path.unlink()
            raise


def _said(found: dict[str, Any]) -> str:
    card = found.get("card")
    pid = card.get("pid") if isinstance(card, dict) else None
    return f"process {pid or 'unknown'} on {found.get('host', 'an unknown host')}"


def _read(path: Path) -> dict[str, Any]:
    """Return the lease's content; an empty one for a file that is none or is not written yet."""
    content = read_file(path, _MOST_BYTES, path.parent).content
    if isinstance(content, Miss):
        return {}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_alive(path: Path, found: dict[str, Any]) -> bool:
    """Return whether an engine holds the lease; none does where there is no file."""
    try:
        status = path.lstat()
    except OSError:
        return False
    if not stat.S_ISREG(status.st_mode):
        return False
    age_s = time.time() - status.st_mtime
    with contextlib.suppress(TypeError):
        seen = view(ProcessCard(**found.get("card", {})))
        if seen != "unseen":
            return seen != "gone"
    return age_s < _STALE_S


def _touch(path: Path, token: str, stop: threading.Event) -> None:
    while not stop.wait(_TOUCH_S):
        with contextlib.suppress(OSError):
            if _read(path).get("token") == token:
                os.utime(path)
