# SPDX-License-Identifier: Apache-2.0
"""No file of ours gets the number of a standard stream that was closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

#: Closes streams, opens a file of its own as a session does, and prints as torch does.
OPENS = """
import os, sys
from warmup_plugin.runtime.standard_streams import hold_standard_streams
for stream in map(int, sys.argv[2:]):
    os.close(stream)
hold_standard_streams()
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
for stream in (1, 2):
    try:
        os.write(stream, b"a line of somebody's")
    except OSError:
        pass
os.write(file, b"ours %d" % file)
hold_standard_streams()
"""


@pytest.mark.parametrize("closed", [(), (0,), (2,), (1, 2), (0, 1, 2)])
def test_what_is_printed_goes_into_no_file_of_ours(tmp_path: Path, closed: tuple[int, ...]) -> None:
    path = tmp_path / "file"
    command = [sys.executable, "-c", OPENS, str(path), *map(str, closed)]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    ours, number = path.read_text().split()
    assert ours == "ours"
    assert int(number) > 2


#: Closes standard error and says which number a file of ours gets, in an engine's very first call.
MEETS = """
import os, sys
from warmup_plugin.engines.attempt import Attempt, Scope
from warmup_plugin.settings import Settings

def roots():
    number = os.open(sys.executable, os.O_RDONLY)
    print(number)
    raise OSError("looked for nothing else")

os.close(2)
Attempt(Scope(0, 1)).prepared(roots, Settings.from_env({}), "0", roots)
"""


def test_nothing_precedes_that_in_an_engine() -> None:
    command = [sys.executable, "-c", MEETS]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    first, second = map(int, done.stdout.split())
    assert min(first, second) > 2


def test_without_a_null_device_or_a_descriptor_nothing_happens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from warmup_plugin.runtime import standard_streams

    def fails(*_args: object) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr("os.open", fails)
    standard_streams.hold_standard_streams()
