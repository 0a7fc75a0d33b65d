# SPDX-License-Identifier: Apache-2.0
"""The measurement as a section of ``docs/evidence.md``.

Owns its words. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from warmup_plugin.gpu_evidence.verdict import Verdict

_HEAD = (
    "| op | tactics timed: alone, cold, warm | seconds: alone, cold, warm | served as alone "
    "| ours / alone, re-measured: median, worst (noise) | default / ours | laws |\n"
    "|---|---|---|---|---|---|---|"
)


def section(result: Mapping[str, Any], verdicts: Mapping[str, Verdict]) -> str:
    """Return the Markdown section."""
    tried = {name: found for name, found in verdicts.items() if not found.why_not}
    lines = [f"### {_title(result)}", ""]
    if result["stand_in"]:
        lines += ["**Behind a stand-in for the GPU: not one figure here is a GPU's.**", ""]
    lines += [_environment(result), "", _what(result), ""]
    if tried:
        rows = [_row(name, result["ops"][name], found) for name, found in tried.items()]
        lines += [_HEAD, *rows, ""]
    others = [f"- {name}: {v.why_not}" for name, v in verdicts.items() if v.why_not]
    if others:
        lines += ["Nothing to compare:", "", *others, ""]
    broken = [f"- {name}: {law}" for name, v in verdicts.items() for law in v.broken]
    if broken:
        lines += ["Broken laws:", "", *broken, ""]
    return "\n".join(lines)


def _title(result: Mapping[str, Any]) -> str:
    gpu = result["facts"].get("gpu", {})
    return f"{gpu.get('name', 'no GPU')}, {result['facts'].get('date', '')[:10]}"


def _environment(result: Mapping[str, Any]) -> str:
    facts = result["facts"]
    gpu, packages = facts.get("gpu", {}), facts.get("packages", {})
    parts = [
        f"compute capability {gpu['capability']}, {gpu['sm_count']} SMs" if gpu else "no GPU",
        f"driver {facts['driver']}" if facts.get("driver") else "",
        f"CUDA {facts['cuda']}" if facts.get("cuda") else "",
        *(f"{name} {version}" for name, version in packages.items()),
        f"warmup-plugin {facts.get('warmup-plugin', '?')}",
        *(f"{name} {value}" for name, value in facts.get("nvidia-smi", {}).items()),
        *(f"{name}={value}" for name, value in facts.get("switches", {}).items()),
    ]
    return "; ".join(filter(None, parts)) + "."


def _what(result: Mapping[str, Any]) -> str:
    batches = ", ".join(map(str, result["batches"]))
    served = ", ".join(map(str, result["served"]))
    return (
        f"`python -m warmup_plugin.gpu_evidence`, {result['seconds']:.0f} s. One GPU; each way in "
        f"a process of its own, alone first; the op has run on its default before. Warm-up at "
        f"{batches} tokens; asked and timed again at {served}. Margin {result['margin']:.0%}."
    )


def _row(name: str, ways: Mapping[str, Any], found: Verdict) -> str:
    rows = [ways.get(way, {}) for way in ("alone", "cold", "warm")]
    timed = ", ".join(str(row.get("timed", "-")) for row in rows)
    seconds = ", ".join(f"{row['seconds']:.2f}" if "seconds" in row else "-" for row in rows)
    again = f"{found.ratio:.2f}, {found.worst:.2f} ({found.noise:.2f})" if found.asked else "-"
    gain = f"{found.gain:.2f}" if found.asked else "-"
    verdict = "broken" if found.broken else "held"
    served = f"{found.equal} of {found.asked}" if found.asked else "-"
    return f"| {name} | {timed} | {seconds} | {served} | {again} | {gain} | {verdict} |"
