# SPDX-License-Identifier: Apache-2.0
"""The words of a command line: verbs, options, and what is wrong with those that were given.

Owns the list of verbs and the rules that hold for all of them: no abbreviations, no empty value (an
unset variable must not become the current directory), and the nearest name for one that is none.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from warmup_plugin import __version__
from warmup_plugin.cli.commands import (
    completion,
    config,
    demo,
    diff,
    doctor,
    explain,
    fleet,
    import_,
    ls,
    pack,
    prune,
    pull,
    push,
    report,
    retry,
    rm,
    show,
    stats,
    status,
    tune,
    unpack,
    verify,
    where,
)

#: In the order of the help.
VERBS = (
    demo, doctor, config, where, ls, show, status, explain, report, stats, diff, verify, tune,
    pack, unpack, push, pull, fleet, import_, prune, rm, retry, completion,
)  # fmt: skip

_EXAMPLES = """\
examples:
  warmup-plugin demo                 see it work: no GPU needed
  warmup-plugin ls                   the tables on this machine
  warmup-plugin explain --last       why did this start tune?
  warmup-plugin doctor               what is wrong here, and how to put it right
  warmup-plugin demo --help          each verb has its own options and examples
"""
_COMMON = (
    (("--debug",), "show the traceback of an error"),
    (("-q", "--quiet"), "print the answer and errors only"),
    (("-v", "--verbose"), "say more: where was looked, and why"),
)


class _Parser(argparse.ArgumentParser):
    """A parser that does not keep to itself that its help could not be written."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            (file or sys.stderr).write(message)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = _Parser(
        prog="warmup-plugin",
        description="Tune FlashInfer kernels once, start warm everywhere.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"warmup-plugin {__version__}")
    for names, words in _COMMON:
        parser.add_argument(*names, action="store_true", help=words)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for module in VERBS:
        verb = verbs.add_parser(
            name_of(module),
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        for names, words in _COMMON:
            verb.add_argument(*names, action="store_true", default=argparse.SUPPRESS, help=words)
        verb.set_defaults(run=module.run)
    return parser


def name_of(module: Any) -> str:
    """Return the verb that a module is."""
    return str(module.__name__).rpartition(".")[2].rstrip("_")


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the parsers of the verbs by name."""
    (choices,) = (
        action.choices
        for action in parser._actions  # noqa: SLF001  # argparse has no other way to them
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001  # as above
    )
    return dict(choices)


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of a verb's options."""
    return [name for each in parser._actions for name in each.option_strings]  # noqa: SLF001  # as above


def parse(words: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command line; raises `SystemExit` as argparse does."""
    parser = make_parser()
    verbs = verbs_of(parser)
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb and verb not in verbs:
        parser.error(f"{verb!r} is no verb{_nearest(verb, verbs)}; --help lists them")
    for number, word in enumerate(words):
        if not word or (word.startswith("--") and word.endswith("=")):
            _refuse_empty(verbs.get(verb, parser), words, number)
    found, rest = parser.parse_known_args(list(words))
    if rest and not verb:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        nearest = _nearest(rest[0].partition("=")[0], options_of(verbs[verb]))
        verbs[verb].error(f"unrecognized arguments: {' '.join(rest)}{nearest}")
    return vars(found)


def _refuse_empty(parser: argparse.ArgumentParser, words: Sequence[str], number: int) -> NoReturn:
    word, before = words[number], words[number - 1] if number else ""
    name = word.rstrip("=") or (before if before.startswith("-") else "an argument")
    parser.error(f"{name} is '': must not be empty; is a variable unset?")


def _nearest(word: str, names: Any) -> str:
    found = difflib.get_close_matches(word, list(names), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
