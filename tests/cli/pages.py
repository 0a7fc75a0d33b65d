# SPDX-License-Identifier: Apache-2.0
"""Pages of the docs as commands to run and outputs to compare; digits differ from run to run."""

from __future__ import annotations

import re


def normal(text: str) -> str:
    """Return a text without what differs from run to run."""
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"-{3,}", "-", text)
    text = re.sub(r"[0-9a-f]{12,64}", "H", text)
    text = re.sub(r"(GB|MB|kB)", "B", text)
    text = re.sub(r"ranks?[\d,-]+waited", "ranks N waited", text)
    return re.sub(r"\d+([.,:]\d+)*", "N", text)


def commands(page: str) -> list[str]:
    """Return the commands of a page in their order, without their remarks."""
    blocks = re.findall(r"```console\n(.*?)```", page, re.DOTALL)
    lines = (line for block in blocks for line in block.splitlines())
    return [re.sub(r"\s+# .*", "", line[2:]) for line in lines if line.startswith("$ ")]
