# SPDX-License-Identifier: Apache-2.0
"""One page from a receipt, with nothing to fetch: timeline, time per op, gains, sources.

Owns the page; `report_charts.py` has what is drawn. Plotly draws it, an extra
(``warmup-plugin[report]``), whose script stands in the page. Text from files is escaped. Raises
`CommandError` where plotly is not installed.
"""

from __future__ import annotations

import html
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from warmup_plugin.cli import output, report_charts, report_stats
from warmup_plugin.cli.output import CommandError
from warmup_plugin.observability.report import WarmupReport

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; --ink: #1f2933; --soft: #52606d; --paper: #fff; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #d9e2ec; --soft: #9fb3c8; --paper: #16202b; }} }}
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px;
  padding: 0 1rem; color: var(--ink); background: var(--paper); }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .2rem; }}
p.about, p.legend {{ color: var(--soft); margin: 0 0 .5rem; }}
p.legend span {{ white-space: nowrap; margin-right: 1rem; }}
p.legend i {{ display: inline-block; width: .8em; height: .8em; margin-right: .3em;
  outline: 1px solid var(--soft); }}
div.scrolls {{ overflow-x: auto; }}
table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left;
  vertical-align: top; }} th {{ font-weight: 600; }} td {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>{title}</h1>
{body}
<script>{paint}</script>
</body></html>
"""
#: Drawings have colours of their own: they follow the reader's scheme, also when it changes.
_PAINT = """
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function paint() {
  const ink = dark.matches ? "#d9e2ec" : "#1f2933", grid = dark.matches ? "#334e68" : "#e4e7eb";
  for (const each of document.getElementsByClassName("js-plotly-plot")) {
    Plotly.relayout(each, {"font.color": ink, "xaxis.gridcolor": grid, "yaxis.gridcolor": grid,
      "xaxis.zerolinecolor": grid, "yaxis.zerolinecolor": grid});
  }
}
if (window.Plotly) {
  paint();
  dark.addEventListener("change", paint);
  // A drawing that was made before its column had its width would stay as wide.
  const fit = new ResizeObserver((seen) => seen.forEach((each) =>
    Plotly.Plots.resize(each.target.querySelector(".js-plotly-plot"))));
  for (const each of document.querySelectorAll("div.scrolls > div")) { fit.observe(each); }
}
"""


def render(report: WarmupReport, wins: Sequence[report_stats.Win]) -> str:
    """Return the page."""
    drawn = [
        ("timeline", "Timeline", "Each rank's steps and tasks, in seconds since the first meeting.",
         report_charts.timeline(report)),
        ("per-op", "Time per op", "Seconds spent on tuning, by op.", report_charts.per_op(wins)),
        ("gains", "Speed over the default", "Default's time over the winner's, by op and size.",
         report_charts.gains(wins)),
        ("sources", "What came from where", "Tasks of all ranks, by what became of them.",
         report_charts.sources(report)),
    ]  # fmt: skip
    parts = [_table(_facts(report))]
    script = True  # plotly's own, with the first figure
    for name, title, about, figure in drawn:
        parts.append(f'<h2>{title}</h2><p class="about">{about}</p>')
        if figure is None:
            parts.append(f'<p id="{name}">Nothing was timed.</p>')
            continue
        width = figure.get("width", 0)
        drawing = _drawn(figure, name, script=script)
        parts.append(f'<div class="scrolls"><div style="min-width:{width}px">{drawing}</div></div>')
        parts.append(_legend(figure.get("legend", {})))
        script = False
    parts.append("<h2>Who waited for whom</h2>")
    waits = [("", report_stats.who_waited(row)) for row in report.waited]
    parts.append(_table(waits) if waits else "<p>Nobody, for longer than 0.01 s.</p>")
    parts.append("<h2>Files</h2>")
    parts.append(_table(_files(report)))
    title = f"{report.engine} {report.engine_version}, {output.plural(report.world_size, 'rank')}"
    return _PAGE.format(
        title=html.escape(f"Warm-up of {title}"), body="\n".join(parts), paint=_PAINT
    )


def _legend(colours: Mapping[str, str]) -> str:
    """Return what the colours of a drawing stand for: words, which break where a phone's lines do.

    A drawing's own legend would lie over its bars there.
    """
    cells = [f'<span><i style="background:{colour}"></i>{html.escape(name)}</span>'
             for name, colour in colours.items()]  # fmt: skip
    return f'<p class="legend">{" ".join(cells)}</p>' if cells else ""


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
        "yaxis": {"automargin": True}, "showlegend": False,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
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


def _facts(report: WarmupReport) -> Iterable[tuple[str, str]]:
    yield "when", time.strftime("%Y-%m-%d %H:%M:%S %Z (%z)", time.localtime(report.at))
    yield "agreement", f"{report.agreement} {report.certificate[: output.SHORT]} {report.reason}"
    counts = report.tasks.items()
    yield f"tasks of rank {report.rank}", ", ".join(f"{n} {_words(name)}" for name, n in counts)
    timed = [row.tactics_timed for row in report.ranks]
    apart = [row.passed_through_tactics for row in report.ranks]
    if len(timed) > 1:
        yield "tactics timed by all ranks", str(sum(timed) - sum(apart))
    yield f"tactics timed by rank {report.rank}", str(report.tactics_of_tasks)
    if others := sum(apart) or report.passed_through_tactics:
        yield "tactics timed by ops left to themselves", str(others)
    yield "FlashInfer", report.flashinfer_version
    yield "mode", f"{report.mode}, strategy {report.strategy}"
    yield "identity", report.identity


def _words(name: str) -> str:
    return name.replace("_", " ")


def _files(report: WarmupReport) -> Iterable[tuple[str, str]]:
    for row in report.read:
        yield "read", f"{row.path}: {row.entries} entries {row.reason}"
    for source, number in report.adopted_from.items():
        yield "adopted", f"{number} tasks from {source}"
    yield "table", report.path or "memory only"
    yield "written", ", ".join(report.published) or "nothing"


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in rows
    )
    return f"<table>{cells}</table>"
