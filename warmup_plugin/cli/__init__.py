# SPDX-License-Identifier: Apache-2.0
"""The command `warmup-plugin`: one module per verb, listed in `parser.py`.

    places.py  where tables are kept on this machine; tree.py walks there, named.py finds what
               somebody names, engines.py knows the engines
    demo.py    two_starts.py runs both and judges, ticker.py tells meanwhile, comparison.py prints;
               clauses.py proves the clauses of the design
    where.py   machine.py looks at this machine, shelf.py at what is kept there
    show.py    reading.py reads a file, describe.py prints it
    prune.py, rm.py    removal.py deletes, usage.py says what is in use

A verb's work returns a dataclass and prints nothing; printing is another function. Imports no torch
in this process: what needs it runs in child processes. Exit codes stand in `_main.py`.
"""

from __future__ import annotations

from warmup_plugin.cli._main import main

__all__ = ["main"]
