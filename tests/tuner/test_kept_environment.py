# SPDX-License-Identifier: Apache-2.0
"""What is kept of FlashInfer's look at its environment: believed while it holds, and no longer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tuner.conftest import Children
from warmup_plugin.runtime import safe_json
from warmup_plugin.settings import Settings
from warmup_plugin.tuner import compat, environment_stamp, kept_environment
from warmup_plugin.tuner.kept_environment import FOLDER, this_process

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def looks() -> Iterator[list[Any]]:
    """FlashInfer's own functions, which have looked nothing up yet, nor have afterwards."""
    found: list[Any] = [getattr(sys.modules[module], name) for module, name in compat.SLOW.values()]
    for look in found:
        look.cache_clear()
    yield found
    for look in found:
        look.cache_clear()


def read(folder: Path) -> dict[str, str]:
    process = this_process()
    return kept_environment.read(folder, process) if process else {}


def keep(folder: Path) -> bool:
    process = this_process()
    return process is not None and kept_environment.keep(folder, process)


METADATA = "Name: nvidia-cublas-cu13\nVersion: {}\n"


class Machine:
    """A folder of libraries, one of programs and one of packages, in front of this machine's."""

    def __init__(self, root: Path, patch: Patch) -> None:
        self.cache, self.patch = root / "cache", patch
        self.libraries, self.programs, self.site = (root / each for each in ("lib", "bin", "site"))
        for folder in (self.cache, self.libraries, self.programs, self.site):
            folder.mkdir()
        self.library = self.libraries / "libcublas.so.13"
        self.library.write_bytes(b"version 1")
        (self.libraries / "libcublas.so").symlink_to(self.library)
        self.package = self.site / "nvidia_cublas_cu13-13.1.0.dist-info"
        self.package.mkdir()
        (self.package / "METADATA").write_text(METADATA.format("13.1.0"))
        self.linkers_cache = root / "ld.so.cache"
        self.linkers_cache.write_bytes(b"")
        patch.setenv("LD_LIBRARY_PATH", str(self.libraries))
        patch.setenv("PATH", f"{self.programs}{os.pathsep}{os.environ['PATH']}")
        patch.setattr(sys, "path", [str(self.site), *sys.path])
        always = (str(self.linkers_cache), *kept_environment._ALWAYS[1:])
        patch.setattr(kept_environment, "_ALWAYS", always)

    @property
    def record(self) -> Path:
        (found,) = (self.cache / FOLDER).iterdir()
        return found

    def overwrite(self, path: Path, body: bytes) -> None:
        """Write into a file that is there, and give it back the time at which it was changed."""
        was = path.stat()
        with path.open("r+b") as file:
            file.write(body)
        os.utime(path, ns=(was.st_atime_ns, was.st_mtime_ns))

    def program(self, name: str) -> None:
        (self.programs / name).write_text("#!/bin/sh\nexit 1\n")
        (self.programs / name).chmod(0o755)

    def replace_library(self) -> None:
        new = self.libraries / "new"
        new.write_bytes(b"version 1")
        new.rename(self.library)

    def lead_elsewhere(self) -> None:
        other = self.libraries / "libcublas.so.14"
        link = self.libraries / "libcublas.so"
        os.link(self.library, other)
        link.unlink()
        link.symlink_to(other)

    def install(self, name: str) -> None:
        package = self.site / f"{name}-4.0.dist-info"
        package.mkdir()
        (package / "METADATA").write_text(f"Name: {name}\nVersion: 4.0\n")

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        record = json.loads(self.record.read_bytes())
        change(record)
        self.record.write_text(json.dumps(record))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: Patch) -> Machine:
    """A machine whose look has been kept, and holds."""
    found = Machine(tmp_path, monkeypatch)
    process = this_process()
    assert process is not None
    before = kept_environment._record(process)
    assert keep(found.cache), (compat.looked_up_anew(), before, kept_environment._record(process))
    assert read(found.cache)
    return found


