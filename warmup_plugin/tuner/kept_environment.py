# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer's slow look at its environment has found, kept on this machine while it holds.

For its stamp FlashInfer runs a compiler, a linker and ldconfig to find cuBLAS, and reads the
metadata of every installed package: 50 to 150 ms, four fifths of a warm start of one rank. Both
answers follow from files. A record has the answers beside the state of each such file: of the
libraries and the folders in which the linkers look for them, of the linkers themselves, of the
packages' metadata. It answers a later process where all of them are as they were, and is left where
one is not. Variables, import path, user and machine are its name.

Owns that record: what it depends on, and when it is believed. A file counts as unchanged with the
same inode, size, time of change and time of the inode's change, which no program can set. Nothing
here raises: what cannot be read or kept is looked up by FlashInfer.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

import msgspec
import torch

from warmup_plugin import __version__
from warmup_plugin.cache.files import keep_newest, make_directory, read_file, write_files
from warmup_plugin.runtime.safe_json import Miss, decode
from warmup_plugin.topology import boot_id
from warmup_plugin.tuner import compat

#: Where records are kept, below the folder that holds tables.
FOLDER: Final = ".environment"
#: A record is some ten kilobytes; one of another user or program may be anything.
_LIMIT: Final = 1 << 20
#: So many machines, environments and boots that share a cache root keep a record each.
_MOST: Final = 256

#: What directs Python's search, the compiler's, the linker's and the dynamic linker's.
_VARIABLES: Final = (
    "COMPILER_PATH", "CUDA_HOME", "CUDA_PATH", "GCC_EXEC_PREFIX", "LD_LIBRARY_PATH", "LD_PRELOAD",
    "LD_RUN_PATH", "LIBRARY_PATH", "PATH",
)  # fmt: skip
_PROGRAMS: Final = ("gcc", "cc", "ld")
_ALWAYS: Final = (
    "/etc/ld.so.cache", "/etc/ld.so.preload", "/sbin/ldconfig", "/lib", "/lib64", "/usr/lib",
    "/usr/lib64", "/usr/local/lib", "/usr/local/lib64",
)  # fmt: skip
_LIBRARIES: Final = "libcublas*.so*"
_INSTALLED: Final = (".dist-info", ".egg-info", ".egg")
_METADATA: Final = ("METADATA", "RECORD", "direct_url.json", "PKG-INFO", "EGG-INFO/PKG-INFO")

#: Of a file or folder: inode, size, modified, inode changed, both in ns. Of none: nothing.
State = tuple[int, int, int, int] | None


class Record(msgspec.Struct):
    """One look: what was found, and the state of all that it was found from."""

    answers: dict[str, str]
    files: dict[str, State]
    #: By entry of the import path: a digest of the metadata of the packages there.
    packages: dict[str, str]


_RECORD: Final = msgspec.json.Decoder(Record)


def state_of(path: str | os.PathLike[str]) -> State:
    """Return the state of a file, links followed; None where there is none to be seen."""
    try:
        found = os.stat(path)  # noqa: PTH116  # of hundreds
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Process(msgspec.Struct, frozen=True):
    """This process before it looks, since a look may load a library.

    ``record``: the name of its record, by all that is no file. ``import_path``: where its packages
    are.
    """

    record: str
    import_path: tuple[str, ...]


def facts_of_process() -> list[object]:
    """Return what directs a look and is no file: boot, user, variables, interpreter, packages.

    The variables as they are and as the process began with them, which is how the dynamic linker
    has read them. Raises `OSError` where the system does not tell.
    """
    named = tuple(f"{name}=".encode() for name in _VARIABLES)
    initial = Path("/proc/self/environ").read_bytes().split(b"\0")
    return [
        boot_id(), os.geteuid(), os.getegid(), [os.environ.get(name) for name in _VARIABLES],
        sorted(entry for entry in initial if entry.startswith(named)),
        sys.version, sys.executable, sys.path,
        torch.__file__, torch.__version__, torch.version.cuda, *compat.origin(),
    ]  # fmt: skip


def this_process() -> Process | None:
    """Return this process as it is now; None where no record of it could be believed."""
    others = (finder for finder in sys.meta_path if finder is not PathFinder)
    if any(hasattr(finder, "find_distributions") for finder in others):
        return None  # packages that lie in no folder of the import path
    try:
        facts, loaded = facts_of_process(), _loaded()
    except OSError:
        return None
    if any(path.endswith(b" (deleted)") for path in loaded):
        return None
    seen = [__version__, _current_directory(), loaded, [repr(type(f)) for f in sys.meta_path]]
    digest = hashlib.sha256(repr([*facts, *seen]).encode()).hexdigest()[:32]
    return Process(f"{digest}.json", tuple(map(os.path.abspath, sys.path)))


def _loaded() -> list[bytes]:
    """Return the paths of the libraries that are loaded already, and found without a search."""
    maps = Path("/proc/self/maps").read_bytes()
    return sorted({line.split(maxsplit=5)[-1] for line in maps.splitlines() if b"cublas" in line})


