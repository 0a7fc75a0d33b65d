# SPDX-License-Identifier: Apache-2.0
"""The store against real disks: whole files, unions, what is set aside, what a disk can refuse."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import logging
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from warmup_plugin.cache import files as disk_files
from warmup_plugin.cache import locks, publishing, reader
from warmup_plugin.cache.cached_table import NotPublished, Published
from warmup_plugin.cache.lease import hold
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.cache.store import Reading, Store
from warmup_plugin.cache.table import Entry, Table, render_table
from warmup_plugin.identity import Identity
from warmup_plugin.runtime.safe_json import Miss, digest
from warmup_plugin.settings import Settings

IDENTITY = Identity.of(model="m", dtype="bfloat16")
STAMP = {"flashinfer_version": "0.7.2.post1", "cudnn_version": "91400", "gpu": "NVIDIA H200"}
LIMIT = 1 << 16
SETTINGS = Settings(table_bytes=LIMIT, reports=3)
RANK = (0, 0, 0)
NAME = "rank_tp0_pp0_dp0.json"
MANIFEST_NAME = "rank_tp0_pp0_dp0.manifest.json"


def a_table(stamp: Mapping[str, str] = STAMP, /, **tactics: int) -> Table:
    """Entries by key."""
    return Table(stamp, {key: Entry("R", tactic) for key, tactic in tactics.items()})


def a_manifest(*keys: str, generation: int = 0, **fields: Any) -> Manifest:
    """One task for each key."""
    tasks = {f"task-{key}": TaskRecord(op="op", keys=((key,),), outcome="tuned") for key in keys}
    known: dict[str, Any] = {"identity": IDENTITY.digest, "engine": "test", "complete": True}
    return Manifest(tasks=tasks, generation=generation, **known | fields)


def publish(store: Store, rank: tuple[int, int, int] = RANK, /, **tactics: int) -> Published:
    """Publish a table, which must succeed."""
    done = store.publish(rank, a_table(STAMP, **tactics), a_manifest(*tactics), IDENTITY)
    assert isinstance(done, Published), done
    return done


def tactics(reading: Reading) -> dict[str, Any]:
    return {k: e.tactic for part in reading.parts for k, e in part.table.entries.items()}


def files(directory: Path) -> dict[str, bytes]:
    """Every regular file below a directory: name -> content."""
    found = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in found}


def changes(directory: Path) -> dict[str, tuple[int, int]]:
    """What a write would change of every file and of the directory itself."""
    found = {path.name: path.stat() for path in (directory, *directory.iterdir())}
    return {name: (status.st_ino, status.st_ctime_ns) for name, status in found.items()}


def set_aside(directory: Path) -> list[str]:
    """The names in foreign/, without their suffix; each has one of its own."""
    names = [path.name for path in directory.glob("foreign/*")]
    assert all(len(name.rpartition(".")[2]) == 8 for name in names)
    return sorted(name.rpartition(".")[0] for name in names)


@pytest.fixture
def directory(cache_root: Path) -> Path:
    """Where an identity's files lie; not there yet."""
    return cache_root / "flashinfer_autotune" / "0.7.2.post1" / "cpu" / IDENTITY.digest


@pytest.fixture
def store(directory: Path) -> Store:
    return Store(directory, SETTINGS)


# -- what a healthy store does --------------------------------------------------------------------


def test_missing_directory_is_created(store: Store, directory: Path) -> None:
    """A cold start reads nothing, warns of nothing, and its table is there for the next."""
    cold = store.read(STAMP)
    assert (cold.parts, cold.misses, cold.warnings, cold.writable) == ([], [], [], True)
    assert not directory.exists()
    done = publish(store, a=1, b=2)
    assert done.path == directory / NAME
    assert set(files(directory)) == {NAME, MANIFEST_NAME, "identity.json"}
    assert (done.sha256, done.bytes) == (
        digest(done.path.read_bytes()),
        len(done.path.read_bytes()),
    )
    assert (directory / "identity.json").read_bytes() == IDENTITY.canonical()


def test_what_is_created_is_private(store: Store, directory: Path, cache_root: Path) -> None:
    """Directories that others made keep their mode, ours are closed to other users."""
    cache_root.chmod(0o755)
    publish(store, a=1)
    made = [directory, *directory.parents[:3]]
    assert {stat.S_IMODE(path.stat().st_mode) for path in made} == {0o700}
    assert stat.S_IMODE(cache_root.stat().st_mode) == 0o755
    assert stat.S_IMODE((directory / NAME).stat().st_mode) & 0o022 == 0


def test_a_warm_start_reads_table_and_manifest(store: Store, directory: Path) -> None:
    """Both are what was published; the manifest vouches for the table's bytes."""
    done = publish(store, a=1, b=2)
    reading = Store(directory, SETTINGS).read(STAMP, identity=IDENTITY.digest)
    assert (reading.misses, reading.warnings) == ([], [])
    (part,) = reading.parts
    assert part.table == a_table(a=1, b=2)
    assert part.manifest == structs.replace(
        a_manifest("a", "b"), generation=1, table_sha256=done.sha256
    )


def test_a_warm_start_writes_nothing(store: Store, directory: Path) -> None:
    """The same answers again, found elsewhere and later: no file is touched."""
    publish(store, a=1)
    before = changes(directory)
    (part,) = store.read(STAMP).parts
    assert part.manifest is not None
    again = store.publish(RANK, part.table, part.manifest, IDENTITY)
    elsewhere = TaskRecord(op="op", keys=(("a",),), outcome="tuned", ms=3.0, rank=5, at=9.0)
    manifest = structs.replace(part.manifest, tasks={"task-a": elsewhere}, generation=1)
    later = store.publish(RANK, part.table, manifest, IDENTITY)
    for done in (again, later):
        assert isinstance(done, Published)
        assert (done.written, done.generation) == (False, 1)
        assert done.sha256 == digest((directory / NAME).read_bytes())
        assert done.bytes == (directory / NAME).stat().st_size
    assert changes(directory) == before


