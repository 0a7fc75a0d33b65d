# SPDX-License-Identifier: Apache-2.0
"""What the rows of the matrix came to, one line for each case and release."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.real_ops.rows import Row

CHECKS = ("keys", "winners", "served", "profiled", "warm", "report")
HEAD = """# FlashInfer's own op code

Written by `make test-real-ops` with `WARMUP_WRITE_DOCS=1`. FlashInfer's ops run behind a stand-in
for the GPU, tuned by FlashInfer alone and by this package, cold and warm;
`tests/real_ops/README.md` says what that shows and what it does not. A column is the number of rows
in which it is as it should be, of all rows of the case; `timed` has the tactics timed alone, cold
and warm in the first of them.

"""


def summary(found: list[tuple[Row, dict[str, Any]]]) -> list[str]:
    """Return a Markdown table."""
    lines = [
        f"| case | release | GPUs | ops | reached | {' | '.join(CHECKS)} | timed |",
        "|---|---|---|---|---|" + "---|" * (len(CHECKS) + 1),
    ]
    groups: dict[tuple[str, str], list[tuple[Row, dict[str, Any]]]] = defaultdict(list)
    for row, verdict in found:
        groups[row.case, row.release].append((row, verdict))
    for (case, release), rows in groups.items():
        lines.append(_line(case, release, rows))
    return lines


def slowest(found: list[tuple[Row, dict[str, Any]]], count: int = 20) -> list[str]:
    """Return the rows that took longest, with the seconds of each way."""
    ordered = sorted(found, key=lambda pair: -sum(pair[1]["seconds"]))[:count]
    total = sum(sum(verdict["seconds"]) for _, verdict in found)
    lines = [f"{sum(v['seconds']):6.1f} s  {row}  {v['seconds']}" for row, v in ordered]
    return [f"{total:.0f} s in {len(found)} rows, the slowest", *lines]


def _line(case: str, release: str, rows: list[tuple[Row, dict[str, Any]]]) -> str:
    verdicts = [verdict for _, verdict in rows]
    gpus = ", ".join(sorted({f"SM{row.on.replace('.', '')}" for row, _ in rows}))
    ops = ", ".join(sorted({op for verdict in verdicts for op in verdict["ops"]}))
    reached = sum(bool(verdict["reached"]) for verdict in verdicts)
    right = [sum(verdict.get(check) == "" for verdict in verdicts) for check in CHECKS]
    cells = [f"{count}/{len(rows)}" for count in (reached, *right)]
    timed = " / ".join(map(str, verdicts[0]["timed"]))
    return f"| {case} | {release} | {gpus} | {ops} | {' | '.join(cells)} | {timed} |"
