# SPDX-License-Identifier: Apache-2.0
"""What the pages say of the command line: no verb left out, no option that there is not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.pages import normal
from warmup_plugin.cli.parser import VERBS, make_parser, name_of, options_of, parse, verbs_of

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]

CHECKOUT = Path(__file__).parents[2]
PAGE = CHECKOUT / "docs" / "cli.md"
PAGES = sorted(
    [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md"), *CHECKOUT.glob("examples/**/*")]
)
#: Up to where a shell would end the command, or a sentence does.
COMMAND = re.compile(r"\bwarmup-plugin ([a-z]+\b[^\n`|>;&#]*)")


def commands_of(page: Path) -> Iterator[str]:
    """Yield the command lines that stand on a page, in blocks and in sentences."""
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"```(?:console|dockerfile|yaml)?\n.*?```|`[^`\n]+`", text, re.DOTALL):
        for match in COMMAND.finditer(block):
            yield match[1].strip()
    if page.suffix in (".yaml", ".sh"):
        yield from (match[1].strip() for match in COMMAND.finditer(text))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.suffix == ".md"], ids=lambda p: p.name
)
def test_no_page_installs_what_no_index_has(page: Path) -> None:
    """Before the first release pip takes a clone or a wheel; by name only what is installed."""
    has_release = re.search(r"^## \d", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    by_name = re.findall(r"^\$ pip install '?warmup-plugin.*", page.read_text(), re.MULTILINE)
    if page.name == "tutorial.md":  # in the environment of `make demo`
        (line,) = by_name
        assert page.read_text().index("$ make demo") < page.read_text().index(line)
    elif not has_release:
        assert by_name == []


def test_every_verb_stands_on_the_page() -> None:
    """In the table, in the order of the help."""
    table = PAGE.read_text().partition("\n## ")[0]
    told = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = [verb.split()[0] for cell in told for verb in re.findall(r"`([^`]+)`", cell)]
    verbs = [name_of(module) for module in VERBS]
    assert list(dict.fromkeys(named)) == verbs


@pytest.mark.parametrize("page", [page for page in PAGES if page.is_file()], ids=lambda p: p.name)
def test_every_command_on_a_page_can_be_typed(page: Path) -> None:
    """Words in capitals and dots stand for something; the rest must parse as it stands."""
    verbs = {name_of(module) for module in VERBS}
    for command in commands_of(page):
        words = shlex.split(command.rstrip("',\")]"), comments=True)
        if words[0] not in verbs or words in ([words[0]], [words[0], "A", "B"]):
            continue
        if any(word.isupper() and word.isalpha() for word in words[1:]) or words[-1] == "...":
            continue
        if words[1:] == ["--identity"]:  # in a sentence: "with the first digits"
            continue
        try:
            parse(words)
        except SystemExit:
            pytest.fail(f"{page.name}: {command}")


def test_options_in_sentences_exist() -> None:
    """Of some verb; what is another program's stands with that program."""
    known = {name for parser in verbs_of(make_parser()).values() for name in options_of(parser)}
    text = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    named = set(re.findall(r"`(--[a-z-]+)", text))
    assert named <= known, named - known
    assert len(named) > 15


def test_the_page_shows_a_table_as_the_command_does(cli: Cli, two_starts: TwoStarts) -> None:
    """Its heads and columns; winners and times are those of one day."""
    page = PAGE.read_text()
    shown = page.partition("$ warmup-plugin show rank_tp0_pp0_dp0.json\n")[2].partition("```")[0]
    found = cli("show", two_starts.table.path, width=80).out
    heads = [
        re.sub(r"\s+", " ", line) for line in found.splitlines() if " op " in line or " ms " in line
    ]
    assert len(heads) == 2
    for head in heads:
        assert head in re.sub(r" +", " ", shown)
    parts = (text.partition("task\n")[0].partition("table  ")[2] for text in (found, shown))
    one, other = (re.sub(r"Nto", "", normal(part)) for part in parts)
    assert one == other