#: What changes between two starts.
STALE: dict[str, Callable[[Machine], object]] = {
    "a library overwritten, its time put back": lambda m: m.overwrite(m.library, b"version 2"),
    "a library replaced": Machine.replace_library,
    "a library removed": lambda m: m.library.unlink(),
    "a library that was not there": lambda m: (m.libraries / "libcublasLt.so.13").write_bytes(b""),
    "a link led elsewhere": Machine.lead_elsewhere,
    "the linker's cache": lambda m: m.linkers_cache.write_bytes(b"more"),
    "another library path": lambda m: m.patch.setenv("LD_LIBRARY_PATH", str(m.programs)),
    "another compiler path": lambda m: m.patch.setenv("LIBRARY_PATH", str(m.libraries)),
    "a compiler in front": lambda m: m.program("gcc"),
    "a linker in front": lambda m: m.program("ld"),
    "a package installed": lambda m: m.install("nvidia_cutlass_dsl"),
    "a package removed": lambda m: shutil.rmtree(m.package),
    "a package upgraded in place": lambda m: m.overwrite(
        m.package / "METADATA", METADATA.format("13.2.0").encode()
    ),
    "a package's record": lambda m: (m.package / "RECORD").write_text("other,sha256=,\n"),
    "another prefix": lambda m: m.patch.setattr(sys, "path", sys.path[1:]),
    "another finder of packages": lambda m: m.patch.setattr(
        sys, "meta_path", [*sys.meta_path, Finder()]
    ),
    "another boot": lambda m: m.patch.setattr(kept_environment, "boot_id", lambda: "another"),
    "another torch": lambda m: m.patch.setattr("torch.version.cuda", "0.0"),
    "no record": lambda m: m.record.unlink(),
    "half a record": lambda m: m.record.write_bytes(m.record.read_bytes()[:-20]),
    "a record of another form": lambda m: m.edit(lambda r: r.update(files=[])),
    "too large a record": lambda m: m.record.write_bytes(b" " * (2 << 20)),
}


class Finder:
    """One that knows packages of its own."""

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(self, _: object) -> list[Any]:
        return []


def test_what_is_kept_is_what_flashinfer_finds(machine: Machine) -> None:
    """The answers are its own, and those of a record are the same."""
    stamp = compat.stamp()
    for field, answer in read(machine.cache).items():
        assert stamp[field] == answer
    assert machine.record.parent.stat().st_mode & 0o022 == 0, "no other user may write there"


@pytest.mark.parametrize("change", STALE.values(), ids=STALE)
def test_a_record_that_does_not_hold_is_left(
    machine: Machine, change: Callable[[Machine], object]
) -> None:
    """Whatever of it has changed, by whomever."""
    change(machine)
    assert read(machine.cache) == {}


