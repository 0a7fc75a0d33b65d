# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's environment stamp, the slow half of it looked up once for all ranks that see alike.

Two fields make up nearly all that a stamp costs, 50 to 150 ms of a new process: for the version of
cuBLAS FlashInfer runs ldconfig, a compiler and a linker, and for that of the CuTe DSL it reads the
metadata of every installed package (0.7.2.post1). Rank 0 looks both up, on a thread of its own
while the ranks meet. A rank whose `surroundings` are rank 0's takes them from there; any other, and
any that cannot tell, looks for itself. All other fields each rank reads for itself, always.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import threading
from pathlib import Path

import torch

from warmup_plugin.errors import SessionError
from warmup_plugin.topology import machine_id
from warmup_plugin.tuner import probe

_VARIABLES = ("LD_LIBRARY_PATH", "LD_PRELOAD", "PATH", "CUDA_HOME", "CUDA_PATH")
#: What the dynamic linker finds without a search, since it is loaded already.
_LOADED = (b"cublas", b"cudnn")


def surroundings() -> str:
    """Return a digest of all that the slow fields depend on; empty where it cannot be told.

    Machine, mount namespace, root and working directory, user, the variables that direct the
    linker, as they are and as the process began with them, the libraries of interest that are
    loaded already, interpreter, where packages are imported from, torch and FlashInfer.
    """
    try:
        root, initial = Path("/").stat(), Path("/proc/self/environ").read_bytes().split(b"\0")
        named = tuple(f"{name}=".encode() for name in _VARIABLES)
        seen = [
            machine_id(), Path("/proc/self/ns/mnt").stat().st_ino, root.st_dev, root.st_ino,
            Path.cwd(), os.geteuid(), os.getegid(),
            [os.environ.get(name) for name in _VARIABLES],
            sorted(entry for entry in initial if entry.startswith(named)),
            _loaded(Path("/proc/self/maps").read_bytes()),
            sys.version, sys.executable, sys.path, torch.__file__, torch.version.cuda,
            *probe.origin(),
        ]  # fmt: skip
    except OSError:
        return ""
    return hashlib.sha256(repr(seen).encode()).hexdigest()


def _loaded(maps: bytes) -> list[bytes]:
    """Return device, inode and path of the libraries of interest among a process's mappings."""
    found = {
        b" ".join(line.split(maxsplit=5)[3:])
        for line in maps.splitlines()
        if any(name in line for name in _LOADED)
    }
    return sorted(found)


class Lookup:
    """The slow fields of this process's stamp: looked up here, or taken from rank 0.

    ``limit_s``: how long is waited for the programs that FlashInfer runs; it sets no limit itself.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._thread: threading.Thread | None = None
        self.taken: tuple[str, ...] = ()

    def begin(self) -> None:
        """Begin with those that wait for other programs; a field that is known is slow no more."""
        if (look := probe.slow_fields().get(probe.BY_PROGRAMS)) is not None:

            def look_quietly() -> None:
                with contextlib.suppress(Exception):  # who needs the answer will be told again
                    look()

            self._thread = threading.Thread(target=look_quietly, name="warmup-lookup", daemon=True)
            self._thread.start()

    def take(self, theirs: str) -> None:
        """Look nothing up that is slow, if rank 0's surroundings are this rank's."""
        if theirs and (fields := tuple(probe.slow_fields())) and theirs == surroundings():
            self.taken = fields

    def stamp(self) -> dict[str, str]:
        """Return this process's stamp, without the fields that are ``taken``.

        Raises `SessionError` where the programs have not come to an end within the limit.
        """
        if self.taken:
            with probe.answering(dict.fromkeys(self.taken, "")):
                found = probe.stamp()
            return {name: value for name, value in found.items() if name not in self.taken}
        if self._thread is not None:
            for field, look in probe.slow_fields().items():
                if field != probe.BY_PROGRAMS:
                    with contextlib.suppress(Exception):  # as above
                        look()
            self._thread.join(timeout=self._limit_s)
            if self._thread.is_alive():
                raise SessionError(
                    f"{probe.BY_PROGRAMS}: FlashInfer has looked it up for {self._limit_s:.0f} s "
                    "(ldconfig, gcc, ld): task_limit_s"
                )
        return probe.stamp()
