# SPDX-License-Identifier: Apache-2.0
"""The engine's side of the fleet: a process that is begun early, asked once, and always ended.

Owns that process and its bounds: it begins while the model is loaded (`waiting.py`), or while the
ranks meet, is asked when the identity is known, and is killed when its time is up, with all that it
waits for: a name server, a handshake, a body that trickles in. Imports nothing but the standard
library. What goes wrong is an answer with a reason, never an exception.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from warmup_plugin.fleet.turn_process import TurnProcess

logger = logging.getLogger("warmup_plugin")

#: On the path of the engine; without `site`, since the files of an environment take time.
_CODE: Final = (
    "import sys; sys.path[:] = sys.argv[1].split('\\n'); "
    "import importlib; [*map(importlib.import_module, sys.argv[3:])][0].main(int(sys.argv[2]))"
)
_HOME: Final = str(Path(__file__).resolve().parents[2])
#: How much of the time one request may take; the rest is for what comes after it.
ONE_REQUEST: Final = 0.9
#: What a pipe takes of announcements, though the process may not read yet.
_MOST_AHEAD: Final = 48 << 10
#: Until a process that is killed is gone.
_GONE_S: Final = 5.0


class Kind(NamedTuple):
    """What a process does: its module, the client library that it needs, the extra with that."""

    module: str
    library: str
    extra: str


FLEET: Final = Kind("warmup_plugin.fleet.worker", "obstore", "fleet")
REGISTRY: Final = Kind("warmup_plugin.fleet.registry", "oras", "oci")


def start(kind: Kind = FLEET, also: Collection[str] = ()) -> subprocess.Popen[bytes]:
    """Start a process that waits for a request; it imports these modules, too, before it does.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: there is no process to be had.
    """
    paths = "\n".join(dict.fromkeys([*filter(None, sys.path), _HOME]))
    parent = str(os.getpid())  # it may be gone before the process can ask for it
    return subprocess.Popen(  # noqa: S603  # this Python, this package
        [sys.executable, "-S", "-P", "-c", _CODE, paths, parent, kind.module, *also],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # no signal of a terminal is meant for it
    )


def end(process: subprocess.Popen[bytes]) -> int:
    """End a process, wait until it is gone, and return its status."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    status = 0
    with contextlib.suppress(subprocess.TimeoutExpired):
        status = process.wait(_GONE_S)
    _close_pipes(process)
    return status


class Worker:
    """The process of one request. ``reason``: why there is none."""

    def __init__(self, kind: Kind = FLEET, also: Collection[str] = ()) -> None:
        self.reason = ""
        self._kind = kind
        self._status = 0
        self._announced = 0
        self._environ = dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = start(kind, also)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self.reason = f"no process can be started: {error}"

    @property
    def waits(self) -> bool:
        """Return whether its process is there to be asked."""
        return self._process is not None and self._process.poll() is None

    def announce(self, request: dict[str, Any]) -> None:
        """Say how it is going to be asked, so that it prepares for that; need not succeed."""
        if self._process is None or self._process.stdin is None:
            return
        now = dict(os.environ)
        asked = {**request, "is_ahead": True, "environ": _changed(self._environ)}
        line = json.dumps(asked).encode() + b"\n"
        if self._announced + len(line) > _MOST_AHEAD:
            return
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(line)
            self._process.stdin.flush()
            self._announced += len(line)
            self._environ = now

    def ask(self, request: dict[str, Any], limit_s: float) -> dict[str, Any]:
        """Return the answer, or within ``limit_s`` why there is none; the process ends with it."""
        if self._process is None:
            return {"state": "failed", "reason": self.reason}
        try:
            asked = {**request, "environ": _changed(self._environ)}
            line = json.dumps(asked).encode() + b"\n"
            answer, _ = self._process.communicate(line, timeout=max(limit_s, 0.001))
        except subprocess.TimeoutExpired:
            return {"state": "failed", "reason": f"no answer within {limit_s:.1f} s"}
        except (OSError, ValueError) as error:
            return {"state": "failed", "reason": f"{type(error).__name__}: {error}"}
        finally:
            self.close()  # also where a signal comes in between
        return _parsed(answer, self._status, self._kind)

    def close(self) -> None:
        """End the process, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None:
            self._status = end(process)

    def forget(self) -> None:
        """Close the pipes of a process that is the parent's, in a child that was forked from it."""
        process, self._process = self._process, None
        if process is not None:
            process.returncode = 0  # it is no child of this one
            _close_pipes(process)


