# SPDX-License-Identifier: Apache-2.0
"""Figures as a file of Prometheus' text format, for the node exporter's textfile collector.

Owns the format, by that collector's rules: no timestamps, a line's end after the last line, a file
that is whole at any time (a temporary name does not end in ``.prom``), one help and type per
metric. Two files of one machine must not hold one series; the labels see to that.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from warmup_plugin.cache.files import write_files
from warmup_plugin.observability.metrics import FAMILIES, PREFIX, Sample, label_names


def write(path: Path, samples: Iterable[Sample]) -> None:
    """Put the file in place, whole; raises `OSError`. Of use to the living: not synchronised."""
    write_files({path: render(samples).encode()}, synced=False)


def render(samples: Iterable[Sample]) -> str:
    """Return the file; samples have the common labels' values before their own."""
    lines: list[str] = []
    found = sorted(samples, key=lambda sample: list(FAMILIES).index(sample.name))
    before = ""
    for name, labels, value in found:
        if name != before:
            help_ = FAMILIES[name].help
            lines += [f"# HELP {PREFIX}{name} {help_}", f"# TYPE {PREFIX}{name} gauge"]
            before = name
        cells = zip(label_names(name), labels, strict=True)
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in cells)
        lines.append(f"{PREFIX}{name}{{{inside}}} {value:.15g}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
