# SPDX-License-Identifier: Apache-2.0
"""Whatever lies where the table should: two ranks start, agree, and are warm the next time.

Every row is planted in a copy of one healthy cache root and met by real ranks. Timings are
simulated, so that a table tuned anew has the same bytes as the healthy one.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.ranks.conftest import Deployment, Start

pytestmark = pytest.mark.multiprocess

#: The smallest engine that has every op, on ranks that exchange tokens and are twins.
SMALL: dict[str, Any] = {
    "dp": 2, "ep": 2, "layers": 2, "hidden": 32, "ffn": 32, "vocab": 32, "timing": "deterministic",
}  # fmt: skip
#: What this machine's environment stamp is made to say.
STAMP: dict[str, Any] = {"gpu": "GPU A", "cudnn_version": "91900"}

Document = dict[str, Any]


@pytest.fixture(scope="module")
def healthy(deploy: Callable[..., Deployment]) -> tuple[Deployment, Start]:
    """A deployment that has tuned, and the start that did."""
    job = deploy(**SMALL)
    return job, job.start("stamped", **STAMP)


@pytest.fixture
def job(healthy: tuple[Deployment, Start], deploy: Callable[..., Deployment]) -> Deployment:
    """A copy of the healthy deployment, to be spoilt."""
    copy = deploy(**SMALL)
    shutil.copytree(healthy[0].roots[0], copy.roots[0])
    shutil.rmtree(copy.directory() / "reports")
    return copy


def assert_adopted(first: Start) -> None:
    """Every task has found its entry; it was tried on its own first, and nothing was timed."""
    assert first.timed == [0] * len(first.ranks)
    assert first.count("adopted") == first.count("seen")
    assert all(first.count("seen"))


def start(job: Deployment, script: str = "stamped", **options: Any) -> Start:
    """Start both ranks; whatever the row, they agree."""
    found = job.start(script, **{**STAMP, **options})
    assert found.certificate
    assert not found.disputed
    return found


def edited(edit: Callable[[Document], object]) -> Callable[[bytes], bytes]:
    """A spoiler that changes the document in place."""

    def spoil(table: bytes) -> bytes:
        document = json.loads(table)
        edit(document)
        return json.dumps(document).encode()

    return spoil


def with_entry(entry: Any) -> Callable[[bytes], bytes]:
    """A spoiler that replaces the first entry."""

    def edit(document: Document) -> None:
        document[next(key for key in document if not key.startswith("_"))] = entry

    return edited(edit)


def stamp(document: Document, **fields: str) -> None:
    assert document["_metadata"].keys() >= fields.keys()
    document["_metadata"].update(fields)


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


def poisoned(document: Document, **fields: str) -> None:
    """Stamp the document and give it other tactics, which must not be served."""
    stamp(document, **fields)
    for key, entry in document.items():
        if not key.startswith("_") and isinstance(entry[1], int):
            entry[1] = 0


def without_stamp(document: Document) -> None:
    poisoned(document)
    del document["_metadata"]


UNREADABLE: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda table: table[: len(table) // 2],
    "empty": lambda _: b"",
    "a list": lambda _: b"[]",
    "null": lambda _: b"null",
    "null entry": with_entry(None),
    "entry of wrong type": with_entry({"runner": 1}),
    "runner of wrong type": with_entry([1, 2]),
    "tactic of wrong type": with_entry(["BlockedGemmRunner", {"tile": 1}]),
    "one deep tactic": with_entry(["BlockedGemmRunner", nested(60)]),
    "deep nesting": lambda _: b"[" * 100_000,
    "not UTF-8": lambda table: table.replace(b"embedded", b"\xff\xfe", 1),
    "100 MB": lambda table: table + b" " * 100_000_000,
}
FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "another FlashInfer": edited(lambda d: poisoned(d, flashinfer_version="0.5.0")),
    "another GPU": edited(lambda d: poisoned(d, gpu="GPU B")),
    "another cuDNN": edited(lambda d: poisoned(d, cudnn_version="90000")),
    "no stamp": edited(without_stamp),
    "*": edited(lambda d: poisoned(d, gpu="*")),
}


@pytest.mark.parametrize(
    "spoil",
    [*UNREADABLE.values(), *FOREIGN.values()],
    ids=[*UNREADABLE, *FOREIGN],
)
def test_a_table_of_no_use_is_set_aside_and_made_anew(
    spoil: Callable[[bytes], bytes], job: Deployment, healthy: tuple[Deployment, Start]
) -> None:
    """The reason in every report, the file in foreign/, tuning goes on, the next start is warm."""
    good = job.table.read_bytes()
    bad = spoil(good)
    assert bad != good
    job.table.write_bytes(bad)
    first = start(job)
    assert first.timed_in_all == healthy[1].timed_in_all
    assert first.served == healthy[1].served
    assert sum(str(job.table) in text for text in first.warnings) == 1
    aside = sorted((job.directory() / "foreign").iterdir())
    assert [path.stem for path in aside] == [job.table.name, job.manifest.name]
    assert aside[0].read_bytes() == bad
    assert job.table.read_bytes() == good
    before = job.marks()
    start(job).assert_warm()
    assert job.marks() == before


@pytest.mark.parametrize(("here", "there"), [("GPU A", "unknown"), ("unknown", "GPU A")])
def test_unknown_is_not_another(here: str, there: str, deploy: Callable[..., Deployment]) -> None:
    """A stamp field that is unknown in the file, or on this machine, is no difference."""
    job = deploy(**SMALL)
    start(job, gpu=here)
    job.table.write_bytes(edited(lambda d: stamp(d, gpu=there))(job.table.read_bytes()))
    assert_adopted(start(job, gpu=here))
    start(job, gpu=here).assert_warm()


MANIFESTS: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "wrong sha256": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "table_sha256": "0" * 64})
    ),
    "of another identity": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "identity": "0" * 64})
    ),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "no tasks": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "tasks": {}})
    ),
    "tasks of wrong type": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "tasks": [1]})
    ),
    "100 MB": lambda path: os.truncate(path, 100_000_000),
}


@pytest.mark.parametrize("spoil", MANIFESTS.values(), ids=MANIFESTS)
def test_entries_without_a_valid_manifest_answer_exact_tasks(
    spoil: Callable[[Path], object], job: Deployment, healthy: tuple[Deployment, Start]
) -> None:
    """Every task finds its entry: nothing is timed, and the manifest is whole again."""
    good = job.table.read_bytes()
    spoil(job.manifest)
    first = start(job)
    if first.count("adopted")[
        0
    ]:  # with a manifest that has no tasks, its table is ours all the same
        assert_adopted(first)
    else:
        first.assert_warm()
    assert first.certificate == healthy[1].certificate
    assert job.table.read_bytes() == good
    manifest = json.loads(job.manifest.read_text())
    assert manifest["table_sha256"] == hashlib.sha256(good).hexdigest()
    assert manifest["identity"] == first.reports[0].identity
    before = job.marks()
    start(job).assert_warm()
    assert job.marks() == before
    assert start(job, env={"WARMUP_PLUGIN_ON_HIT": "skip"}).count("seen") == [0, 0]


def test_a_manifest_that_vouches_for_nothing_spares_no_forward(job: Deployment) -> None:
    """on_hit=skip needs a whole manifest: without one the survey finds out what is answered."""
    job.manifest.unlink()
    assert_adopted(start(job, env={"WARMUP_PLUGIN_ON_HIT": "skip"}))


def test_half_a_table_without_manifest(job: Deployment, healthy: tuple[Deployment, Start]) -> None:
    """What is there is used, what is not is tuned, and nothing else."""
    document = json.loads(job.table.read_text())
    keys = [key for key in document if not key.startswith("_")]
    for key in keys[::2]:
        del document[key]
    job.table.write_text(json.dumps(document))
    job.manifest.unlink()
    first = start(job)
    assert 0 < first.timed_in_all < healthy[1].timed_in_all
    assert 0 < first.count("adopted")[0] < first.count("seen")[0]
    assert first.served == healthy[1].served
    start(job).assert_warm()


def with_line(value: bytes) -> Callable[[bytes], bytes]:
    """A spoiler that replaces the first entry in its line: the document keeps its form."""

    def spoil(table: bytes) -> bytes:
        start = table.index(b'\n"(')
        colon = table.index(b'": ', start) + 3
        end = min(table.find(mark, colon) for mark in (b",\n", b"\n}"))
        return table[:colon] + value + table[end:]

    return spoil


VOUCHED: dict[str, Callable[[bytes], bytes]] = {
    "null entry": with_line(b"null"),
    "entry of wrong type": with_line(b'{"runner": 1}'),
    "runner of wrong type": with_line(b"[1, 2]"),
    "deep tactic": with_line(b'["BlockedGemmRunner", ' + b"[" * 5000 + b"]" * 5000 + b"]"),
    "no JSON": with_line(b"nonsense"),
    "cut short": lambda table: table[: len(table) // 2],
}


@pytest.mark.parametrize("spoil", VOUCHED.values(), ids=VOUCHED)
def test_a_manifest_that_vouches_for_what_is_no_table(
    spoil: Callable[[bytes], bytes], job: Deployment, healthy: tuple[Deployment, Start]
) -> None:
    """Such a table is believed until it is looked at; both ranks find out alike, and heal it."""
    good = job.table.read_bytes()
    bad = spoil(good)
    job.table.write_bytes(bad)
    one, other = (hashlib.sha256(data).hexdigest() for data in (good, bad))
    manifest = job.manifest.read_text()
    assert one in manifest
    job.manifest.write_text(manifest.replace(one, other))
    first = start(job)
    assert first.served == healthy[1].served
    assert job.table.read_bytes() == good
    start(job).assert_warm()


# -- old files -------------------------------------------------------------------------------------


def test_three_field_keys_answer_tasks_without_options_only(
    deploy: Callable[..., Deployment],
) -> None:
    """An old file's key names no runner options: adopted where there are none, else tuned."""
    job = deploy(dp=2, timing="deterministic")
    new = job.start("two_plain_ops")
    document = json.loads(job.table.read_text())
    old = {}
    for key, entry in document.items():
        old[key if key.startswith("_") else str(ast.literal_eval(key)[:3])] = entry
    assert len(old) == len(document)
    job.table.write_text(json.dumps(old))
    job.manifest.unlink()
    first = job.start("two_plain_ops")
    assert first.certificate == new.certificate
    ops = first.reports[0].ops
    assert ops["test::plain"] == {"seen": 3, "from_cache": 0, "tuned": 0, "adopted": 3}
    assert ops["test::optional"]["from_cache"] == 0
    assert sum(report.ops["test::optional"]["tuned"] for report in first.reports) == 3
    warm = job.start("two_plain_ops")
    warm.assert_warm()
    assert warm.certificate == new.certificate


