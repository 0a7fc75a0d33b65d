# SPDX-License-Identifier: Apache-2.0
"""The records of a journal, and the line of the file that each is.

    <crc32 in hex> <JSON>

Owns their form. A **mark** says that a task is begun, before anything of it runs; what was found,
or that the process has left it, takes it back. Records are checked one by one: a torn line is no
line.
"""

from __future__ import annotations

import functools
import zlib
from typing import TypeAlias

import msgspec

from warmup_plugin.cache.task_result import Result
from warmup_plugin.runtime.process_info import ProcessCard
from warmup_plugin.runtime.safe_json import Miss, decode


class Opened(msgspec.Struct, frozen=True, tag="opened"):
    """The first line: whose records these are, and under which driver and environment."""

    card: ProcessCard
    host: str
    driver: str
    stamp: dict[str, str]


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """The mark: from now on this task runs here."""

    task: str
    label: str


class Found(msgspec.Struct, frozen=True, tag="found"):
    """What became of the current task; ``keys`` are this rank's, in the order of the runners."""

    op: str
    keys: tuple[str, ...]
    result: Result


class Left(msgspec.Struct, frozen=True, tag="left"):
    """No task is marked any more, and none was the reason."""


Record: TypeAlias = Opened | Begun | Found | Left


@functools.cache
def _decoder() -> msgspec.json.Decoder[Record]:
    return msgspec.json.Decoder(Record)  # two milliseconds: not for a start that finds no journal


def encoded(record: Record) -> bytes:
    """Return a record as its line."""
    body = msgspec.json.encode(record)
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decoded(line: bytes) -> Record | None:
    """Return a line's record; None for what was torn, changed, or is a later version's."""
    checksum, _, body = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(body):
        return None
    found: Record | Miss = decode(_decoder(), body)
    return None if isinstance(found, Miss) else found