def _current_directory() -> str:
    """Return the current directory where the import path or a variable is relative to it."""
    listed = [each for name in _VARIABLES for each in os.environ.get(name, "").split(os.pathsep)]
    is_relative = any(not entry.startswith(os.sep) for entry in (*sys.path, *filter(None, listed)))
    return os.path.realpath(os.curdir) if is_relative else ""


def read(folder: Path, process: Process) -> dict[str, str]:
    """Return the answers of the record below a folder, none where it does not hold any more."""
    with contextlib.suppress(Exception):  # a file that anything may have written
        body = read_file(folder / FOLDER / process.record, _LIMIT, folder).content
        record = body if isinstance(body, Miss) else decode(_RECORD, body)
        if isinstance(record, Record) and _is_as_it_was(record):
            return record.answers
    return {}


def _is_as_it_was(record: Record) -> bool:
    return all(state_of(path) == state for path, state in record.files.items()) and all(
        packages_in(path) == digest for path, digest in record.packages.items()
    )


def keep(folder: Path, process: Process) -> bool:
    """Look once more, and keep what is found if nothing has changed meanwhile.

    Not on the way of a start: it runs the programs that a record saves. Returns whether it was
    kept; not where a search could not be made, since that says nothing about the files.
    """
    with contextlib.suppress(Exception):  # of the file system, or of what FlashInfer runs
        before = _record(process)
        answers = compat.looked_up_anew()
        if answers and before == _record(process):
            body = msgspec.json.encode(Record(answers, before.files, before.packages))
            make_directory(folder / FOLDER, folder)
            write_files({folder / FOLDER / process.record: body}, synced=False)
            keep_newest(folder / FOLDER, _MOST)
            return True
    return False


# -- what the answers depend on ------------------------------------------------------------------


def _record(process: Process) -> Record:
    """Return a record without answers: the state of all that they would be made from."""
    found = {path: packages_in(path) for path in process.import_path}
    return Record({}, _files(), found)


def _files() -> dict[str, State]:
    """Return the state of every file and folder from which cuBLAS's version is found."""
    folders = dict.fromkeys((*_variables_folders(), *_prefixes(), *_compilers_folders()))
    loaded = map(os.fsdecode, _loaded())
    paths = [*_ALWAYS, *_programs(), *_code(), *loaded, *folders]
    for folder in (*folders, *_ALWAYS):
        with contextlib.suppress(OSError):
            paths += map(str, Path(folder).glob(_LIBRARIES))
            paths += map(str, Path(folder).glob("glibc-hwcaps/*"))
    return {path: state_of(path) for path in sorted({*paths})}


def _variables_folders() -> Iterator[str]:
    for name in ("LD_LIBRARY_PATH", "LIBRARY_PATH", "LD_RUN_PATH", "COMPILER_PATH"):
        for folder in re.split("[:;]", os.environ.get(name, "")):
            yield os.path.abspath(folder)  # noqa: PTH100  # links stay: they may be moved


def _prefixes() -> Iterator[str]:
    for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix, os.environ.get("CUDA_HOME", "")):
        if prefix:
            yield from (f"{prefix}/{folder}" for folder in ("lib", "lib64"))


def _programs() -> Iterator[str]:
    """Yield each place of the search path where a program may be, now or later."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield from (f"{folder or os.curdir}/{name}" for name in _PROGRAMS)


def _code() -> Iterator[str]:
    """Yield the source files of the functions that look."""
    for module, _ in compat.SLOW.values():
        if path := getattr(sys.modules.get(module), "__file__", None):
            yield path


def _compilers_folders() -> Iterator[str]:
    """Yield where compiler and linker look for libraries, as they say themselves."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler:
        said = _said(compiler, "-print-search-dirs")
        for line in said.splitlines():
            if line.startswith("libraries: ="):
                yield from map(os.path.normpath, line.partition("=")[2].split(":"))
    if linker := shutil.which("ld"):
        for found in re.findall(r'SEARCH_DIR\("=?([^"]+)"\)', _said(linker, "--verbose")):
            yield os.path.normpath(found)


def _said(*command: str) -> str:
    return subprocess.run(  # noqa: S603  # where Python itself finds them
        command, capture_output=True, text=True, timeout=30, check=True,
        stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C", "LANG": "C"},
    ).stdout  # fmt: skip


def packages_in(path: str) -> str:
    """Return a digest of the metadata of the packages in an entry of the import path."""
    try:
        with os.scandir(path) as entries:
            names = sorted(e.name for e in entries if e.name.lower().endswith(_INSTALLED))
    except NotADirectoryError:  # an archive
        return repr(state_of(path))
    except OSError:
        return ""
    seen = [
        (name, state_of(f"{path}/{name}"), *(state_of(f"{path}/{name}/{m}") for m in _wanted(name)))
        for name in names
    ]
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _wanted(name: str) -> tuple[str, ...]:
    """Return the files of a package's metadata that are read for it."""
    return _METADATA[:3] if name.endswith(".dist-info") else _METADATA[3:]