def _changed(environ: dict[str, str]) -> dict[str, str | None]:
    """Return the variables that are others than they were, None for one that is gone."""
    now = dict(os.environ)
    gone: dict[str, str | None] = dict.fromkeys(environ.keys() - now.keys())
    new = {name: value for name, value in now.items()
           if environ.get(name) != value and _is_text(name + value)}  # fmt: skip
    return {**gone, **new}


def _is_text(value: str) -> bool:
    """Return whether JSON can carry it: a variable may hold any bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


def _parsed(answer: bytes, status: int, kind: Kind) -> dict[str, Any]:
    found = parsed(answer)
    return found if found is not None else {"state": "failed", "reason": why_ended(status, kind)}


def parsed(line: bytes) -> dict[str, Any] | None:
    """Return what the process has said; None where that is no answer."""
    with contextlib.suppress(ValueError):
        found = json.loads(line)
        if isinstance(found, dict) and isinstance(found.get("state"), str):
            return found
    return None


def why_ended(status: int, kind: Kind = FLEET) -> str:
    """Return in words why a process has ended without an answer."""
    if status == -signal.SIGALRM:
        return "its time was up"
    brings = f": pip install 'warmup-plugin[{kind.extra}]' brings {kind.library}"
    hint = "" if _has_client(kind) else brings
    return f"its process ended with status {status}{hint}"


def _has_client(kind: Kind) -> bool:
    """Return whether the client library is there; asked where the process could not say so."""
    import importlib.util

    with contextlib.suppress(ImportError, ValueError):
        return importlib.util.find_spec(kind.library) is not None
    return False


def kept_directory(directory: Path, without: Collection[str]) -> Path | None:
    """Return the bundle that an earlier start has left in an identity's directory, the newest one.

    ``without``: the sha256 of those that are not used.
    """
    try:
        found = [
            path
            for path in directory.iterdir()
            if not path.name.startswith(".") and path.name.removeprefix("bundle-") not in without
        ]
        return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    except OSError:
        return None


class Publication(threading.Thread):
    """A publication that waits, in a process of its own, until the engine serves.

    The thread only waits for that process, so that its end is seen and its word is logged; it
    keeps no engine from ending. ``outcome``: what became of it, empty until then.
    """

    def __init__(
        self, request: dict[str, Any], limit_s: float, url: str, worker: Worker | TurnProcess
    ) -> None:
        super().__init__(name="warmup-fleet", daemon=True)
        self._request, self._limit_s, self._url = request, limit_s, url
        self._worker = worker
        self.outcome: dict[str, Any] = {}

    def run(self) -> None:
        """Wait for the process, and say what it has come to."""
        found = self._worker.ask(self._request, self._limit_s)
        state, reason = found["state"], str(found.get("reason", ""))
        bundle = str(found.get("bundle", ""))[:12]
        why = f" ({reason})" if reason else ""
        if state == "failed":
            logger.warning("warmup-plugin: fleet %s: nothing is published: %s", self._url, reason)
        else:
            logger.info("warmup-plugin: fleet %s: %s bundle %s, generation %s, %s entries%s",
                        self._url, state, bundle, found.get("generation"), found.get("entries"),
                        why)  # fmt: skip
        self.outcome = found


#: The publications of this process, which go on while it serves.
publications: Final[list[Publication]] = []


def publish(
    request: dict[str, Any], limit_s: float, url: str, holder: TurnProcess | None = None
) -> str:
    """Begin a publication; return why there is none, or an empty string.

    ``holder``: the process that holds the lease, which publishes and then frees it.
    """
    thread = Publication(request, limit_s, url, holder or Worker())
    try:
        thread.start()
    except RuntimeError as error:  # no thread to be had
        if holder is not None:
            holder.free()
        return str(error)
    publications.append(thread)
    return ""