def test_publishing_less_writes_nothing(store: Store) -> None:
    """What the file has besides is no reason to rewrite it."""
    publish(store, a=1, b=2)
    assert publish(store, a=1).written is False


def test_publishing_merges(store: Store) -> None:
    """Another job's tasks stay; of the same task, the later winner."""
    assert publish(store, a=1, b=1).generation == 1
    assert publish(store, b=2, c=3).generation == 2
    reading = store.read(STAMP)
    assert tactics(reading) == {"a": 1, "b": 2, "c": 3}
    (part,) = reading.parts
    assert part.manifest is not None
    assert set(part.manifest.tasks) == {"task-a", "task-b", "task-c"}
    assert part.manifest.table_sha256 == digest(render_table(part.table))


def test_generation_is_above_every_one_known(store: Store) -> None:
    """The caller's is the highest of all files it has read, which need not be this one."""
    publish(store, a=1)
    done = store.publish(RANK, a_table(a=2), a_manifest("a", generation=41), IDENTITY)
    assert isinstance(done, Published)
    assert done.generation == 42
    assert publish(store, a=3).generation == 43


def test_equal_content_gives_equal_files(cache_root: Path) -> None:
    """Two nodes that publish the same write the same bytes."""
    stores = [Store(cache_root / node, SETTINGS) for node in "ab"]
    publish(stores[0], x=1, y=2)
    publish(stores[1], y=2, x=1)
    assert files(cache_root / "a") == files(cache_root / "b")


def test_every_rank_file_is_read(store: Store, directory: Path) -> None:
    """In the order of (tp, pp, dp); other files are nobody's tables."""
    for rank in [(10, 0, 0), (2, 0, 0), (0, 0, 1)]:
        publish(store, rank, **{f"k{rank[0]}": rank[0]})
    (directory / "notes.json").write_text("{}")
    (directory / f".{NAME}.host.1.ab.tmp").write_text("half a ta")
    reading = store.read(STAMP)
    assert [part.source for part in reading.parts] == [(0, 0, 1), (2, 0, 0), (10, 0, 0)]
    assert reading.misses == []


def test_identity_is_written_once(store: Store, directory: Path) -> None:
    """And may be given as bytes."""
    publish(store, a=1)
    store.publish(RANK, a_table(a=2), a_manifest("a"), b"other")
    assert (directory / "identity.json").read_bytes() == IDENTITY.canonical()
    (directory / "identity.json").unlink()
    store.publish(RANK, a_table(a=3), a_manifest("a"), b"other")
    assert (directory / "identity.json").read_bytes() == b"other"


@pytest.mark.parametrize("mode", ["read-only", "replay"])
def test_modes_that_write_nothing(directory: Path, mode: str) -> None:
    """They read, leave even a broken file where it is, and do not warn."""
    publish(Store(directory, SETTINGS), a=1)
    (directory / "rank_tp1_pp0_dp0.json").write_text("broken")
    before = files(directory)
    store = Store(directory, Settings.from_env({}, mode=mode))
    reading = store.read(STAMP)
    assert (tactics(reading), reading.writable, reading.warnings) == ({"a": 1}, False, [])
    assert [miss.kind for _, miss in reading.misses] == ["unreadable"]
    done = store.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
    assert done == NotPublished(f"mode is {mode}")
    store.set_aside(RANK, "test")
    assert isinstance(store.write_report(b"{}", "r.json"), NotPublished)
    assert files(directory) == before


def test_memory_only() -> None:
    """Without a directory the store says why, and goes along."""
    store = Store(None, SETTINGS, reason="no home directory")
    assert store.read(STAMP) == Reading(warnings=["no home directory"])
    for done in (
        store.publish(RANK, a_table(a=1), a_manifest("a"), IDENTITY),
        store.write_report(b"{}", "r.json"),
    ):
        assert done == NotPublished("no home directory")
    store.set_aside(RANK, "test")


# -- tables that cannot be used -------------------------------------------------------------------


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        with path.open("wb") as file:
            file.truncate(size)

    return make


def text(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def entry(value: Any) -> Callable[[Path], object]:
    return text(json.dumps({"_metadata": STAMP, "a": value}).encode())


def stamped(**stamp: str) -> Callable[[Path], object]:
    return text(render_table(a_table({**STAMP, **stamp}, a=1)))


GOOD = render_table(a_table(a=1))
BAD_TABLES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "truncated": (text(GOOD[:-20]), "unreadable", "truncated"),
    "empty": (text(b""), "unreadable", "truncated"),
    "a list": (text(b"[]"), "unreadable", "object"),
    "null entries": (entry(None), "unreadable", "a: "),
    "wrong types": (entry([1, 1]), "unreadable", "a: "),
    "deep nesting": (text(b"[" * 50_000), "unreadable", "object"),
    "deep nesting in records": (
        text(b'{"_records": {"n": ' + b"[" * 50_000),
        "unreadable",
        "nested",
    ),
    "100 MB": (sparse(100 << 20), "too_large", "104857600 bytes, more than the 65536 allowed"),
    "1 TB": (sparse(1 << 40), "too_large", "1099511627776 bytes"),  # must not be read
    "not UTF-8": (text(GOOD.replace(b'"a"', b'"\xff"')), "unreadable", "utf-8"),
    "another FlashInfer": (
        stamped(flashinfer_version="0.6.13"),
        "foreign",
        "flashinfer_version 0.6.13",
    ),
    "another GPU": (stamped(gpu="NVIDIA B200"), "foreign", "gpu NVIDIA B200, here NVIDIA H200"),
    "another cuDNN": (stamped(cudnn_version="91500"), "foreign", "cudnn_version 91500, here 91400"),
    "no stamp": (text(b'{"a": ["R", 1]}'), "foreign", "no stamp"),
    "wildcard": (stamped(gpu="*"), "foreign", '_metadata.gpu is "*"'),
    "a directory": (lambda path: path.mkdir(), "unreadable", "not a regular file"),
    "a full directory": (
        lambda path: (path / "x").mkdir(parents=True),
        "unreadable",
        "not a regular file",
    ),
    "a pipe": (os.mkfifo, "unreadable", "not a regular file"),
}


