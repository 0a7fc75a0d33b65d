# SPDX-License-Identifier: Apache-2.0
"""Every parser of bytes or text that somebody else wrote, against whatever Hypothesis thinks of.

A hundred examples each in every test run, WARMUP_FUZZ_EXAMPLES of them by ``make fuzz``. What they
all promise: a value or the refusal they document, never another exception, and never a value that
breaks the rules of its type.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from warmup_plugin.cache.cached_table import CachedTable
from warmup_plugin.cache.external import borrow
from warmup_plugin.cache.lease import _read as read_lease
from warmup_plugin.cache.manifest import Manifest, parse_manifest, render_manifest
from warmup_plugin.cache.merge import merge
from warmup_plugin.cache.paths import parse_table_name, resolve, table_name
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table, canonical_tactic, parse_table, render_table
from warmup_plugin.coordination import messages
from warmup_plugin.errors import IdentityError, PlacementError, RankLostError, SettingError
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss, digest
from warmup_plugin.settings import Settings

LIMIT = 1 << 16
EXAMPLES = int(os.environ.get("WARMUP_FUZZ_EXAMPLES", "100"))
fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize="WARMUP_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below),
    max_leaves=20,
)
names = st.sampled_from(
    ["_metadata", "_records", "_generation", "schema", "identity", "table_sha256", "generation",
     "complete", "engine", "engine_version", "inventory", "known_defaults", "loose", "tasks"]
)  # fmt: skip
documents = st.dictionaries(names | st.text(max_size=12), anything, max_size=10).map(
    lambda found: json.dumps(found).encode()
)
tactics = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda below: st.lists(below, max_size=3).map(tuple),
    max_leaves=8,
)
entries = st.dictionaries(
    st.text(max_size=20).filter(lambda key: not key.startswith("_")),
    st.builds(Entry, st.text(max_size=8), tactics, st.none(), st.just(""))
    | st.builds(
        Entry,
        st.text(max_size=8),
        tactics,
        st.tuples(tactics),
        st.sampled_from(("", "0", '{"how":"fastest"}', '[1,null],"x"')),
    ),
    max_size=6,
)
data = st.binary(max_size=200) | documents


@fuzzed
@given(data)
def test_tables(body: bytes) -> None:
    """A table or a miss; what is a table is rendered and read as the same one."""
    found = parse_table(body, limit=LIMIT)
    assert isinstance(found, (Table, Miss))
    if isinstance(found, Table):
        assert parse_table(render_table(found), limit=1 << 30) == found


@fuzzed
@given(entries)
def test_tables_survive_the_way_through_bytes(found: dict[str, Entry]) -> None:
    table = Table({"flashinfer_version": "0.7.2"}, found)
    assert parse_table(render_table(table), limit=1 << 30) == table
    merged = merge([CachedTable(table, None, (0, 0, 0)), CachedTable(table, None, (1, 0, 0))])
    assert (merged.table.entries, merged.conflicts) == (found, 0)


@fuzzed
@given(data)
def test_manifests(body: bytes) -> None:
    """A manifest or a miss; its tasks, decoded late, are tasks or none with the reason."""
    found = parse_manifest(body, limit=LIMIT)
    assert isinstance(found, (Manifest, Miss))
    if isinstance(found, Manifest):
        assert len(list(found.tasks.items())) == len(found.tasks)
        assert not (found.tasks_miss and found.tasks)
        again = parse_manifest(render_manifest(found), limit=1 << 30)
        assert isinstance(again, Manifest)


@fuzzed
@given(data, data)
def test_directories(table: bytes, manifest: bytes) -> None:
    """Any two files in our places: read, published over, nothing thrown away."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place, "a" * 64)
        directory.mkdir()
        (directory / "rank_tp0_pp0_dp0.json").write_bytes(table)
        (directory / "rank_tp0_pp0_dp0.manifest.json").write_bytes(manifest)
        store = Store(directory, Settings())
        reading = store.read({"flashinfer_version": "0.7.2"}, identity="a" * 64)
        assert all(part.manifest is None or part.manifest.table_sha256 == digest(table)
                   for part in reading.parts)  # fmt: skip
        assert reading.parts or reading.misses


@fuzzed
@given(data, data)
def test_managed_stores(manifest: bytes, entry: bytes) -> None:
    """FlashInfer's own store, of whatever content."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "entries").mkdir()
        (Path(place) / "manifest.json").write_bytes(manifest)
        (Path(place) / "entries" / "0.json").write_bytes(entry)
        borrow([], [Path(place)], {"flashinfer_version": "0.7.2"}, Settings())


@fuzzed
@given(data)
def test_leases(body: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(body)
        assert isinstance(read_lease(Path(file.name)), dict)


@fuzzed
@given(data, st.sampled_from([messages.Beat, messages.Card, messages.Lost, messages.Failed]))
def test_messages(body: bytes, kind: type[Any]) -> None:
    """A value of the schema, or the rank that wrote it is named."""
    for schema in (messages.Head, kind):
        try:
            assert isinstance(messages.read(schema, body, 3, "beat"), schema)
        except RankLostError as error:
            assert error.rank == 3  # noqa: PT017  # that it raises at all depends on the bytes


@fuzzed
@given(st.text(max_size=60))
def test_names(text: str) -> None:
    """A name is a table's, to the letter, or nothing."""
    found = parse_table_name(text)
    assert found is None or table_name(*found) == text


@fuzzed
@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=70))
def test_paths(version: str, arch: str, name: str) -> None:
    """No part of a path is made of what it does not recognise."""
    try:
        found = resolve(Settings(), name, version=version, arch=arch,
                        argument=Path("/root"), environ={})  # fmt: skip
    except PlacementError:
        return
    assert found.directory.parts == ("/", "root", "flashinfer_autotune", version, arch, name)


variables = [row.metadata["variable"] for row in dataclasses.fields(Settings)]


@fuzzed
@given(st.dictionaries(st.sampled_from(variables), st.text(max_size=20), max_size=4))
def test_settings(environ: dict[str, str]) -> None:
    """Settings, or an error with variable and value."""
    try:
        found = Settings.from_env(environ)
    except SettingError as error:
        assert error.variable in environ  # noqa: PT017  # as above
    else:
        assert isinstance(found, Settings)


@fuzzed
@given(anything)
def test_identities(model: Any) -> None:
    """An identity with one digest, or an error with the factor's name."""
    try:
        found = Identity.of(model=model, dtype="float32")
    except IdentityError:
        return
    assert Identity(found.factors).digest == found.digest


@fuzzed
@given(st.recursive(scalars, lambda below: st.lists(below, max_size=3), max_leaves=10))
def test_tactics(tactic: Any) -> None:
    """What a runner calls a tactic is plain Python that a table can hold, or is refused."""
    try:
        found = canonical_tactic(tactic)
    except (TypeError, ValueError):
        return
    assert canonical_tactic(found) == found
    json.dumps(found)
