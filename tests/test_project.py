# SPDX-License-Identifier: Apache-2.0
"""Rules of the project's own files that no tool checks."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest

from warmup_plugin.engines.embedded.config import resolve

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


def test_the_support_page_names_the_targets_that_install_a_release() -> None:
    """`make test` and `make matrix` take theirs from one file."""
    installed = dict(
        line.split()[:2]
        for line in (CHECKOUT / "requirements" / "flashinfer-releases.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    page = (CHECKOUT / "docs" / "support.md").read_text()
    rows = re.findall(r"^\| FlashInfer (\S+) \|[^|]*\|([^|]*)\|", page, re.MULTILINE)
    named = {release: set(re.findall(r"make ([\w-]+)", by)) for release, by in rows}
    targets = {"test": {"test", "matrix"}, "matrix": {"matrix"}, "real-ops": {"test-real-ops"}}
    for release, names in installed.items():
        expected = set[str]().union(*(targets[name] for name in names.split(",")))
        assert named[release] - {"test-engines"} == expected, release


def test_what_it_costs_in_vllm_is_what_has_been_measured() -> None:
    """The how-to sums up the table of evidence.md: each factor of it stands there."""
    measured = (CHECKOUT / "docs" / "evidence.md").read_text()
    measured = measured[measured.index("### vLLM, with and without") :]
    measured = measured[: measured.index("### SGLang")]
    page = (CHECKOUT / "docs" / "vllm.md").read_text()
    factors = re.findall(r"\b\d\.\d\d\b", page[page.index("## What it costs") :])
    assert len(factors) >= 7
    assert [factor for factor in factors if f" {factor}" not in measured] == []


def test_each_guard_that_is_taken_out_stands_in_its_file_once() -> None:
    """`tools/mutants.py` is run by hand: code that has moved would go unseen until then."""
    found = {}
    for mutant in resolve(f"{CHECKOUT / 'tools' / 'mutants.py'}:MUTANTS"):
        count = (CHECKOUT / "warmup_plugin" / mutant.file).read_text().count(mutant.old)
        is_there = (CHECKOUT / mutant.test.partition("::")[0]).is_file()
        if count != 1 or not is_there:
            found[mutant.guard] = (mutant.file, count, mutant.test)
    assert found == {}
