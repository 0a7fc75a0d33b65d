# SPDX-License-Identifier: Apache-2.0
"""The command `warmup-plugin`: one module per verb, listed in `_main.py`.

    demo.py    a cold and a warm start of a small engine; two_starts.py runs and judges them
    where.py   where the tables of a job lie, and why there; machine.py looks at this machine
    show.py    what stands in a file; reading.py reads it

A verb's work returns a dataclass and prints nothing; printing is another function. Imports no torch
in this process: what needs it runs in child processes. Exit codes stand in `_main.py`.
"""

from __future__ import annotations

from warmup_plugin.cli._main import main

__all__ = ["main"]
