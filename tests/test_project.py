# SPDX-License-Identifier: Apache-2.0
"""Rules of the project's own files that no tool checks."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PAGES = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "changelog").glob("*.md")])
ENGINES = [
    pytest.param({"sglang-cpu.txt"}, id="vllm"),
    pytest.param({"vllm-cpu.txt", "flashinfer-cpu.txt"}, id="sglang"),
]
FRAGMENTS = sorted((CHECKOUT / "changelog").glob("[!R]*"))


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=lambda path: path.name)
def test_changelog_fragment(fragment: Path) -> None:
    """Named as changelog/README.md says, one paragraph."""
    assert re.fullmatch(r"\d+\.(feature|fix|change|removal)(\.\d+)?\.md", fragment.name)
    text = fragment.read_text()
    assert len(text.splitlines()) == 1
    assert text.rstrip().endswith(".")


@pytest.mark.parametrize("elsewhere", ENGINES)
def test_one_pin_per_package(elsewhere: set[str]) -> None:
    """The requirement files share one environment: two pins of a package would undo each other.

    Each engine's has one of its own, so no two engines' are held against each other.
    """
    pins: dict[str, set[str]] = defaultdict(set)
    for path in (CHECKOUT / "requirements").glob("*.txt"):
        if path.name in elsewhere:
            continue
        for name, version in re.findall(r"^([\w.-]+)==(\S+)", path.read_text(), re.MULTILINE):
            pins[name].add(version)
    assert {name: found for name, found in pins.items() if len(found) > 1} == {}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Of the pages that mkdocs does not see."""
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    local = [link for link in links if not link.startswith("https://")]
    assert [link for link in local if not (page.parent / link).exists()] == []