def within_5_s(work: Callable[[], object]) -> None:
    """Fail instead of hanging with what must not block."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(5.0)
    assert not thread.is_alive(), "blocked"


@pytest.mark.parametrize(("make", "kind", "words"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_bad_table_is_set_aside(
    store: Store, directory: Path, make: Callable[[Path], object], kind: str, words: str
) -> None:
    """A miss with the reason; it makes room with its manifest; the next start is warm."""
    publish(store, a=1)
    (directory / NAME).unlink()
    make(directory / NAME)
    cold: list[Reading] = []
    within_5_s(lambda: cold.append(store.read(STAMP)))
    ((path, miss),) = cold[0].misses
    assert (path, miss.kind, cold[0].parts) == (directory / NAME, kind, [])
    assert words in miss.reason
    assert set_aside(directory) == [NAME, MANIFEST_NAME]
    assert not os.path.lexists(directory / NAME)

    publish(store, a=2)
    warm = store.read(STAMP)
    assert (tactics(warm), warm.misses) == ({"a": 2}, [])


@pytest.mark.parametrize(("make", "kind", "words"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_publishing_onto_a_bad_table(
    store: Store, directory: Path, make: Callable[[Path], object], kind: str, words: str
) -> None:
    """A file that went bad since it was read is kept as well, and a healthy one is written."""
    del kind, words
    directory.mkdir(parents=True)
    make(directory / NAME)
    within_5_s(lambda: publish(store, a=2))
    assert set_aside(directory) == [NAME]
    assert tactics(store.read(STAMP)) == {"a": 2}


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        ({"cudnn_version": "unknown"}, {}),
        ({}, {"cudnn_version": "unknown"}),
        ({"cudnn_version": "None"}, {}),
        ({"extra_field": "1"}, {}),
    ],
    ids=["unknown in the file", "unknown here", "None in the file", "unheard of here"],
)
def test_unknown_on_one_side_is_no_difference(
    store: Store, saved: dict[str, str], live: dict[str, str]
) -> None:
    """Such a table is used."""
    table = a_table({**STAMP, **saved}, a=1)
    assert isinstance(store.publish(RANK, table, a_manifest("a"), IDENTITY), Published)
    reading = store.read({**STAMP, **live})
    assert (tactics(reading), reading.misses) == ({"a": 1}, [])


def test_set_aside_never_replaces(store: Store, directory: Path) -> None:
    """The same bad file again and again: each is kept, under a name of its own."""
    directory.mkdir(parents=True)
    for _ in range(5):
        (directory / NAME).write_text("broken")
        store.read(STAMP)
    assert set_aside(directory) == [NAME] * 5


def test_set_aside_suffix_is_taken_once(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where chance repeats itself."""
    suffixes = iter(["00000000", "00000000", "00000000", "11111111"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(suffixes))
    directory.mkdir(parents=True)
    for content in ("first", "second"):
        (directory / NAME).write_text(content)
        store.read(STAMP)
    assert files(directory / "foreign") == {
        f"{NAME}.00000000": b"first",
        f"{NAME}.11111111": b"second",
    }


def test_a_file_replaced_meanwhile_is_not_moved(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may publish between the judgement and the move."""
    directory.mkdir(parents=True)
    (directory / NAME).write_text("broken")
    judge = reader._judge_table

    def judge_slowly(*arguments: Any, **named: Any) -> Table | Miss:
        monkeypatch.setattr(reader, "_judge_table", judge)
        (directory / NAME).unlink()
        publish(Store(directory, SETTINGS), a=1)
        return judge(*arguments, **named)

    monkeypatch.setattr(reader, "_judge_table", judge_slowly)
    assert [miss.kind for _, miss in store.read(STAMP).misses] == ["unreadable"]
    assert set_aside(directory) == []
    assert tactics(store.read(STAMP)) == {"a": 1}


def test_a_table_found_wrong_in_use_is_set_aside(store: Store, directory: Path) -> None:
    """With its manifest; other ranks' stay, and so does what is not there."""
    publish(store, a=1)
    publish(store, (1, 0, 0), b=1)
    for _ in range(2):
        store.set_aside(RANK, "ranks 1, 3 serve other tactics")
    assert set_aside(directory) == [NAME, MANIFEST_NAME]
    assert tactics(store.read(STAMP)) == {"b": 1}


# -- manifests that cannot be used ----------------------------------------------------------------


def manifest_with(**fields: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_bytes()) | fields))

    return change