def test_one_key_for_two_runner_configurations(deploy: Callable[..., Deployment]) -> None:
    """Neither shared nor stored, named in the report; the other ops are warm."""
    job = deploy(dp=2, timing="deterministic")
    for _ in ("cold", "next"):
        found = job.start("a_planted_pair")
        for report in found.reports:
            assert set(report.unshared) == {f"test::pair @ {bucket}" for bucket in (1, 8, 64)}
            assert all("differ in flag" in reason for reason in report.unshared.values())
        assert "test::pair" not in job.table.read_text()
    assert found.reports[0].ops["test::plain"]["from_cache"] == 3


# -- places that take no table ---------------------------------------------------------------------


def told(found: Start, place: Path) -> list[str]:
    """What rank 0 logs about a place."""
    return [line for line in found.seen[0] if str(place) in line]


@contextlib.contextmanager
def read_only(root: Path) -> Iterator[None]:
    """Let nobody write below a directory in the body."""
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        yield
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_a_file_in_the_directory_s_place(
    deploy: Callable[..., Deployment], healthy: tuple[Deployment, Start]
) -> None:
    """Memory only, with one warning: tuned at every start, shared all the same."""
    job = deploy(**SMALL)
    job.roots[0].mkdir()
    (job.roots[0] / "flashinfer_autotune").write_text("mine")
    for _ in ("first", "next"):
        found = start(job)
        assert found.timed_in_all == healthy[1].timed_in_all
        assert found.served == healthy[1].served
        assert len(told(found, job.roots[0])) == 1
        assert {report.published for report in found.reports} == {()}
    assert job.files() == ["flashinfer_autotune"]
    assert (job.roots[0] / "flashinfer_autotune").read_text() == "mine"


