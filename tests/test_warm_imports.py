# SPDX-License-Identifier: Apache-2.0
"""What a warm start pays for: no module of a cold one, nothing heavy of the standard library.

By name, since times differ from machine to machine; `benchmarks/import_time.py` has the times. Here
the imports that stand at the top of modules; `tests/tuner/test_warm_imports.py` has a real start.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.test_imports import imports

PACKAGE = Path(__file__).resolve().parent.parent / "warmup_plugin"

#: What an engine of one rank imports when it warms up, besides its own adapter.
FIRST = ("warmup_plugin.kernel_warmup", "warmup_plugin.engines.attempt")
#: Of use to a start that tunes, borrows, merges, resumes, writes a table or looks for libraries.
COLD = (
    "cache.external", "cache.flock", "cache.journal", "cache.journal_records", "cache.lease",
    "cache.locks", "cache.merge", "cache.publishing", "cache.task_result",
    "planning.codec", "planning.cost_model", "planning.inventory", "planning.merge_results",
    "planning.plan", "planning.timing_history", "planning.work_queue",
    "steps.cold_steps", "steps.plan", "steps.prepare", "steps.publish", "steps.resume",
    "steps.share", "steps.single_flight", "steps.tune", "steps.verify_entries",
    "tuner.behaviour", "tuner.build", "tuner.measurement", "tuner.race", "tuner.race.counts",
    "tuner.replay",
)  # fmt: skip
#: Of use to several ranks only.
SHARED = (
    "coordination.coordinator", "coordination.heartbeat", "coordination.kv_client",
    "coordination.messages", "coordination.opening", "engines.presence", "engines.readiness",
    "runtime.needs",
)  # fmt: skip
#: Each takes milliseconds, alone or by what it imports. torch has some, not in every release.
HEAVY = (
    "argparse", "asyncio", "concurrent", "configparser", "csv", "decimal", "difflib", "email",
    "ftplib", "gzip", "html", "http", "ipaddress", "logging.config",
    "logging.handlers", "optparse", "pdb", "pickle", "platform", "pprint",
    "pydoc", "queue", "random", "sched", "selectors", "shlex", "smtplib", "sqlite3", "ssl",
    "statistics", "tarfile", "tempfile", "tokenize", "tomllib", "traceback", "unittest", "urllib",
    "uuid", "webbrowser", "xml", "xmlrpc", "zipfile", "zoneinfo",
)  # fmt: skip


def reached(*first: str) -> set[str]:
    """Return the modules that are imported by importing these, with the packages they lie in."""
    known = imports.read(PACKAGE)
    found: set[str] = set()
    todo = [*first]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        todo += known.get(name, ())
        if "." in name:
            todo.append(name.rpartition(".")[0])
    return found


def source_of(name: str) -> Path:
    path = PACKAGE.parent / name.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", [*COLD, *SHARED])
def test_a_warm_start_of_one_rank_imports_no(name: str) -> None:
    """It is imported where it is used; by a cold start while programs run (`cold_steps.py`)."""
    full = f"warmup_plugin.{name}"
    assert source_of(full).exists(), "it has moved"
    assert full not in reached(*FIRST)


def test_a_warm_start_imports_nothing_heavy_of_the_standard_library() -> None:
    """Whoever needs such a module imports it in the function that does."""
    found = {
        name: heavy
        for name in reached(*FIRST)
        for asked in imports.imports_of(ast.parse(source_of(name).read_text()))
        for heavy in HEAVY
        if f"{asked}.".startswith(f"{heavy}.")
    }
    assert found == {}


def test_what_is_imported_is_found() -> None:
    """The tests above can fail."""
    assert "warmup_plugin.tuner.race.counts" in reached("warmup_plugin.steps.tune")
    assert "warmup_plugin.cache.lease" in reached("warmup_plugin.steps.single_flight")
    assert "warmup_plugin.engines" in reached(*FIRST)
