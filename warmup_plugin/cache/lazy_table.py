# SPDX-License-Identifier: Apache-2.0
"""A table that a manifest verifies, parsed when an entry of it is read.

Owns what makes that safe: the writer of a manifest has parsed the table first (`Store.publish`), so
bytes of the sha256 that stands in it are a table. A warm start asks FlashInfer, which loads the
same bytes, for the answers; to parse ten thousand entries once more takes as long as to send them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import ItemsView, Iterator, KeysView, Mapping
from typing import Final

from warmup_plugin.cache.table import STAMP, Entry, Table, parse_table
from warmup_plugin.runtime.safe_json import Miss, json_document, json_line

logger = logging.getLogger("warmup_plugin")

_NO_LIMIT: Final = 1 << 40  # it was checked when the bytes were read
_START: Final = b'{\n"' + STAMP.encode() + b'": '
_MOST_STAMP_BYTES: Final = 1 << 16  # a longer one is parsed with the rest
_ENTRY: Final = b'"('  # FlashInfer's keys are tuples in writing
_OTHER_LINES: Final = 3  # each entry has a line, and so have both brackets and the stamp


class UnreadEntries(Mapping[str, Entry]):
    """The entries of a table in the form of `render_table`, decoded at the first look at one.

    Bytes that turn out not to be a table, against their manifest, have no entries.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data

    @functools.cached_property
    def _decoded(self) -> Mapping[str, Entry]:
        table = parse_table(self._data, limit=_NO_LIMIT)
        if isinstance(table, Miss):
            logger.error(
                "warmup-plugin: a manifest verifies a file that is no table: %s", table.reason
            )
            return {}
        return table.entries

    def __getitem__(self, key: str) -> Entry:
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded)

    def __len__(self) -> int:
        if "_decoded" in vars(self):
            return len(self._decoded)
        return self._data.count(b"\n") - _OTHER_LINES

    def __contains__(self, key: object) -> bool:
        return key in self._decoded

    def keys(self) -> KeysView[str]:
        return self._decoded.keys()

    def items(self) -> ItemsView[str, Entry]:
        return self._decoded.items()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, UnreadEntries):
            return self._data == other._data or self._decoded == other._decoded
        return bool(self._decoded == other)

    __hash__ = None  # type: ignore[assignment]  # as of any dictionary


def unread_table(data: bytes) -> Table | Miss:
    """Return the table in these bytes, which a manifest verifies; its entries are not read yet.

    A document that `render_table` has not written, or one with records, is parsed at once.
    """
    if not (line := _first_line(data)):
        return parse_table(data, limit=_NO_LIMIT)
    stamp = parse_table(line + b"}", limit=_NO_LIMIT)
    return stamp if isinstance(stamp, Miss) else Table(stamp.stamp, UnreadEntries(data))


def restamped(data: bytes, stamp: Mapping[str, str]) -> bytes:
    """Return the same entries under another stamp; nothing where the bytes have another form.

    Equal packages at another path have another stamp, and FlashInfer loads none but its own.
    """
    line = _first_line(data)
    first = json_document([json_line(STAMP, stamp)])[: -len(b"\n}\n")]
    return line and first + data[len(line) :]


def _first_line(data: bytes) -> bytes:
    """Return the line with the stamp, without its comma, where an entry follows at once."""
    line, cut, rest = data[:_MOST_STAMP_BYTES].partition(b",\n")
    return line if cut and line.startswith(_START) and rest.startswith(_ENTRY) else b""
