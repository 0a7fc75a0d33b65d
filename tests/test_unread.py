# SPDX-License-Identifier: Apache-2.0
"""A vouched table, whose entries are decoded when somebody looks at one."""

from __future__ import annotations

import logging

import pytest
from msgspec import structs

from warmup_plugin.cache import lazy_table
from warmup_plugin.cache.lazy_table import UnreadEntries, restamped, unread_table
from warmup_plugin.cache.table import Entry, Table, parse_table, render_table
from warmup_plugin.runtime.safe_json import Miss

LIMIT = 1 << 20
TABLE = Table(
    {"flashinfer_version": "0.7.2", "gpu": "GPU A, of two words"},
    {
        "('op', 'Runner', ((1, 8),), ())": Entry("Runner", 3),
        "('op', 'Runner', ((2, 8),), ())": Entry("Runner", (1, True), ("l2", "cold")),
        "('other', 'Runner', ((1, 8),), ('a\\n\"(b',))": Entry("Runner", -1),
    },
)
DATA = render_table(TABLE)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The documents that are parsed from now on."""
    seen: list[bytes] = []

    def parse(data: bytes, *, limit: int) -> Table | Miss:
        seen.append(data)
        return parse_table(data, limit=limit)

    monkeypatch.setattr(lazy_table, "parse_table", parse)
    return seen


def test_nothing_but_the_stamp_is_parsed(parsed: list[bytes]) -> None:
    """Neither for its number of entries, nor to compare it with its like."""
    one, other = unread_table(DATA), unread_table(DATA)
    assert isinstance(one, Table)
    assert one.stamp == TABLE.stamp
    assert len(one.entries) == len(TABLE.entries)
    assert one == other
    assert DATA not in parsed


def test_whoever_looks_sees_what_a_parse_would_have_found(parsed: list[bytes]) -> None:
    """And the document is decoded once."""
    found = unread_table(DATA)
    assert isinstance(found, Table)
    entries = found.entries
    key = next(iter(TABLE.entries))
    assert entries[key] == TABLE.entries[key]
    assert key in entries
    assert "none" not in entries
    assert entries.get("none") is None
    assert dict(entries) == TABLE.entries
    assert {*entries.items()} == {*TABLE.entries.items()}
    assert entries.keys() - {key} == TABLE.entries.keys() - {key}
    assert len(entries) == len(TABLE.entries)
    assert entries == TABLE.entries
    assert found == TABLE
    assert found != structs.replace(TABLE, entries={})
    assert render_table(found) == DATA
    assert parsed.count(DATA) == 1


@pytest.mark.parametrize(
    "data",
    [
        render_table(structs.replace(TABLE, records={"a": 1})),
        render_table(structs.replace(TABLE, entries={})),
        render_table(Table({"gpu": "x" * (1 << 17)}, TABLE.entries)),
        DATA.replace(b"\n", b" "),
        b'{"_metadata": {"gpu": "A"}, "(1,)": ["Runner", 1]}',
    ],
    ids=["records", "no entries", "a long stamp", "one line", "by another hand"],
)
def test_any_other_document_is_parsed_at_once(data: bytes) -> None:
    """It is a table all the same."""
    found = unread_table(data)
    assert found == parse_table(data, limit=LIMIT)
    assert isinstance(found, Table)
    assert not isinstance(found.entries, UnreadEntries)


def test_a_stamp_that_is_none_is_a_miss() -> None:
    """As in a document that is parsed."""
    data = DATA.replace(b'"GPU A, of two words"', b'"*"')
    assert unread_table(data) == parse_table(data, limit=LIMIT)
    assert isinstance(unread_table(data), Miss)


def test_what_turns_out_to_be_no_table_has_no_entries(caplog: pytest.LogCaptureFixture) -> None:
    """Said once, as an error: a manifest has vouched for it."""
    found = unread_table(DATA.replace(b"-1]", b"-1"))
    assert isinstance(found, Table)
    with caplog.at_level(logging.ERROR):
        assert dict(found.entries) == {}
        assert len(found.entries) == 0
    assert len(caplog.records) == 1
    assert "vouches for what is no table" in caplog.text


def test_another_stamp_takes_the_place_of_the_first_line(parsed: list[bytes]) -> None:
    """In the form in which a table is written, without a look at its entries."""
    stamp = {"gpu": "GPU B, größer"}
    found = restamped(DATA, stamp)
    assert found == render_table(structs.replace(TABLE, stamp=stamp))
    assert parsed == []


def test_a_document_of_another_form_is_not_stamped() -> None:
    assert restamped(DATA.replace(b"\n", b" "), {"gpu": "B"}) == b""
