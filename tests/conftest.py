# SPDX-License-Identifier: Apache-2.0
"""What every test stands on: a clean environment, a trap at the default cache directory, releases.

Owns: the environment variables of the test process and its children; the fixtures `cache_root`
(a directory of one's own), `default_cache_trap`, `fallback_release` and `matrix_release`; the hook
`pytest_closing_words`, by which a folder says something at the end, side by side with others, too.
Refuses: to put the checkout on sys.path; tests import the installed wheel.
Fails: a test after which anything stands in the default cache directory or the home directory.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parent.parent

# Whatever the caller's shell or job launcher says about ranks and places is not for our tests.
FOREIGN_PREFIXES = ("FLASHINFER_", "SGLANG_", "VLLM_", "WARMUP_PLUGIN_")
FOREIGN_VARIABLES = ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


class DefaultCacheUsedError(AssertionError):
    """A test wrote where users keep their tables; it forgot to choose a directory."""


@dataclass(frozen=True)
class Trap:
    """An empty directory that holds the home and the user cache directory of every test."""

    root: Path

    def check(self) -> None:
        """Raise if anything stands here, and empty it, so that only the culprit is blamed."""
        used = sorted(str(path.relative_to(self.root)) for path in self.root.rglob("*"))
        if not used:
            return
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        message = (
            f"the default cache directory or the home directory was written to: {', '.join(used)}; "
            "give the code under test a directory (fixture `cache_root`)"
        )
        raise DefaultCacheUsedError(message)


TRAP = pytest.StashKey[Trap]()
#: What the processes said that ran tests for this one.
SAID = pytest.StashKey[list[str]]()


class Hooks:
    """What a folder's conftest.py may have besides pytest's own."""

    def pytest_closing_words(self, config: pytest.Config) -> list[str]:  # type: ignore[empty-body]  # a specification
        """Return lines for the end of the run, about the tests of this process."""


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Let folders have them."""
    pluginmanager.add_hookspecs(Hooks)


def _closing_words(config: pytest.Config) -> list[str]:
    return [line for lines in config.hook.pytest_closing_words(config=config) for line in lines]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand them to the process that prints, if this one runs tests for another."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["said"] = _closing_words(session.config)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, where it is in use
def pytest_testnodedown(node: Any) -> None:
    """Take them from a process that has ended; one that died has none."""
    said = getattr(node, "workeroutput", {}).get("said", [])
    node.config.stash.setdefault(SAID, []).extend(said)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print them."""
    for line in config.stash.get(SAID, []) + _closing_words(config):
        terminalreporter.write_line(line)


def releases_of(target: str) -> list[str]:
    """The FlashInfer releases that `make <target>` installs besides the main one."""
    lines = (CHECKOUT / "requirements" / "flashinfer-releases.txt").read_text().splitlines()
    words = [line.split() for line in lines if not line.startswith("#")]
    return [word[0] for word in words if target in word[1].split(",")]


def _take_signals_back() -> None:
    """Undo what the caller ignores, as `nohup` does: children of the tests inherit it."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) is signal.SIG_IGN:
            is_int = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if is_int else signal.SIG_DFL)


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before collection: test modules may import FlashInfer, which reads it."""
    _take_signals_back()
    before = dict(os.environ)
    private = Path(tempfile.mkdtemp(prefix="warmup-plugin-tests-"))
    trap = Trap(private / "default-cache-trap")
    trap.root.mkdir()

    for name in before:
        if name.startswith(FOREIGN_PREFIXES) or name in FOREIGN_VARIABLES:
            del os.environ[name]
    os.environ["HOME"] = str(trap.root / "home")
    os.environ["XDG_CACHE_HOME"] = str(trap.root / "xdg-cache")
    # FlashInfer makes its JIT folder at import, in the home directory unless told otherwise.
    os.environ["FLASHINFER_WORKSPACE_BASE"] = str(private / "flashinfer")
    # torch asks the name server for both sides of each connection: one that drops a question now
    # and then would hold a rank for five seconds, longer than many tests' silences.
    os.environ["RES_OPTIONS"] = "timeout:1 attempts:1"
    # Children started with `python -c` or `-m` must not find the checkout in the current folder.
    os.environ["PYTHONSAFEPATH"] = "1"

    def restore() -> None:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(private, ignore_errors=True)

    config.add_cleanup(restore)
    config.stash[TRAP] = trap


#: Files that take a minute and more. Dealt to processes last, one of them runs when all the others
#: have nothing left to do.
LONG = (
    "protocol/test_explorer.py", "faults/test_denials.py", "real_ops/test_matrix.py",
    "kubernetes/test_readiness.py", "gpu/test_gpu_evidence.py",
)  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with the long files; leave `soak` out; skip tests marked `gpu` where there is none.

    Soak tests run where they are asked for. Imports torch only if a test for the GPU was collected.
    """
    long = {CHECKOUT / "tests" / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: long.get(item.path, len(LONG)))  # as they were, otherwise
    if "soak" not in config.option.markexpr:
        left_out = [item for item in items if item.get_closest_marker("soak")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if not item.get_closest_marker("soak")]
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if not needing:
        return
    import torch

    if not torch.cuda.is_available():
        for item in needing:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def default_cache_trap(request: pytest.FixtureRequest) -> Trap:
    """Where HOME and XDG_CACHE_HOME point."""
    return request.config.stash[TRAP]


@pytest.fixture(autouse=True)
def _default_cache_stays_unused(default_cache_trap: Trap) -> Iterator[None]:
    """Fail the test that used the default cache directory, in this process or in a child."""
    yield
    default_cache_trap.check()


@pytest.fixture
def cache_root(tmp_path: Path) -> Path:
    """An existing, empty, private directory to give as the cache root."""
    root = tmp_path / "cache-root"
    root.mkdir(mode=0o700)
    return root


def _release(version: str) -> Path:
    releases = os.environ.get("WARMUP_TEST_RELEASES", CHECKOUT / ".venv" / "releases")
    folder = Path(releases) / version
    if not (folder / "flashinfer").is_dir():
        pytest.fail(f"{releases} holds no FlashInfer {version}: run `make test` or `make matrix`")
    return folder


@pytest.fixture(params=releases_of("test"))
def fallback_release(request: pytest.FixtureRequest) -> Path:
    """A folder for PYTHONPATH of a child: the FlashInfer that ranks must fall back on."""
    return _release(request.param)


#: The releases of `make matrix`, and those of them of which a change must pass whole starts too:
#: the oldest, SGLang's and the newest.
MATRIX = releases_of("matrix")
STARTED = (MATRIX[0], *MATRIX[-2:])


@pytest.fixture(
    params=[
        pytest.param(
            version,
            marks=(pytest.mark.release, *(() if version in STARTED else (pytest.mark.soak,))),
        )
        for version in MATRIX
    ]
)
def started_release(request: pytest.FixtureRequest) -> Path:
    """As `matrix_release`, for whole starts."""
    return _release(request.param)


@pytest.fixture(params=[pytest.param(version, marks=pytest.mark.release) for version in MATRIX])
def matrix_release(request: pytest.FixtureRequest) -> Path:
    """A folder for PYTHONPATH of a child, once per further FlashInfer release."""
    return _release(request.param)


@pytest.fixture
def newest_release() -> Path:
    """A folder for PYTHONPATH of a child: the newest FlashInfer that the tests meet."""
    return _release(MATRIX[-1])