BAD_MANIFESTS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "missing": (Path.unlink, "absent", False),
    "sha256 wrong": (manifest_with(table_sha256="0" * 64), "stale", False),
    "of another identity": (manifest_with(identity="0" * 64), "foreign", True),
    "truncated": (lambda path: os.truncate(path, 40), "unreadable", True),
    "empty": (text(b""), "unreadable", True),
    "a list": (text(b"[]"), "unreadable", True),
    "deep nesting": (text(b'{"tasks": ' + b"[" * 50_000), "unreadable", True),
    "100 MB": (sparse(100 << 20), "too_large", True),
    "of a newer version": (manifest_with(schema=99), "newer", False),
}


@pytest.mark.parametrize(
    ("make", "kind", "moves"), BAD_MANIFESTS.values(), ids=BAD_MANIFESTS.keys()
)
def test_bad_manifest(
    store: Store, directory: Path, make: Callable[[Path], object], kind: str, *, moves: bool
) -> None:
    """The entries are there to be matched one by one, vouched for by nobody."""
    publish(store, a=1)
    make(directory / MANIFEST_NAME)
    reading = store.read(STAMP, identity=IDENTITY.digest)
    assert [(path.name, miss.kind) for path, miss in reading.misses] == [(MANIFEST_NAME, kind)]
    (part,) = reading.parts
    assert (part.table, part.manifest) == (a_table(a=1), None)
    assert set_aside(directory) == ([MANIFEST_NAME] if moves else [])


@pytest.mark.parametrize(
    "make",
    [make for name, (make, _, _) in BAD_MANIFESTS.items() if name != "of a newer version"],
    ids=[name for name in BAD_MANIFESTS if name != "of a newer version"],
)
def test_publishing_over_a_bad_manifest(
    store: Store, directory: Path, make: Callable[[Path], object]
) -> None:
    """What no task vouches for is kept, and stays loose in the new manifest."""
    publish(store, a=1, b=1)
    make(directory / MANIFEST_NAME)
    publish(store, a=2)
    (part,) = store.read(STAMP, identity=IDENTITY.digest).parts
    assert {key: found.tactic for key, found in part.table.entries.items()} == {"a": 2, "b": 1}
    assert part.manifest is not None
    assert part.manifest.loose == ("b",)
    assert set(part.manifest.tasks) == {"task-a"}


def test_a_newer_version_is_not_overwritten(store: Store, directory: Path) -> None:
    """Replicas of two versions share a directory: the older one leaves the newer's files alone."""
    publish(store, a=1)
    manifest_with(schema=99)(directory / MANIFEST_NAME)
    before = files(directory)
    done = store.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
    assert isinstance(done, NotPublished)
    assert "schema 99" in done.reason
    assert files(directory) == before


def test_what_flashinfer_added_is_loose(store: Store, directory: Path) -> None:
    """Its own save changes our file behind the manifest's back: the manifest vouches no more."""
    publish(store, a=1)
    table = json.loads((directory / NAME).read_bytes())
    (directory / NAME).write_text(
        json.dumps({**table, "b": ["R", 5], "_generation": "x"}, indent=2)
    )
    (part,) = store.read(STAMP).parts
    assert part.manifest is None
    publish(store, a=1)
    (part,) = store.read(STAMP).parts
    assert part.manifest is not None
    assert (part.manifest.loose, len(part.table.entries)) == (("b",), 2)