def test_a_search_that_could_not_be_made_is_kept_by_nobody(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """It says nothing about the files."""
    machine = Machine(tmp_path, monkeypatch)

    def fail(*_: object) -> str:
        raise FileNotFoundError("No usable temporary directory")

    monkeypatch.setattr("ctypes.util.find_library", fail)
    assert not keep(machine.cache)
    assert not (machine.cache / FOLDER).exists()


def test_what_changes_during_the_look_is_not_kept(tmp_path: Path, monkeypatch: Patch) -> None:
    """It would be the old answer with the new files' state."""
    machine = Machine(tmp_path, monkeypatch)
    own = compat.looked_up_anew

    def look() -> dict[str, str]:
        found = own()
        machine.library.write_bytes(b"version 2")
        return found

    monkeypatch.setattr(compat, "looked_up_anew", look)
    assert not keep(machine.cache)


def test_a_record_answers_in_place_of_the_programs(
    machine: Machine, monkeypatch: Patch, looks: list[Any]
) -> None:
    """FlashInfer's own look is not made, and the stamp has the same fields."""
    before = compat.stamp()
    for look in looks:
        look.cache_clear()
    monkeypatch.setattr(environment_stamp, "_kept", {})
    monkeypatch.setattr(environment_stamp, "_process", None)
    environment_stamp.recall(machine.cache)
    assert environment_stamp.kept()
    assert environment_stamp.begin(tells=True) == ""
    assert environment_stamp.Lookup(5.0).stamp() == before
    assert [look.cache_info().misses for look in looks] == [0, 0]


@pytest.mark.parametrize(("mode", "is_used"), [(0o700, True), (0o777, False)])
def test_a_folder_of_everybody_is_used_by_nobody_who_minds(
    tmp_path: Path, mode: int, *, is_used: bool
) -> None:
    """Who can write there would choose which tables count as this environment's."""
    folder = tmp_path / "flashinfer_autotune"
    (folder / FOLDER).mkdir(parents=True)
    (folder / FOLDER).chmod(mode)
    settings = Settings(cache_root=tmp_path, require_private=True)
    assert environment_stamp.folder_of(settings) == (folder if is_used else None)


VERSION_C = "int cublasGetProperty(int t, int *v) { *v = t == 0 ? 13 : t == 1 ? %d : 0; return 0; }"
LOOKS = """
import sys
from pathlib import Path
import flashinfer.autotuner
from warmup_plugin.tuner import compat, kept_environment as kept
folder, process = Path(sys.argv[1]), kept.this_process()
print(kept.read(folder, process).get("cublas_version"), compat.stamp()["cublas_version"])
print(kept.keep(folder, process))
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler to make a library with")
def test_a_real_library_of_another_version_is_seen(tmp_path: Path) -> None:
    """Copied over the one that was looked at, as an administrator would."""
    library = tmp_path / "lib/libcublas.so"
    library.parent.mkdir()

    def made(minor: int) -> Path:
        path = tmp_path / f"{minor}.so"
        command = ["cc", "-shared", "-o", str(path), "-x", "c", "-"]
        subprocess.run(command, input=VERSION_C % minor, text=True, check=True)
        return path

    def look() -> list[str]:
        environ = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
        command = [sys.executable, "-P", "-c", LOOKS, str(tmp_path)]
        return subprocess.check_output(command, env=environ, text=True, timeout=60).split()

    shutil.copyfile(made(1), library)
    assert look() == ["None", "13.1.0", "True"]
    assert look() == ["13.1.0", "13.1.0", "True"]
    shutil.copyfile(made(2), library)
    assert look() == ["None", "13.2.0", "True"]


def kept_below(root: Path) -> list[Path]:
    return sorted(root.glob(f"flashinfer_autotune/{FOLDER}/*.json"))


@pytest.mark.multiprocess
@pytest.mark.parametrize("tp", [1, 2])
def test_a_start_is_spared_the_look_of_the_one_before(children: Children, tp: int) -> None:
    """Each rank of it, and what it keeps is no table: no verb takes it for one.

    As long as the programs run that look, the ranks import what only a cold start needs.
    """
    first = children.ranks("on_kept:start", tp=tp)
    assert [each["kept"] for each in first] == [False] * tp
    assert [each["imported"] for each in first] == [True] * tp
    (record,) = kept_below(children.root)
    assert not isinstance(safe_json.decode(kept_environment._RECORD, record.read_bytes()), str)
    second = children.ranks("on_kept:start", tp=tp)
    assert [each["kept"] for each in second] == [True] * tp
    assert [each["looks"] for each in second] == [0] * tp
    assert [each["imported"] for each in second] == [False] * tp
    assert {each["stamp"] for each in first + second} == {first[0]["stamp"]}


@pytest.mark.multiprocess
@pytest.mark.parametrize("mode", ["read-only", "replay"])
def test_a_start_that_writes_nothing_keeps_no_look(children: Children, mode: str) -> None:
    children.one("on_kept:start", mode=mode)
    assert not list(children.root.rglob("*"))


def test_what_is_kept_is_looked_up_after_the_start_or_as_the_process_ends(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Programs are run for it, while the engine goes on with its start."""
    kept: list[Path] = []
    at_end: list[Callable[[], None]] = []
    is_kept = threading.Event()

    def keep(folder: Path, _process: object) -> None:
        kept.append(folder)
        is_kept.set()

    monkeypatch.setattr(environment_stamp, "_process", object())
    monkeypatch.setattr(environment_stamp, "_LATER_S", 600.0)
    monkeypatch.setattr(kept_environment, "keep", keep)
    monkeypatch.setattr(
        environment_stamp, "Finalize", lambda _, leave, **_options: at_end.append(leave)
    )
    environment_stamp.keep_later(tmp_path)
    assert not is_kept.wait(0.3)
    (leave,) = at_end
    leave()
    assert kept == [tmp_path]
