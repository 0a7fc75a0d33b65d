# SPDX-License-Identifier: Apache-2.0
"""Figures as gauges of `prometheus_client`, which an engine's own ``/metrics`` shows.

Owns the multi-process way of that library: with ``PROMETHEUS_MULTIPROC_DIR`` set, each process
keeps its values in a file there, and the server of the engine shows those of all files. Gauges of
mode ``mostrecent``, which have no pid among their labels: the newest value of a series is shown,
whichever process wrote it. No engine removes files of processes that have ended, so ours go when
the next start shows its figures: files of this mode in which nothing but our gauges stands. Both
engines bring the library along; it is imported here only, where figures are shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from warmup_plugin.cache.files import said
from warmup_plugin.observability.exposition import ENGINES_PAGE
from warmup_plugin.observability.metrics import COMMON, FAMILIES, PREFIX, Sample, label_names
from warmup_plugin.runtime import process_info

VARIABLE: Final = ENGINES_PAGE
MODE: Final = "mostrecent"
#: The library maps its files into memory: where the disk is full, a write would end the process.
LEAST_FREE: Final = 2**20

#: The process that has shown figures here, and the labels of `info` that are 1.
_shown_by = 0
_info: set[tuple[str, ...]] = set()


def folder() -> Path | None:
    """Return where processes keep their values; None where the engine shows none of a worker's."""
    found = os.environ.get(VARIABLE)
    return Path(found) if found else None


def show(place: Path, samples: Iterable[Sample]) -> str:
    """Show these samples; return why they are not shown, or an empty string. Never raises."""
    try:
        return _show(place, list(samples))
    except ImportError as error:
        return f"{VARIABLE} is set, and prometheus_client cannot be imported: {error}"
    except OSError as error:
        return said(error, place)
    except Exception as error:  # noqa: BLE001  # the library's: another engine's copy, a damaged file
        return f"prometheus_client: {type(error).__name__}: {error}"


def _show(place: Path, samples: list[Sample]) -> str:
    global _shown_by  # noqa: PLW0603  # the library, too, keeps its file for the whole process
    own = _file_of(place, os.getpid())
    free = shutil.disk_usage(place).free
    if free < LEAST_FREE:
        return f"{place} has {free} bytes left: must be {LEAST_FREE} or more"
    if _shown_by != os.getpid():
        _shown_by = os.getpid()
        _info.clear()
        _remove_left(place)
    for name, found in _by_name(samples):
        gauge = _gauge(name)
        for sample in found:
            gauge.labels(*sample.labels).set(sample.value)
    _outdate(samples)
    if not own.exists():
        return (
            f"prometheus_client was imported before {VARIABLE} was set, as in a worker that is "
            "forked: its values are in no file"
        )
    return ""


def _outdate(samples: list[Sample]) -> None:
    """Set what the last warm-up of this session ran with to 0, where the next ran with other."""
    now = {sample.labels for sample in samples if sample.name == "info"}
    sessions = {labels[: len(COMMON)] for labels in now}
    for labels in {old for old in _info - now if old[: len(COMMON)] in sessions}:
        _gauge("info").labels(*labels).set(0)
        _info.discard(labels)
    _info.update(now)


def _by_name(samples: list[Sample]) -> Iterator[tuple[str, list[Sample]]]:
    for name in FAMILIES:
        if found := [sample for sample in samples if sample.name == name]:
            yield name, found


def _gauge(name: str) -> Any:
    """Return the gauge of a family; in no registry, since the files are what is shown."""
    from prometheus_client import Gauge

    labels = label_names(name)
    return Gauge(PREFIX + name, FAMILIES[name].help, labels, multiprocess_mode=MODE, registry=None)


def _file_of(place: Path, pid: int) -> Path:
    return place / f"gauge_{MODE}_{pid}.db"


def _remove_left(place: Path) -> None:
    """Remove the files of our gauges whose processes have ended.

    A file of this process is one of an earlier process with its id: nothing here is shown yet. The
    library names files by process ids alone, so a folder is of one PID namespace.
    """
    for path in place.glob(f"gauge_{MODE}_*.db"):
        with contextlib.suppress(OSError):
            if _is_left(path) and _is_ours(path):
                path.unlink()


def _is_left(path: Path) -> bool:
    pid = path.stem.rpartition("_")[2]
    if not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        return True
    began = process_info.began(int(pid))
    return began is None or began > path.stat().st_mtime + 1  # the id was given out again


def _is_ours(path: Path) -> bool:
    """Return whether a file has values, all of them of our gauges."""
    from prometheus_client.mmap_dict import MmapedDict

    try:
        keys = [json.loads(key) for key, *_ in MmapedDict.read_all_values_from_file(str(path))]
        return bool(keys) and all(str(key[0]).startswith(PREFIX) for key in keys)
    except (ValueError, RuntimeError, LookupError, TypeError, struct.error):
        return False  # cut short, or of another release: whose it is nobody can tell
