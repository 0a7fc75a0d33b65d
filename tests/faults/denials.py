# SPDX-License-Identifier: Apache-2.0
"""The table of what a rank can be denied: each row takes one resource away from this process.

Owns the denials, and only them; `denied.py` runs ranks under them. A denial is real: limits of the
kernel, mounts in a namespace of the process's own, descriptors that are closed. Only the time of
day is a stand-in, since it is the machine's. ``early`` ones act as soon as the process is there,
the others once the engine is built and its ranks have met. ``as_user``: needs a user without root's
rights, of whom the system knows nothing, one for each rank.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_NEW_NAMES, _NEW_MOUNTS = 0x04000000, 0x00020000
_READ_ONLY, _REMOUNT, _BIND, _RECURSIVE, _PRIVATE = 1, 32, 4096, 16384, 1 << 18
#: Where the cache root is found by a process whose mounts are its own.
ELSEWHERE: Final = Path("/mnt")
#: PR_SET_KEEPCAPS, _LINUX_CAPABILITY_VERSION_3, CAP_DAC_READ_SEARCH.
_KEEP_CAPABILITIES: Final = 8
_CAPABILITY_VERSION: Final = 0x20080522
_READ_AND_SEARCH: Final = 1 << 2
_MIB: Final = 1 << 20


class Place:
    """Where this rank's cache root is; a denial may move it."""

    def __init__(self, root: Path) -> None:
        self.root = root


class Denial(NamedTuple):
    """One row. ``kind`` names the resource, ``name`` how much of it is left."""

    kind: str
    name: str
    deny: Callable[[Place], None]
    early: bool = False
    as_user: bool = False

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.name}"


# -- users -----------------------------------------------------------------------------------------


def become_a_user(number: int, root: Path) -> None:
    """Give up root, and all its rights but to read, since Python may stand in a closed directory.

    Such a user is bound by limits on processes. The cache root is this user's.
    """
    for path in (root, *root.rglob("*")):
        os.chown(path, number, number)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_KEEP_CAPABILITIES, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(number, number, number)
    os.setresuid(number, number, number)
    words = ctypes.c_uint32 * 6  # twice: effective, permitted, inheritable
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    if libc.capset(header, words(_READ_AND_SEARCH, _READ_AND_SEARCH)):
        raise OSError(ctypes.get_errno(), "capset")


# -- mounts ----------------------------------------------------------------------------------------


def _mount(source: str, target: Path, kind: str = "", flags: int = 0, data: str = "") -> None:
    arguments = source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()
    if _LIBC.mount(*arguments):
        raise OSError(ctypes.get_errno(), f"mount: {os.strerror(ctypes.get_errno())}", str(target))


