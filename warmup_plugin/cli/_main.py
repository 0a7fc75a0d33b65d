# SPDX-License-Identifier: Apache-2.0
"""The command line: its verbs, and what becomes of an error.

Owns the exit codes: 0 done, 1 the answer is no or the command failed, 2 wrong usage or a malformed
setting, 3 an error nobody expected, 130 interrupted, 141 the reader of the output went away. Errors
are lines on standard error; a traceback is shown with --debug only.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from warmup_plugin import __version__
from warmup_plugin.cli import (
    demo,
    doctor,
    explain,
    import_,
    ls,
    pack,
    prune,
    report,
    retry,
    show,
    unpack,
    verify,
    where,
)
from warmup_plugin.cli.output import CommandError
from warmup_plugin.errors import RuleError, SettingError, WarmupError

#: In the order of the help.
VERBS = (
    demo, doctor, where, ls, show, explain, report, verify, pack, unpack, import_, prune, retry,
)  # fmt: skip

_EXAMPLES = """\
examples:
  warmup-plugin demo                 see it work: no GPU needed
  warmup-plugin ls                   the tables on this machine
  warmup-plugin explain --last       why did this start tune?
  warmup-plugin doctor               what is wrong here, and how to put it right
  warmup-plugin demo --help          each verb has its own options and examples
"""
_INTERRUPTED, _BROKEN_PIPE, _UNEXPECTED = 130, 141, 3
_DEBUG_HELP = "show the traceback of an error"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    try:
        arguments = vars(make_parser().parse_args(argv))
    except SystemExit as leaving:  # --help, --version, wrong usage: argparse has said what
        return int(leaving.code or 0)
    run, debug = arguments.pop("run", None), arguments.pop("debug", False)
    if run is None:
        make_parser().print_help(sys.stderr)
        return CommandError.USAGE
    return _guarded(run, arguments, debug=debug)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="warmup-plugin",
        description="Tune FlashInfer kernels once, start warm everywhere.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"warmup-plugin {__version__}")
    parser.add_argument("--debug", action="store_true", help=_DEBUG_HELP)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")
    for module in VERBS:
        verb = verbs.add_parser(
            module.__name__.rpartition(".")[2].rstrip("_"),
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=module.EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(verb)
        verb.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG_HELP
        )
        verb.set_defaults(run=module.run)
    return parser


def _guarded(run: Callable[..., int], values: dict[str, object], *, debug: bool) -> int:
    try:
        code = run(**values)
        sys.stdout.flush()  # here, where a reader that went away can still be told from a bug
    except BrokenPipeError:
        # Python flushes standard output once more at exit; there is nobody to read it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # told in one line
        if debug:
            detail = error.detail if isinstance(error, CommandError) else ""
            print(detail.rstrip() or traceback.format_exc().rstrip(), file=sys.stderr)
        message, code = _judged(error, debug=debug)
        print(f"warmup-plugin: {message}", file=sys.stderr)
    return code


def _judged(error: BaseException, *, debug: bool) -> tuple[str, int]:
    """Return what to say about an error, and the exit code."""
    match error:
        case KeyboardInterrupt():
            return "interrupted", _INTERRUPTED
        case CommandError():
            return str(error), error.code
        case SettingError():
            return str(error), CommandError.USAGE
        case RuleError() | WarmupError():
            return str(error), CommandError.FAILED
    hint = "" if debug else "; --debug shows where, please report it"
    return f"unexpected {type(error).__name__}: {error}{hint}", _UNEXPECTED
