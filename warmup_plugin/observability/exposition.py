# SPDX-License-Identifier: Apache-2.0
"""When the figures of a start are told, and where: each warm-up of a process, from begin to end.

Owns which state a start is in and who tells it: the first rank of each node, as begun, then as
certified, failed, or left to the engine. Where: as gauges on the engine's own ``/metrics``, if it
shows a worker's (`gauges.py`), and in the file that WARMUP_PLUGIN_METRICS_FILE names
(`textfile.py`). Never raises, and no caller waits for it: what cannot be shown is logged once. A
start that ends without a word stays "warming" in the file, since when it says.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from warmup_plugin import __version__
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.topology import host_name

if TYPE_CHECKING:
    from pathlib import Path

    from warmup_plugin.observability.metrics import Sample, State  # noqa: TC004  # of a struct that is never decoded
    from warmup_plugin.settings import Settings
    from warmup_plugin.topology import RankInfo

logger = logging.getLogger("warmup_plugin")

#: Kubernetes' name of a pod, which its host name is only where it has a network of its own.
POD: Final = "POD_NAME"
FILE: Final = "WARMUP_PLUGIN_METRICS_FILE"
#: prometheus_client's variable, which names the folder of a worker's figures.
ENGINES_PAGE: Final = "PROMETHEUS_MULTIPROC_DIR"


class _Process(msgspec.Struct):
    """What this process has told: by session, what is to stand in the file."""

    pid: int = 0
    #: Numbers of sessions by what they warm up: one that comes again takes its own place, be it
    #: tried again after a failure, be it the next of an engine that grows and shrinks.
    numbers: dict[str, int] = msgspec.field(default_factory=dict)
    sessions: dict[int, list[Sample]] = msgspec.field(default_factory=dict)
    told: set[str] = msgspec.field(default_factory=set)
    #: The session that began last.
    last: Figures | None = None


_process = _Process()


class Figures:
    """The figures of one warm-up, as told by this process.

    ``is_first``: whether it tells them at all. ``device``: of this rank, where that is known.
    """

    def __init__(
        self,
        engine: tuple[str, str],
        settings: Settings | None,
        *,
        is_first: bool = True,
        device: str = "",
        size: int = 0,
        identity: str = "",
    ) -> None:
        _forget_parent()
        numbers = _process.numbers
        self._number = numbers.setdefault(identity, len(numbers)) if identity else len(numbers)
        self.is_over = False
        self._path = settings.metrics_file if settings else _file_of_environment()
        self._started = time.time()
        self._is_first = is_first
        self._labels = (engine[0], os.environ.get(POD) or host_name(), device)
        self._known = WarmupReport(
            engine=engine[0], engine_version=engine[1], plugin_version=__version__,
            flashinfer_version="", rank=0, world_size=size,
            mode=settings.mode if settings else "", strategy=settings.strategy if settings else "",
            agreement="off",
        )  # fmt: skip
        _process.last = self

    def tells(self, *, is_first: bool) -> None:
        """Know now whether this rank is the first of its node."""
        self._is_first = is_first

    def begin(self) -> None:
        """Say in the file that a start has begun; the engine's server shows nothing yet."""
        self._tell("warming", self._known, in_gauges=False)

    def end(self, report: WarmupReport) -> None:
        """Show a receipt."""
        self._tell(report.agreement, report)
        self.is_over = True

    def fail(self) -> None:
        """Say that the warm-up has failed; the engine may go on."""
        self._tell("failed", self._now())

    def leave_alone(self) -> None:
        """Say that the engine has warmed up as without this package."""
        self._tell("left_alone", self._now())
        self.is_over = True

    def next(self, engine: tuple[str, str], settings: Settings | None) -> Figures:
        """Return the figures of the warm-up that follows, on the same rank."""
        return Figures(engine, settings, is_first=self._is_first, device=self._labels[2])

    def _now(self) -> WarmupReport:
        return msgspec.structs.replace(self._known, at=time.time())

    def _tell(self, state: State, report: WarmupReport, *, in_gauges: bool = True) -> None:
        try:
            self._told(state, report, in_gauges=in_gauges)
        except Exception as error:  # noqa: BLE001  # no descriptor to read a module with, say: no figures
            _warn(f"no figures: {type(error).__name__}: {error}")

    def _told(self, state: State, report: WarmupReport, *, in_gauges: bool) -> None:
        if self._path is None and not (in_gauges and ENGINES_PAGE in os.environ):
            return  # the usual start: what tells nobody is not imported
        from warmup_plugin.observability import gauges

        place = gauges.folder() if in_gauges else None
        if not self._is_first or (place is None and self._path is None):
            return
        from warmup_plugin.observability.metrics import samples

        common = (*self._labels, str(self._number))
        found = [
            sample._replace(labels=tuple(map(_text, (*common, *sample.labels))))
            for sample in samples(state, report, self._started)
        ]
        _process.sessions[self._number] = found
        if place is not None and (reason := gauges.show(place, found)):
            _warn(f"no figures on the engine's /metrics: {reason}")
        if self._path is not None:
            _write(self._path)


def left_alone(engine: tuple[str, str], settings: Settings | None) -> None:
    """Say that an engine warms up as without this package, whether or not a session had begun.

    On every rank alike where none had: what they say is the same. Without settings they are
    malformed.
    """
    _current(engine, settings).leave_alone()


def failed(engine: tuple[str, str], settings: Settings) -> None:
    """Say that a start has failed before its ranks could meet."""
    _current(engine, settings).fail()


def _current(engine: tuple[str, str], settings: Settings | None) -> Figures:
    _forget_parent()
    last = _process.last
    if last is None:
        return Figures(engine, settings)
    return last.next(engine, settings) if last.is_over else last


def of_rank(ranks: RankInfo, engine: tuple[str, str], settings: Settings, identity: str) -> Figures:
    """Return the figures of a session that this rank begins. ``identity``: its digest."""
    return Figures(
        engine, settings, is_first=not ranks.local_rank, device=device_of(ranks.device_index),
        size=ranks.world_size, identity=identity,
    )  # fmt: skip


def device_of(index: int) -> str:
    """Return a device as CUDA numbers it on its host, not in this process."""
    visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return visible[index] if index < len(visible) and visible[index] else str(index)


def _text(label: str) -> str:
    """Return a label's value as text that can be sent: one that cannot would end a whole page."""
    return label.encode(errors="replace").decode()


def _forget_parent() -> None:
    """Begin anew in a process that was forked."""
    global _process  # noqa: PLW0603  # figures are of the process
    if _process.pid != os.getpid():
        _process = _Process(os.getpid())


def _file_of_environment() -> Path | None:
    """Return the file where some other setting is malformed."""
    from warmup_plugin.errors import SettingError
    from warmup_plugin.settings import Settings

    with contextlib.suppress(SettingError):
        return Settings.from_env({FILE: os.environ.get(FILE, "")}).metrics_file
    return None


def _write(path: Path) -> None:
    from warmup_plugin.observability import textfile

    try:
        textfile.write(path, [sample for rows in _process.sessions.values() for sample in rows])
    except OSError as error:
        _warn(f"no metrics file: {path}: {error.strerror or error}")


def _warn(text: str) -> None:
    """Log once what cannot be shown."""
    if text not in _process.told:
        _process.told.add(text)
        logger.warning("warmup-plugin: %s", text)