def test_a_read_only_directory_with_a_table(job: Deployment) -> None:
    """Used without writing, warm."""
    before = job.marks()
    with read_only(job.roots[0]):
        found = start(job, "stamped_obeying_permissions")
    found.assert_warm()
    assert len(told(found, job.roots[0])) == 1
    assert job.marks() == before


def test_a_read_only_directory_with_a_bad_table(
    job: Deployment, healthy: tuple[Deployment, Start]
) -> None:
    """Cannot be set aside: left as it is, tuned in memory, one warning in the log."""
    job.table.write_bytes(b"[]")
    before = job.marks()
    with read_only(job.roots[0]):
        found = start(job, "stamped_obeying_permissions")
    assert found.timed_in_all == healthy[1].timed_in_all
    assert found.served == healthy[1].served
    assert any(str(job.table) in text for text in found.warnings)
    assert job.marks() == before
    start(job)
    start(job).assert_warm()


def test_an_empty_read_only_directory(
    deploy: Callable[..., Deployment], healthy: tuple[Deployment, Start]
) -> None:
    """Memory only, with one warning."""
    job = deploy(**SMALL)
    job.roots[0].mkdir()
    with read_only(job.roots[0]):
        found = start(job, "stamped_obeying_permissions")
    assert found.timed_in_all == healthy[1].timed_in_all
    assert found.served == healthy[1].served
    assert len(told(found, job.roots[0])) == 1
    assert job.files() == []


