# SPDX-License-Identifier: Apache-2.0
"""One page from a receipt, with nothing to fetch: timeline, time per op, gains, sources.

Owns the page. The drawing is plotly's, an extra (``warmup-plugin[report]``), whose script stands in
the page. Text from files is escaped. Raises `CommandError` where plotly is not installed.
"""

from __future__ import annotations

import html
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from warmup_plugin.cli import figures, output
from warmup_plugin.cli.output import CommandError
from warmup_plugin.report import WarmupReport

_COLOURS = {
    "open": "#9aa5b1", "read": "#7bc8a4", "agree": "#4cc3d9", "survey": "#3a7ca5",
    "plan": "#b39ddb", "tune": "#e4572e", "share": "#f4a259", "prepare": "#ffc65d",
    "publish": "#8e9aaf", "certify": "#2e933c",
}  # fmt: skip
#: What of a tuned task is drawn; receipts of other versions may lack some of it.
_TASK = {"rank", "op", "bucket", "began", "seconds"}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px;
  padding: 0 1rem; color: #1f2933; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .2rem; }}
p.about {{ color: #52606d; margin: 0 0 .5rem; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left;
  vertical-align: top; }} th {{ font-weight: 600; }} td {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def render(report: WarmupReport, wins: Sequence[figures.Win]) -> str:
    """Return the page."""
    drawn = [
        ("timeline", "Timeline", "Each rank's steps and tasks, in seconds since the first meeting.",
         _timeline(report)),
        ("per-op", "Time per op", "Seconds spent on tuning, by op.", _per_op(wins)),
        ("gains", "Speed over the default", "Default's time over the winner's, by op and size.",
         _gains(wins)),
        ("sources", "What came from where", "Tasks of all ranks, by what became of them.",
         _sources(report)),
    ]  # fmt: skip
    parts = [_table(_facts(report))]
    script = True  # plotly's own, with the first figure
    for name, title, about, figure in drawn:
        parts.append(f'<h2>{title}</h2><p class="about">{about}</p>')
        if figure is None:
            parts.append(f'<p id="{name}">Nothing was timed.</p>')
            continue
        parts.append(_drawn(figure, name, script=script))
        script = False
    parts.append("<h2>Who waited for whom</h2>")
    waits = [("", figures.who_waited(row)) for row in report.waited]
    parts.append(_table(waits) if waits else "<p>Nobody, for longer than 0.01 s.</p>")
    parts.append("<h2>Files</h2>")
    parts.append(_table(_files(report)))
    title = f"{report.engine} {report.engine_version}, {output.plural(report.world_size, 'rank')}"
    return _PAGE.format(title=html.escape(f"Warm-up of {title}"), body="\n".join(parts))


def _plotly() -> Any:
    try:
        import plotly.graph_objects
        import plotly.io
    except ImportError:
        raise CommandError("the page needs plotly: pip install 'warmup-plugin[report]'") from None
    return plotly


def _drawn(figure: dict[str, Any], name: str, *, script: bool) -> str:
    plotly = _plotly()
    layout = {
        "template": "plotly_white", "margin": {"l": 10, "r": 10, "t": 10, "b": 40},
        "yaxis": {"automargin": True}, "legend": {"orientation": "h", "y": 1.12},
    }  # fmt: skip
    layout |= figure["layout"]
    layout["yaxis"] = {"automargin": True, **figure["layout"].get("yaxis", {})}
    made = plotly.graph_objects.Figure(data=figure["data"], layout=layout)
    text: str = plotly.io.to_html(
        made, include_plotlyjs=script, full_html=False, div_id=name,
        config={"displayModeBar": False, "responsive": True},
        default_height=f"{layout.get('height', 360)}px",
    )  # fmt: skip
    return text


def _timeline(report: WarmupReport) -> dict[str, Any] | None:
    rows = [(f"rank {row['rank']}", step, began, seconds)
            for row in report.ranks for step, began, seconds in row["steps"]]  # fmt: skip
    if not rows:
        return None
    data: list[dict[str, Any]] = []
    for step in dict.fromkeys(step for _, step, _, _ in rows):
        mine = [row for row in rows if row[1] == step]
        data.append(_bars(step, mine, _COLOURS.get(step, "#616e7c"), width=0.7))
    tasks = [(f"rank {row['rank']}", f"{row['op']} @ {row['bucket']}", row["began"],
              row["seconds"]) for row in report.winners if row.keys() >= _TASK]  # fmt: skip
    if tasks:
        data.append(_bars("a task", tasks, "#1f2933", width=0.25))
    ranks = sorted({row["rank"] for row in report.ranks}, reverse=True)
    layout = {
        "barmode": "overlay", "height": 140 + 44 * len(ranks),
        "xaxis": {"title": "seconds"},
        "yaxis": {"categoryorder": "array", "categoryarray": [f"rank {rank}" for rank in ranks]},
    }  # fmt: skip
    return {"data": data, "layout": layout}


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


def _per_op(wins: Sequence[figures.Win]) -> dict[str, Any] | None:
    rows = [row for row in figures.by_op(wins) if row.seconds is not None][::-1]
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


def _gains(wins: Sequence[figures.Win]) -> dict[str, Any] | None:
    gains: dict[tuple[str, str], list[float]] = {}
    for win in wins:
        if win.gain:
            gains.setdefault((win.op, win.size), []).append(win.gain)
    if not gains:
        return None
    ops = sorted({op for op, _ in gains}, reverse=True)
    sizes = sorted({size for _, size in gains}, key=_as_number)
    cells = [[figures.mean_gain(gains.get((op, size), ())) for size in sizes] for op in ops]
    data = [{
        "type": "heatmap", "x": sizes, "y": ops, "z": cells,
        "colorscale": "YlGn", "zmin": 1, "zmax": 3,
        "texttemplate": "%{z:.2f}", "hovertemplate": "%{y} at %{x}: %{z:.2f} x<extra></extra>",
    }]  # fmt: skip
    layout = {"height": 140 + 36 * len(ops), "xaxis": {"title": "size", "type": "category"}}
    return {"data": data, "layout": layout}


def _as_number(size: str) -> tuple[int, str]:
    first = size.split("x", maxsplit=1)[0]
    return (int(first) if first.isdecimal() else 0, size)


def _sources(report: WarmupReport) -> dict[str, Any] | None:
    counts: dict[str, Counter[str]] = {}
    for found in [row.get("ops", {}) for row in report.ranks] or [report.ops]:
        for op, numbers in found.items():
            counts.setdefault(op, Counter()).update(numbers)
    ops = sorted(counts, reverse=True)
    names = dict.fromkeys(n for op in ops for n in counts[op] if n != "seen")
    data = [
        {
            "type": "bar", "orientation": "h", "name": name.replace("_", " "), "y": ops,
            "x": [counts[op][name] for op in ops],
        }
        for name in names
        if any(counts[op][name] for op in ops)
    ]  # fmt: skip
    layout = {"barmode": "stack", "height": 140 + 34 * len(ops), "xaxis": {"title": "tasks"}}
    return {"data": data, "layout": layout} if data else None


def _facts(report: WarmupReport) -> Iterable[tuple[str, str]]:
    yield "when", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.at))
    yield "agreement", f"{report.agreement} {report.certificate[: output.SHORT]} {report.reason}"
    yield "tasks", ", ".join(f"{n} {name.replace('_', ' ')}" for name, n in report.tasks.items())
    yield "tactics timed", str(sum(r.get("tactics_timed", 0) for r in report.ranks)
                               or report.tactics_timed)  # fmt: skip
    yield "FlashInfer", report.flashinfer_version
    yield "mode", f"{report.mode}, strategy {report.strategy}"
    yield "identity", report.identity


def _files(report: WarmupReport) -> Iterable[tuple[str, str]]:
    for row in report.read:
        yield "read", f"{row['path']}: {row.get('entries', 0)} entries {row['reason']}"
    for source, number in report.adopted_from.items():
        yield "adopted", f"{number} tasks from {source}"
    yield "table", report.path or "memory only"
    yield "written", json.dumps(list(report.published))


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows
    )
    return f"<table>{cells}</table>"