def test_reading_between_the_two_files_of_a_writer(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that met the old table and the new manifest looks again."""
    publish(store, a=1)
    read = disk_files.read_file

    def read_slowly(path: Path, *rest: Any) -> Any:
        found = read(path, *rest)
        if path.name == NAME:
            monkeypatch.setattr(reader, "read_file", read)
            publish(Store(directory, SETTINGS), a=2)
        return found

    monkeypatch.setattr(reader, "read_file", read_slowly)
    (part,) = store.read(STAMP).parts
    assert part.manifest is not None
    assert (part.manifest.generation, part.table) == (2, a_table(a=2))


# -- what a disk can refuse -----------------------------------------------------------------------


def test_a_file_in_place_of_the_directory(
    store: Store, directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Memory only, with one warning; the file stays."""
    directory.parent.mkdir(parents=True)
    directory.write_text("mine")
    reading = store.read(STAMP)
    assert (reading.parts, reading.writable, len(reading.warnings)) == ([], False, 1)
    done = store.publish(RANK, a_table(a=1), a_manifest("a"), IDENTITY)
    assert isinstance(done, NotPublished)
    assert str(directory) in done.reason
    assert isinstance(store.write_report(b"{}", "r.json"), NotPublished)
    assert directory.read_text() == "mine"
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_file_in_place_of_a_parent(cache_root: Path) -> None:
    """The same, further up."""
    (cache_root / "file").write_text("mine")
    store = Store(cache_root / "file" / "below" / "here", SETTINGS)
    assert store.read(STAMP).writable is False
    assert isinstance(store.publish(RANK, a_table(a=1), a_manifest("a"), IDENTITY), NotPublished)
    assert files(cache_root) == {"file": b"mine"}


def test_a_dangling_link_in_place_of_the_directory(cache_root: Path) -> None:
    """Nothing is made at its other end."""
    (cache_root / "link").symlink_to(cache_root / "nowhere")
    store = Store(cache_root / "link", SETTINGS)
    assert store.read(STAMP).parts == []
    assert isinstance(store.publish(RANK, a_table(a=1), a_manifest("a"), IDENTITY), NotPublished)
    assert not (cache_root / "nowhere").exists()


def test_a_link_to_a_directory_and_to_a_table(
    store: Store, directory: Path, tmp_path: Path
) -> None:
    """Volumes of Kubernetes are made of links: they are followed, and replaced when writing."""
    publish(store, a=1)
    link = tmp_path / "link"
    link.symlink_to(directory)
    (directory / NAME).rename(directory / "data")
    (directory / NAME).symlink_to("data")
    linked = Store(link, SETTINGS)
    assert tactics(linked.read(STAMP)) == {"a": 1}
    publish(linked, a=2)
    assert tactics(store.read(STAMP)) == {"a": 2}
    assert (directory / "data").read_bytes() == GOOD


UNPRIVILEGED = """
import json, logging, os, sys
from pathlib import Path
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.settings import Settings
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
import warmup_plugin.cache.publishing  # while this user may read where Python is
if os.geteuid() == 0:  # permissions do not bind root
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
logging.basicConfig(format="%(levelname)s", stream=sys.stdout)
directory, stamp = Path(sys.argv[1]), json.loads(sys.argv[2])
store = Store(directory, Settings())
reading = store.read(stamp)
tasks = {"t": TaskRecord(op="op", keys=(("z",),), outcome="tuned")}
table = Table(stamp, {"z": Entry("R", 9)})
done = store.publish((0, 0, 0), table, Manifest(identity="i", tasks=tasks), b"{}")
kept = store.write_report(b"{}", "r.json")
if "set aside" in sys.argv:
    store.set_aside((0, 0, 0), "test")
print(json.dumps({
    "keys": sorted(key for part in reading.parts for key in part.table.entries),
    "misses": [miss.kind for _, miss in reading.misses],
    "writable": reading.writable,
    "warnings": len(reading.warnings),
    "published": type(done).__name__,
    "reported": type(kept).__name__,
}))
"""


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that another user can reach; pytest's own are closed."""
    root = Path(tempfile.mkdtemp(prefix="warmup-plugin-open-"))
    root.chmod(0o755)
    yield root
    for path in (root, *root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(root)


def unprivileged(directory: Path, *more: str) -> tuple[list[str], dict[str, Any]]:
    """Use a store as a user whom permissions bind; what was logged, and what came of it."""
    command = [sys.executable, "-c", UNPRIVILEGED, str(directory), json.dumps(STAMP), *more]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    *logged, result = done.stdout.splitlines()
    return logged, json.loads(result)


@pytest.mark.multiprocess
def test_read_only_directory_is_used_without_writing(open_directory: Path) -> None:
    """One warning; even a broken file stays, and nothing of the session is left behind."""
    directory = open_directory / "tables"
    publish(Store(directory, SETTINGS), a=1)
    (directory / "rank_tp1_pp0_dp0.json").write_text("broken")
    directory.chmod(0o555)
    before = files(directory)
    logged, found = unprivileged(directory, "set aside")
    assert found == {
        "keys": ["a"],
        "misses": ["unreadable"],
        "writable": False,
        "warnings": 1,
        "published": "NotPublished",
        "reported": "NotPublished",
    }
    assert logged == ["WARNING"]
    assert files(directory) == before


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", [0o000, 0o555], ids=["closed", "read-only"])
def test_directory_that_cannot_be_made(open_directory: Path, mode: int) -> None:
    """The place for it is closed to us: memory only, one warning."""
    place = open_directory / "place"
    place.mkdir()
    place.chmod(mode)
    logged, found = unprivileged(place / "tables")
    assert (found["writable"], found["published"], logged) == (False, "NotPublished", ["WARNING"])


@pytest.mark.multiprocess
def test_a_table_we_may_not_read_is_left_alone(open_directory: Path) -> None:
    """It may be another user's good one: not moved, not replaced."""
    publish(Store(open_directory, SETTINGS), a=1)
    (open_directory / NAME).chmod(0o000)
    open_directory.chmod(0o777)
    before = {path.name: path.stat().st_ino for path in open_directory.iterdir()}
    _, found = unprivileged(open_directory)
    assert (found["misses"], found["published"]) == (["denied"], "NotPublished")
    after = {path.name: path.stat().st_ino for path in open_directory.iterdir()}
    assert after.keys() - before.keys() == {"reports"}
    assert before.items() <= after.items()


@contextlib.contextmanager
def tiny_disk(place: Path) -> Iterator[Path]:
    """A disk of 64 KiB, or where mounting is not permitted, files of at most 16 KiB."""
    libc = ctypes.CDLL(None, use_errno=True)
    place.mkdir()
    if libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=64k") == 0:
        try:
            yield place
        finally:
            libc.umount2(bytes(place), 2)
    else:
        with small_files():
            yield place


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Files end at 16 KiB: writing on fails, as on a full disk, without any privilege."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 << 10, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def limited(place: Path) -> Iterator[Path]:
    place.mkdir()
    with small_files():
        yield place


@pytest.mark.parametrize("disk", [tiny_disk, limited], ids=["disk full", "file too long"])
def test_full_disk(
    tmp_path: Path,
    disk: Callable[[Path], contextlib.AbstractContextManager[Path]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What stood there stays whole, nothing half is left, and the session goes on in memory."""
    many = {f"key-{i:05}": i for i in range(2000)}
    with disk(tmp_path / "disk") as place:
        store = Store(place / "tables", Settings())
        publish(store, a=1)
        before = files(place)
        done = store.publish(RANK, a_table(STAMP, **many), a_manifest(*many), IDENTITY)
        assert isinstance(done, NotPublished)
        assert done.reason.startswith(f"{place / 'tables'}: ")
        assert isinstance(store.write_report(bytes(1 << 17), "r.json"), NotPublished)
        assert files(place) == before
        assert tactics(store.read(STAMP)) == {"a": 1}
        assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert many.items() <= tactics_after(tmp_path / "healthy", many).items()


def tactics_after(directory: Path, many: dict[str, int]) -> dict[str, Any]:
    store = Store(directory, Settings())
    publish(store, **many)
    return tactics(store.read(STAMP))


#: The call that fails, with what, and how many succeed before.
CALLS = [
    ("os.open", errno.EROFS, 0),
    ("os.open", errno.ENOSPC, 1),
    ("os.fsync", errno.EIO, 0),
    ("os.fsync", errno.EDQUOT, 1),
    ("Path.replace", errno.ESTALE, 0),
    ("Path.mkdir", errno.EACCES, 0),
]


@pytest.mark.parametrize(("call", "number", "succeed"), CALLS)
def test_any_call_may_fail(
    store: Store,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    *,
    number: int,
    succeed: int,
) -> None:
    """Network file systems fail at any step: no `OSError` leaves, no temporary file stays."""
    owner, name = (Path, call[5:]) if call.startswith("Path") else (os, call[3:])
    work, calls = getattr(owner, name), itertools.count()

    def fail(*arguments: Any, **keywords: Any) -> Any:
        reads = name == "open" and not arguments[1] & os.O_CREAT
        if reads or next(calls) < succeed:
            return work(*arguments, **keywords)
        raise OSError(number, os.strerror(number))

    if name != "mkdir":
        publish(store, a=1)
    before = files(directory)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        done = store.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
        reported = store.write_report(b"{}", "r.json")
    assert isinstance(done, NotPublished)
    assert os.strerror(number) in done.reason
    if name == "fsync":  # nobody waits for the disk because of a report
        assert reported == directory / "reports" / "r.json"
        reported.unlink()
        reported.parent.rmdir()
    else:
        assert isinstance(reported, NotPublished)
    assert files(directory) == before


def test_reading_may_fail(store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the disk is no judgement of the table: it is not moved, nor written over."""
    publish(store, a=1)
    before = files(directory)

    def fail(_: int) -> os.stat_result:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", fail)
        reading = store.read(STAMP)
        done = store.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
    assert [miss.kind for _, miss in reading.misses] == ["denied"]
    assert isinstance(done, NotPublished)
    assert files(directory) == before


def test_interrupted_writing_leaves_nothing(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt passes through, and takes the temporary file along."""
    publish(store, a=1)
    before = files(directory)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
    assert files(directory) == before


def test_the_file_is_on_disk_before_its_name(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both on the disk, then renamed, the table first; the directory synchronised each time."""
    directory.mkdir(parents=True)
    steps: list[str] = []
    fsync, replace_file = os.fsync, Path.replace

    def note_fsync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.rpartition(".json")[0])
        fsync(descriptor)

    def note_replace(path: Path, target: Path) -> Path:
        steps.append(f"-> {target.name}")
        return replace_file(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", note_replace)
    publish(store, a=1)
    table, manifest = NAME.removesuffix(".json"), MANIFEST_NAME.removesuffix(".json")
    assert steps == [
        f".{table}", f".{manifest}", f"-> {NAME}", "", f"-> {MANIFEST_NAME}", "",
        ".identity", "-> identity.json", "",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "table",
    [a_table({}, a=1), Table(STAMP, {"a": Entry("R", float("nan"))}, {"_": [[]] * (1 << 15)})],
    ids=["no stamp", "over the limit"],
)
def test_what_the_next_start_would_refuse_is_not_written(
    store: Store, directory: Path, table: Table
) -> None:
    """A mistake of the caller does not reach the disk."""
    done = store.publish(RANK, table, a_manifest("a"), IDENTITY)
    assert isinstance(done, NotPublished)
    assert files(directory) == {}


# -- several processes ----------------------------------------------------------------------------

PUBLISHER = """
import json, os, sys
from pathlib import Path
from warmup_plugin.cache.manifest import Manifest, TaskRecord
from warmup_plugin.settings import Settings
from warmup_plugin.cache.cached_table import Published
from warmup_plugin.cache.store import Store
from warmup_plugin.cache.table import Entry, Table
directory, stamp, name = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
store = Store(directory, Settings())
print("ready", flush=True)
sys.stdin.readline()
for i in range(int(sys.argv[4])):
    keys = [f"{name}-{i}", *(f"filler-{j:04}" for j in range(200))]
    tasks = {key: TaskRecord(op="op", keys=((key,),), outcome="tuned") for key in keys}
    table = Table(stamp, {key: Entry("R", i) for key in keys})
    done = store.publish((0, 0, 0), table, Manifest(identity="i", tasks=tasks), b"{}")
    assert isinstance(done, Published), done
"""


@contextlib.contextmanager
def publishers(directory: Path, number: int, times: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that publish to one name, all starting at once; none is left behind."""
    with contextlib.ExitStack() as stack:
        started = []
        for i in range(number):
            command = [
                sys.executable,
                "-c",
                PUBLISHER,
                str(directory),
                json.dumps(STAMP),
                f"p{i}",
                str(times),
            ]
            pipe = subprocess.PIPE
            process = stack.enter_context(
                subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
            )
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        yield started


@pytest.mark.multiprocess
def test_concurrent_publishers_lose_nothing(directory: Path) -> None:
    """Replicas that share a directory write one name at once: the union of all is there."""
    with publishers(directory, number=4, times=10) as started:
        assert [process.wait(60) for process in started] == [0] * 4
    reading = Store(directory, Settings()).read(STAMP)
    assert {f"p{p}-{i}" for p in range(4) for i in range(10)} <= tactics(reading).keys()
    assert reading.misses == []
    (part,) = reading.parts
    assert part.manifest is not None
    assert part.manifest.generation == 40
    assert not list(directory.glob(".*"))


@pytest.mark.multiprocess
def test_readers_see_whole_files_only(directory: Path) -> None:
    """While two others publish, and after they were killed in the middle of it."""
    store = Store(directory, Settings())
    with publishers(directory, number=2, times=100_000) as started:
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            kinds = {miss.kind for _, miss in store.read(STAMP).misses}
            assert kinds <= {"absent", "stale"}
        for process in started:
            process.kill()
    reading = store.read(STAMP)
    assert "filler-0000" in tactics(reading)
    publish(store, after=1)
    assert store.read(STAMP).misses == []


def test_a_stopped_holder_of_the_lock_does_not_stop_others(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may be frozen while it publishes: go on without the lock after a while."""
    monkeypatch.setattr(locks, "_LOCK_WAIT_S", 0.2)
    directory.mkdir(parents=True)
    with locks.locked(directory):
        began = time.monotonic()
        publish(store, a=1)
        assert 0.2 <= time.monotonic() - began < 2.0


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a file system that has none: a file of its holder's stands for the lock."""

    def fail(*_: int) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr("fcntl.flock", fail)
    monkeypatch.setattr(locks, "_LOCK_WAIT_S", 1.5)
    monkeypatch.setattr(locks, "_STALE_S", 0.2)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_one_waits_for_the_other(store: Store, directory: Path) -> None:
    directory.mkdir(parents=True)
    with locks.locked(directory):
        assert (directory / locks.CLAIM).exists()
        other = threading.Thread(target=publish, args=(store,), kwargs={"a": 1})
        other.start()
        other.join(timeout=0.1)
        assert tactics(store.read(STAMP)) == {}
    other.join(timeout=10)
    assert tactics(store.read(STAMP)) == {"a": 1}
    assert not (directory / locks.CLAIM).exists()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_dead_holder_is_followed(store: Store, directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / locks.CLAIM).touch()  # as a killed process leaves it
    began = time.monotonic()
    publish(store, a=1)
    assert 0.2 <= time.monotonic() - began < 1.5
    assert tactics(store.read(STAMP)) == {"a": 1}
    assert not (directory / locks.CLAIM).exists()


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_holder_that_was_given_up_takes_nothing_away(directory: Path) -> None:
    directory.mkdir(parents=True)
    with locks.locked(directory):
        (directory / locks.CLAIM).unlink()
        (directory / locks.CLAIM).write_text("another's")
    assert (directory / locks.CLAIM).read_text() == "another's"


@pytest.mark.usefixtures("without_locks")
def test_without_locks_and_with_no_place_for_a_file() -> None:
    """Nobody waits for what cannot be had."""
    nowhere = Path("/proc")
    began = time.monotonic()
    with locks.locked(nowhere):
        assert not (nowhere / locks.CLAIM).exists()
    assert time.monotonic() - began < 1.0


# -- reports and warnings -------------------------------------------------------------------------


def test_the_last_reports_are_kept(store: Store, directory: Path) -> None:
    """As many as the setting says, by age and not by name; the same name replaces."""
    for i, name in enumerate(["z.json", "a.json", "y.json", "b.json", "b.json"]):
        path = store.write_report(str(i).encode(), name)
        assert path == directory / "reports" / name
        os.utime(path, ns=(i, i))
    found = files(directory / "reports")
    assert found == {"a.json": b"1", "y.json": b"2", "b.json": b"4"}


def test_no_reports(directory: Path) -> None:
    """None are written where none are kept."""
    store = Store(directory, Settings(reports=0))
    assert store.write_report(b"{}", "r.json") == NotPublished("no reports are kept")
    assert not directory.exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../r.json", "a/b", "/r.json", ".hidden"])
def test_a_report_has_a_plain_name(store: Store, name: str) -> None:
    """It cannot leave its folder, nor hide from the count."""
    with pytest.raises(ValueError, match="must be a plain file name"):
        store.write_report(b"{}", name)


def test_warns_once(cache_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first trouble is a warning, what follows from it is for debugging; each store anew."""
    (cache_root / "file").write_text("")
    caplog.set_level(logging.DEBUG, "warmup_plugin")
    for _ in range(2):
        caplog.clear()
        store = Store(cache_root / "file", SETTINGS)
        store.read(STAMP)
        store.read(STAMP)
        store.write_report(b"{}", "r.json")
        assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG", "DEBUG"]


def test_ten_thousand_entries(directory: Path) -> None:
    """A table of the largest kind goes through whole; its tasks stay undecoded in a warm start."""
    many = {
        f"('op', 'Runner', ((2, 4096), (4096, 64)), ({i},))" + "x" * 150: i for i in range(10_000)
    }
    store = Store(directory, Settings())
    assert publish(store, **many).bytes > 2_000_000
    (part,) = store.read(STAMP).parts
    assert part.manifest is not None
    again = store.publish(RANK, part.table, part.manifest, IDENTITY)
    assert isinstance(again, Published)
    assert not again.written
    assert part.manifest.tasks._records is None  # type: ignore[attr-defined]


# -- links and open directories -------------------------------------------------------------------


def outside(tmp_path: Path) -> Path:
    """A good table that is somebody else's."""
    store = Store(tmp_path / "outside", SETTINGS)
    publish(store, a=5)
    return tmp_path / "outside"


def test_no_link_is_followed_out_of_the_root(store: Store, directory: Path, tmp_path: Path) -> None:
    """Not to a table, for reading; the link is set aside, its target stays as it was."""
    theirs = outside(tmp_path)
    before = files(theirs)
    publish(store, a=1)
    (directory / NAME).unlink()
    (directory / NAME).symlink_to(theirs / NAME)
    reading = store.read(STAMP)
    assert reading.parts == []
    ((path, miss),) = reading.misses
    assert path == directory / NAME
    assert "leads out of" in miss.reason
    assert files(theirs) == before
    publish(store, a=2)
    assert tactics(store.read(STAMP)) == {"a": 2}
    assert files(theirs) == before


def test_a_directory_that_leads_out_of_the_root_is_not_used(
    cache_root: Path, tmp_path: Path
) -> None:
    """Whoever may write into the root must not choose where else we write."""
    theirs = outside(tmp_path)
    before = files(theirs)
    (cache_root / IDENTITY.digest).symlink_to(theirs)
    store = Store(cache_root / IDENTITY.digest, SETTINGS, root=cache_root)
    reading = store.read(STAMP)
    assert (reading.parts, reading.writable) == ([], False)
    assert "leads out of" in reading.warnings[0]
    assert isinstance(store.publish(RANK, a_table(a=1), a_manifest("a"), IDENTITY), NotPublished)
    assert files(theirs) == before


@pytest.mark.parametrize("name", ["foreign", "reports", "journal"])
def test_folders_that_lead_out_are_not_written_to(
    store: Store, directory: Path, tmp_path: Path, name: str
) -> None:
    """Nothing is moved, written or removed there."""
    publish(store, a=1)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for number in range(9):
        (theirs / f"{number}.json").write_text("mine")
    (directory / name).symlink_to(theirs)
    (directory / NAME).write_text("broken")
    store.read(STAMP)
    store.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
    store.write_report(b"{}", "r.json")
    with hold(directory) as holder:
        assert holder == ""
    assert files(theirs) == {f"{number}.json": b"mine" for number in range(9)}


def test_reports_of_others_are_not_removed(store: Store, directory: Path) -> None:
    """Nor links, whatever they are called."""
    (directory / "reports").mkdir(parents=True)
    (directory / "reports" / "notes.txt").write_text("mine")
    for number in range(5):
        store.write_report(b"{}", f"{number}.json")
    assert (directory / "reports" / "notes.txt").read_text() == "mine"
    assert len(list((directory / "reports").glob("*.json"))) == SETTINGS.reports


def test_another_users_file_by_a_second_name_is_not_read(
    store: Store, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hard link can be made to any file that its maker sees; ours have one name."""
    theirs = outside(tmp_path)
    directory.mkdir(parents=True)
    os.link(theirs / NAME, directory / NAME)
    assert tactics(store.read(STAMP)) == {"a": 5}  # our own, as a deduplicated image has them
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a file away")
    os.chown(theirs / NAME, 4711, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 4712)
    ((_, miss),) = store.read(STAMP).misses
    assert "one of 2 names of a file of user 4711" in miss.reason


def test_a_directory_open_to_all_is_warned_of_once(
    cache_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As an emptyDir of Kubernetes is; refused where that is asked for."""
    cache_root.chmod(0o777)
    directory = cache_root / IDENTITY.digest
    store = Store(directory, SETTINGS, root=cache_root)
    publish(store, a=1)
    warnings = [store.read(STAMP).warnings for _ in range(2)]
    assert [len(each) for each in warnings] == [1, 0]
    assert "every user may write there" in warnings[0][0]
    assert len(caplog.records) == 1
    strict = Store(directory, replace(SETTINGS, require_private=True), root=cache_root)
    reading = strict.read(STAMP)
    assert (reading.parts, reading.writable) == ([], False)
    assert "WARMUP_PLUGIN_REQUIRE_PRIVATE" in reading.warnings[0]
    done = strict.publish(RANK, a_table(a=2), a_manifest("a"), IDENTITY)
    assert isinstance(done, NotPublished)
    assert tactics(store.read(STAMP)) == {"a": 1}


def test_manifests_disowned_are_set_aside(store: Store, directory: Path) -> None:
    """The tables stay; their entries are vouched for by nobody."""
    publish(store, a=1)
    publish(store, (1, 0, 0), b=1)
    store.disown("a forward failed")
    assert set_aside(directory) == [MANIFEST_NAME, "rank_tp1_pp0_dp0.manifest.json"]
    reading = store.read(STAMP)
    assert tactics(reading) == {"a": 1, "b": 1}
    assert [part.manifest for part in reading.parts] == [None, None]


def test_a_file_that_changed_since_it_was_read_is_merged_again(
    store: Store, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no lock keeps another writer out, nothing of his is lost."""
    publish(store, a=1)
    write = disk_files.write_files

    def write_late(*arguments: Any) -> Any:
        monkeypatch.setattr(publishing, "write_files", write)
        publish(Store(directory, SETTINGS), b=2)
        return write(*arguments)

    monkeypatch.setattr(publishing, "write_files", write_late)
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    publish(store, c=3)
    (part,) = store.read(STAMP).parts
    assert part.manifest is not None
    assert tactics(store.read(STAMP)) == {"a": 1, "b": 2, "c": 3}


def test_a_writer_that_dies_between_its_two_files_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was whole on the disk before the table was put in place; it is found there."""
    publish(store, a=1)
    rename, unlink = Path.replace, Path.unlink

    def die_at_the_second(path: Path, target: Path) -> Path:
        if target.name == MANIFEST_NAME:
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", die_at_the_second)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)  # a dead process cleans nothing up
    with pytest.raises(KeyboardInterrupt):
        publish(store, b=2)
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(Path, "unlink", unlink)
    (part,) = store.read(STAMP, identity=IDENTITY.digest).parts
    assert part.manifest is not None
    assert set(part.manifest.tasks) == {"task-a", "task-b"}
    publish(store, c=3)
    (part,) = store.read(STAMP, identity=IDENTITY.digest).parts
    assert part.manifest is not None
    assert set(part.manifest.tasks) == {"task-a", "task-b", "task-c"}