def assert_survives_a_full_disk(job: Deployment, found: Start) -> None:
    """Served from memory by all ranks; one warning; no table, and no half of one, on the disk.

    Of the journals there is what there was room for.
    """
    assert found.timed_in_all > 100
    assert len(told(found, job.roots[0])) == 1
    assert {report.published for report in found.reports} == {()}
    assert job.tables() == []
    kept = ("reports", "journal")
    assert not [name for name in job.files() if Path(name).parent.name not in kept]


def test_a_disk_that_is_full_at_save(
    deploy: Callable[..., Deployment], healthy: tuple[Deployment, Start]
) -> None:
    """As memory only; with room again, the next start stores what the journal has kept."""
    job = deploy(**SMALL)
    found = start(job, "on_a_full_disk", size=4096)
    assert found.served == healthy[1].served
    assert_survives_a_full_disk(job, found)
    again = start(job)
    assert again.timed == [0, 0]
    assert again.served == found.served
    assert not [name for name in job.files() if "/journal/" in name]
    start(job).assert_warm()


def test_a_file_system_without_room(tmp_path: Path, deploy: Callable[..., Deployment]) -> None:
    """The same on a real one that is too small, then made larger."""
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k,mode=700", "tmpfs", str(root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        job = deploy(roots=[root], **SMALL)
        assert_survives_a_full_disk(job, start(job))
        subprocess.run(["mount", "-o", "remount,size=1m", str(root)], check=True)  # noqa: S607
        start(job)
        start(job).assert_warm()
    finally:
        subprocess.run(["umount", str(root)], check=True)  # noqa: S607


# -- contexts of somebody else ---------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_context_open_on_one_rank_is_an_error_on_all(rank: int, job: Deployment) -> None:
    """Before any file is touched, even one to set aside; the ranks can start again."""
    job.table.write_bytes(b"[]")
    files = sorted(str(path) for path in job.roots[0].rglob("*"))
    found = job.start("with_a_context_open", rank=rank, **STAMP)
    for raised, *seen in found.seen:
        assert raised.startswith(f"rank {rank}: a FlashInfer tuning context is open")
        assert sorted(seen) == files
    assert found.certificate


@pytest.mark.parametrize("known", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("keys", ["same keys", "last key", "more keys", "no keys"])
def test_a_forward_with_a_cache_of_its_own(
    keys: str,
    known: bool,  # noqa: FBT001
    tmp_path: Path,
    job: Deployment,
    healthy: tuple[Deployment, Start],
) -> None:
    """Its cache is ignored, with a warning where it held anything; ours stays loaded."""
    document = json.loads(job.table.read_text())
    poisoned(document)
    if keys == "more keys":
        document["('embedded::other', 'R', ((1, 1),), ())"] = ["R", 0]
    if keys in ("last key", "no keys"):
        last = [list(document)[-1]] if keys == "last key" else []
        document = {key: document[key] for key in ("_metadata", *last)}
    for rank in range(2):
        (tmp_path / f"cache.json.{rank}").write_text(json.dumps(document))
    if not known:
        shutil.rmtree(job.directory())
    good = healthy[0].table.read_bytes()
    found = start(job, "with_a_cache_of_its_own", cache=str(tmp_path / "cache.json"))
    assert found.timed_in_all == (0 if known else healthy[1].timed_in_all)
    assert found.certificate == healthy[1].certificate
    assert found.served == healthy[1].served
    assert job.table.read_bytes() == good
    if keys != "no keys":
        assert all(any("autotune(cache=...)" in line for line in seen) for seen in found.seen)
    start(job).assert_warm()
