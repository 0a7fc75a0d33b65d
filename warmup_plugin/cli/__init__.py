# SPDX-License-Identifier: Apache-2.0
"""The command `warmup-plugin`: one module per verb in `commands/`, listed in `parser.py`.

    places.py       where tables are kept on this machine; inventory.py walks there, named.py finds
                    what is named on a command line, engines.py knows the engines
    demo_run.py     the demo's two starts; demo_progress.py shows them, demo_text.py prints the
                    result, demo_clauses.py proves the clauses of the design
    environment.py  this machine; identity_summary.py, what is kept on it for an identity
    load.py         reads a file; show_text.py prints it
    archive.py      archives and images as files; registry.py, how `push` and `pull` ask
    removal.py      deletes an identity; in_use.py says who uses it
    diagnose.py     why the last start tuned; receipts.py, which that was
    doctor_*.py     the checks of `doctor`; report_*.py, the sums, drawings and page of `report`

A verb's work returns a dataclass and prints nothing; printing is another function. Imports no torch
in this process: what needs it runs in child processes. Exit codes stand in `_main.py`.
"""

from __future__ import annotations

from warmup_plugin.cli._main import main

__all__ = ["main"]