def own_mounts() -> None:
    """Give this process mounts of its own; raises `OSError` where that is not allowed."""
    if _LIBC.unshare(_NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare: a namespace of one's own for mounts")
    _mount("none", Path("/"), flags=_RECURSIVE | _PRIVATE)


def _keep_root(place: Place) -> None:
    """Have the cache root at another place too, for what becomes of its own one."""
    own_mounts()
    _mount(str(place.root), ELSEWHERE, flags=_BIND)
    place.root = ELSEWHERE


def _read_only_at(path: Path) -> None:
    _mount(str(path), path, flags=_BIND | _RECURSIVE)
    _mount("none", path, flags=_BIND | _REMOUNT | _READ_ONLY)


def _temporary_places() -> list[Path]:
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    usual = ("/tmp", "/var/tmp", "/usr/tmp", "/dev/shm")  # noqa: S108  # these are taken away
    return [path for name in (*named, *usual) if name and (path := Path(name)).is_dir()]


def without_temporary_directory(kept: Path) -> None:
    """Leave Python no place for a temporary file; what lies below ``kept`` can be written to."""
    own_mounts()
    _mount(str(kept), kept, flags=_BIND)  # a mount of its own, which stays as it is
    for path in _temporary_places():
        _read_only_at(path)
    os.chdir("/proc")  # Python's last resort
    tempfile.tempdir = None


def _no_temporary_directory(place: Place) -> None:
    without_temporary_directory(place.root)


def _full_temporary_directory(place: Place) -> None:
    _keep_root(place)
    for path in _temporary_places():
        _mount("tmpfs", path, "tmpfs", data="size=4k")
        with contextlib.suppress(OSError), (path / "full").open("wb", buffering=0) as file:
            file.write(bytes(4096))
    os.chdir("/proc")
    tempfile.tempdir = None


def _hidden(*paths: str) -> Callable[[Place], None]:
    """Have nothing below these paths."""

    def deny(place: Place) -> None:
        _keep_root(place)
        for path in paths:
            _mount("tmpfs", Path(path), "tmpfs", flags=_READ_ONLY)

    return deny


def _small_root(size: str) -> Callable[[Place], None]:
    """Keep the cache root on a file system with hardly any room left, in bytes or in inodes."""

    def deny(place: Place) -> None:
        own_mounts()
        kept = [(path.relative_to(place.root), path) for path in sorted(place.root.rglob("*"))]
        contents = {name: path.read_bytes() for name, path in kept if path.is_file()}
        _mount("tmpfs", ELSEWHERE, "tmpfs", data="size=16m,mode=755")
        for name, path in kept:
            if path.is_dir():
                (ELSEWHERE / name).mkdir()
            else:
                (ELSEWHERE / name).write_bytes(contents[name])
        used = os.statvfs(ELSEWHERE)
        what, _, more = size.partition("+")
        if what == "bytes":
            taken = (used.f_blocks - used.f_bfree) * used.f_frsize
            # A size of 0 would be none at all.
            data = f"size={max(taken + int(more), 4096)}"
        else:
            data = f"nr_inodes={used.f_files - used.f_ffree + int(more)}"
        _mount("none", ELSEWHERE, "tmpfs", flags=_REMOUNT, data=data)
        place.root = ELSEWHERE

    return deny


def _read_only_root(place: Place) -> None:
    _keep_root(place)
    _mount("none", ELSEWHERE, flags=_BIND | _REMOUNT | _READ_ONLY)


def _hostname(name: bytes) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        if _LIBC.unshare(_NEW_NAMES) or _LIBC.sethostname(name, len(name)):
            raise OSError(ctypes.get_errno(), "unshare, sethostname")

    return deny


# -- limits ----------------------------------------------------------------------------------------


def _limited(which: int, number: int) -> None:
    resource.setrlimit(which, (number, number))


def _descriptors(more: int) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        used = {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208  # names only
        limit = 0
        while sum(number not in used for number in range(limit)) < more:
            limit += 1
        _limited(resource.RLIMIT_NOFILE, limit)

    return deny


def _threads(more: int) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        there = len(os.listdir("/proc/self/task"))  # noqa: PTH208  # names only
        _limited(resource.RLIMIT_NPROC, there + more)

    return deny


def _memory(which: int, more: int) -> Callable[[Place], None]:
    field = "VmSize" if which == resource.RLIMIT_AS else "VmData"

    def deny(_place: Place) -> None:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith(field))
        _limited(which, used * 1024 + more)

    return deny


def _limit(which: int, number: int) -> Callable[[Place], None]:
    return lambda _place: _limited(which, number)


# -- streams, signals, clocks, names ---------------------------------------------------------------


def _closed(*streams: int) -> Callable[[Place], None]:
    """Close standard streams, as a supervisor may that starts an engine; Python then has none."""

    def deny(_place: Place) -> None:
        for stream in streams:
            os.close(stream)
            setattr(sys, ("stdin", "stdout", "stderr")[stream], None)

    return deny


def _closed_under(stream: int) -> Callable[[Place], None]:
    """Close a stream that Python still believes to have."""
    return lambda _place: os.close(stream)


def _error_to(path: str) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        if path == "a broken pipe":
            theirs, ours = os.pipe()
            os.close(theirs)
        else:
            ours = os.open(path, os.O_WRONLY)
        os.dup2(ours, 2)

    return deny


def _signals_blocked(_place: Place) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def _signal(number: int, handler: Any) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        signal.signal(number, handler)

    return deny


def _time_of_day(now: Callable[[], float]) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        time.time = now

    return deny


def _backwards() -> Callable[[], float]:
    """Return a clock that is an hour earlier each time it is asked."""
    hours = itertools.count()
    return lambda: 2e9 - 3600.0 * next(hours)


def _umask(mask: int) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        os.umask(mask)

    return deny


def _environment(**variables: str | None) -> Callable[[Place], None]:
    def deny(_place: Place) -> None:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    return deny


def _no_working_directory(place: Place) -> None:
    gone = place.root.parent / f"gone.{os.getpid()}"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def _root_named(change: Callable[[Path], Path]) -> Callable[[Place], None]:
    def deny(place: Place) -> None:
        place.root = change(place.root)

    return deny


def _bytes_in_its_name(root: Path) -> Path:
    """Give the cache root a name that is no text; both ranks come to the same."""
    named = root.parent / os.fsdecode(b"caf\xe9-" + os.fsencode(root.name))
    with contextlib.suppress(FileExistsError):
        named.symlink_to(root)  # a root that is a link is followed
    return named


def _no_memory_files(_place: Place) -> None:
    vars(os).pop("memfd_create", None)


# -- the table -------------------------------------------------------------------------------------

#: Descriptors, threads, bytes that a rank may still have.
DESCRIPTORS = (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 32, 48, 64)
THREADS = (0, 1, 2, 3, 4, 6, 8, 10, 12, 16)
_CLOCKS = {
    "1970": lambda: 0.0,
    "before 1970": lambda: -1e9,
    "a thousand years on": lambda: 4e10,
    "backwards": _backwards(),
}
_NO_HOME = {"HOME": None, "XDG_CACHE_HOME": None}

DENIALS: tuple[Denial, ...] = (
    Denial("tmp", "read-only", _no_temporary_directory, early=True),
    Denial("tmp", "full", _full_temporary_directory, early=True),
    Denial("home", "unset", _environment(**_NO_HOME)),
    Denial("home", "not there", _environment(HOME="/nonexistent", XDG_CACHE_HOME=None)),
    Denial("home", "relative", _environment(HOME=".", XDG_CACHE_HOME=".")),
    Denial("home", "no account", _environment(**_NO_HOME), as_user=True),
    *(Denial("descriptors", str(n), _descriptors(n)) for n in DESCRIPTORS),
    *(Denial("threads", str(n), _threads(n), as_user=True) for n in THREADS),
    *(
        Denial("memory", f"{n} MiB", _memory(resource.RLIMIT_AS, n * _MIB))
        for n in (0, 128, 256, 512, 1024)
    ),
    *(Denial("data", f"{n} MiB", _memory(resource.RLIMIT_DATA, n * _MIB)) for n in (0, 4, 32)),
    Denial("locked memory", "0", _limit(resource.RLIMIT_MEMLOCK, 0), as_user=True),
    Denial("stack", "64 KiB", _limit(resource.RLIMIT_STACK, 65536)),
    *(
        Denial("file size", str(n), _limit(resource.RLIMIT_FSIZE, n))
        for n in (0, 1, 100, 4096, 65536)
    ),
    *(
        Denial("quota", f"{n} bytes", _small_root(f"bytes+{n}"), early=True)
        for n in (0, 4096, 16384, 45056)
    ),
    *(Denial("inodes", str(n), _small_root(f"inodes+{n}"), early=True) for n in (0, 1, 2, 4, 8)),
    Denial("root", "read-only", _read_only_root, early=True),
    Denial("root", "bytes that are no text", _root_named(_bytes_in_its_name)),
    Denial("root", "below a file", _root_named(lambda root: Path(sys.executable, root.name))),
    Denial("root", "a name too long", _root_named(lambda root: root / ("x" * 300))),
    Denial("root", "too deep", _root_named(lambda root: Path(root, *["x" * 200] * 20))),
    Denial("/proc", "hidden", _hidden("/proc"), early=True),
    Denial("/sys", "hidden", _hidden("/sys"), early=True),
    Denial("/proc", "hidden with /sys", _hidden("/proc", "/sys"), early=True),
    Denial("/dev", "hidden", _hidden("/dev"), early=True),
    Denial("memory files", "none", _no_memory_files),
    Denial("streams", "no input", _closed(0)),
    Denial("streams", "no output", _closed(1)),
    Denial("streams", "no error", _closed(2)),
    Denial("streams", "none", _closed(0, 1, 2)),
    Denial("streams", "error closed under Python", _closed_under(2)),
    Denial("streams", "error full", _error_to("/dev/full")),
    Denial("streams", "error to a broken pipe", _error_to("a broken pipe")),
    Denial("signals", "blocked", _signals_blocked),
    Denial("signals", "children ignored", _signal(signal.SIGCHLD, signal.SIG_IGN)),
    Denial("signals", "SIGPIPE kills", _signal(signal.SIGPIPE, signal.SIG_DFL)),
    Denial("signals", "SIGTERM ignored", _signal(signal.SIGTERM, signal.SIG_IGN)),
    Denial("umask", "0777", _umask(0o777), as_user=True),
    Denial("umask", "0277", _umask(0o277), as_user=True),
    *(Denial("clock", name, _time_of_day(now)) for name, now in _CLOCKS.items()),
    Denial("names", "no host name", _hostname(b""), early=True),
    Denial("names", "bytes in the host name", _hostname(b"caf\xe9\xff"), early=True),
    Denial("names", "no working directory", _no_working_directory),
    Denial("programs", "no PATH", _environment(PATH="")),
    Denial("programs", "another locale", _environment(LANG="C", LC_ALL="POSIX")),
)
BY_ID: Final = {denial.id: denial for denial in DENIALS}
KINDS: Final = tuple(dict.fromkeys(denial.kind for denial in DENIALS))
#: Who is denied it.
RANKS: Final = {"all ranks": (0, 1), "rank 0": (0,), "rank 1": (1,)}

assert len(BY_ID) == len(DENIALS)
