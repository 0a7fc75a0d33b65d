# SPDX-License-Identifier: Apache-2.0
"""The drawings of a start's page: what is drawn of a receipt, in plotly's terms. Pure.

Owns the colours, and what each drawing shows: bars over time by rank and step, seconds by op, gains
by op and size, tasks by what became of them. A drawing is a mapping with its data and layout, the
legend (words by colour), and the least width at which it can be read; None where there is nothing.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Sequence
from typing import Any

from warmup_plugin.cache.gains import mean_gain
from warmup_plugin.cli import output, report_stats
from warmup_plugin.observability.report import WarmupReport

_COLOURS = {
    "open": "#9aa5b1", "read": "#7bc8a4", "agree": "#4cc3d9", "survey": "#3a7ca5",
    "plan": "#b39ddb", "tune": "#e4572e", "share": "#f4a259", "prepare": "#ffc65d",
    "publish": "#8e9aaf", "check": "#c3423f", "certify": "#2e933c", "wait": "#c0c7cf",
}  # fmt: skip
_OUTCOMES = {
    "from_cache": "#3a7ca5", "tuned": "#e4572e", "received": "#f4a259", "adopted": "#7bc8a4",
    "default": "#9aa5b1", "unshared": "#b39ddb", "left": "#616e7c",
}  # fmt: skip
_OTHER = "#616e7c"


def timeline(report: WarmupReport) -> dict[str, Any] | None:
    rows = [(f"rank {row.rank}", *step) for row in report.ranks for step in row.steps]
    if not rows:
        return None
    data: list[dict[str, Any]] = []
    for step in dict.fromkeys(step for _, step, _, _ in rows):
        mine = [row for row in rows if row[1] == step]
        data.append(_bars(step, mine, _COLOURS.get(step, _OTHER), width=0.7))
    tasks = [(f"rank {row.rank}", f"{row.op} @ {row.bucket}", row.began, row.seconds)
             for row in report.winners]  # fmt: skip
    if tasks:
        data.append(_bars("a task", tasks, "#1f2933", width=0.25))
    ranks = sorted({row.rank for row in report.ranks}, reverse=True)
    layout = {
        "barmode": "overlay", "height": 140 + 44 * len(ranks),
        "xaxis": {"title": "seconds"},
        "yaxis": {"categoryorder": "array", "categoryarray": [f"rank {rank}" for rank in ranks]},
    }  # fmt: skip
    return {"data": data, "layout": layout,
            "legend": {str(row["name"]): str(row["marker"]["color"]) for row in data}}  # fmt: skip


def _bars(
    name: str, rows: Sequence[tuple[str, str, float, float]], colour: str, *, width: float
) -> dict[str, Any]:
    return {
        "type": "bar", "orientation": "h", "name": name, "width": width,
        "y": [row[0] for row in rows], "base": [row[2] for row in rows],
        "x": [row[3] for row in rows],
        "customdata": [[html.escape(row[1]), row[3]] for row in rows],
        "hovertemplate": "%{y}: %{customdata[0]}<br>%{customdata[1]:.4f} s<extra></extra>",
        "marker": {"color": colour, "line": {"width": 0}},
    }  # fmt: skip


def per_op(wins: Sequence[report_stats.Win]) -> dict[str, Any] | None:
    rows = [row for row in report_stats.by_op(wins) if row.seconds is not None][::-1]
    if not rows:
        return None
    data = [{
        "type": "bar", "orientation": "h", "y": [row.op for row in rows],
        "x": [row.seconds for row in rows],
        "text": [output.plural(row.tasks, "task") for row in rows],
        "marker": {"color": "#e4572e"},
    }]  # fmt: skip
    return {"data": data, "layout": {"height": 120 + 34 * len(rows),
                                     "xaxis": {"title": "seconds"}}}  # fmt: skip


def gains(wins: Sequence[report_stats.Win]) -> dict[str, Any] | None:
    gains: dict[tuple[str, str], list[float]] = {}
    for win in wins:
        if win.gain:
            gains.setdefault((win.op, win.size), []).append(win.gain)
    if not gains:
        return None
    ops = sorted({op for op, _ in gains}, reverse=True)
    sizes = sorted({size for _, size in gains}, key=_as_number)
    cells = [[mean_gain(gains.get((op, size), ())) for size in sizes] for op in ops]
    data = [{
        "type": "heatmap", "x": sizes, "y": ops, "z": cells,
        "colorscale": "YlGn", "zmin": 1, "zmax": 3,
        "texttemplate": "%{z:.2f}", "hovertemplate": "%{y} at %{x}: %{z:.2f} x<extra></extra>",
    }]  # fmt: skip
    layout = {"height": 140 + 36 * len(ops), "xaxis": {"title": "size", "type": "category"}}
    # A cell's number needs its room: narrower pages scroll.
    return {"data": data, "layout": layout, "width": 200 + 52 * len(sizes)}


def _as_number(size: str) -> tuple[int, str]:
    first = size.split("x", maxsplit=1)[0]
    return (int(first) if first.isdecimal() else 0, size)


def sources(report: WarmupReport) -> dict[str, Any] | None:
    counts: dict[str, Counter[str]] = {}
    for found in [row.ops for row in report.ranks] or [report.ops]:
        for op, numbers in found.items():
            counts.setdefault(op, Counter()).update(numbers)
    ops = sorted(counts, reverse=True)
    names = dict.fromkeys(n for op in ops for n in counts[op] if n != "seen")
    shown = [name for name in names if any(counts[op][name] for op in ops)]
    data = [
        {
            "type": "bar", "orientation": "h", "name": name.replace("_", " "), "y": ops,
            "x": [counts[op][name] for op in ops],
            "marker": {"color": _OUTCOMES.get(name, _OTHER)},
        }
        for name in shown
    ]  # fmt: skip
    layout = {"barmode": "stack", "height": 140 + 34 * len(ops), "xaxis": {"title": "tasks"}}
    legend = {name.replace("_", " "): _OUTCOMES.get(name, _OTHER) for name in shown}
    return {"data": data, "layout": layout, "legend": legend} if data else None
