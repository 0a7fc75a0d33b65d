# SPDX-License-Identifier: Apache-2.0
"""The command line: its verbs, and what becomes of an error.

Owns the exit codes: 0 done, 1 the answer is no or the command failed, 2 wrong usage or a malformed
setting, 3 an unexpected error, 130 interrupted, 141 the reader of the output went away. Errors
are lines on standard error; a traceback is shown with --debug only.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from warmup_plugin.cli import output
from warmup_plugin.cli.output import CommandError
from warmup_plugin.cli.parser import make_parser, parse
from warmup_plugin.errors import RuleError, SettingError, WarmupError

_INTERRUPTED, _BROKEN_PIPE, _UNEXPECTED = 130, 141, 3
#: What a disk says, or a stream, that takes no more; none of it is a fault of this package.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:  # closed by the caller: there is nobody to tell
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the end
    if sys.stdout is None:
        print("warmup-plugin: standard output is closed", file=sys.stderr)
        return CommandError.FAILED
    return _guarded(lambda: _run(words), debug="--debug" in words)


def _run(words: list[str]) -> int:
    try:
        arguments = parse(words)
    except SystemExit as leaving:  # --help, --version, wrong usage: argparse has said what
        return int(leaving.code or 0)
    run: Callable[..., int] | None = arguments.pop("run", None)
    arguments.pop("debug", None)
    quiet, verbose = arguments.pop("quiet", False), arguments.pop("verbose", False)
    if run is None:
        make_parser().print_help(sys.stderr)
        return CommandError.USAGE
    output.set_loudness(int(verbose) - int(quiet))
    try:
        return run(**arguments)
    finally:
        output.set_loudness(0)


def _guarded(run: Callable[[], int], *, debug: bool) -> int:
    try:
        code = run()
        sys.stdout.flush()  # here, where a reader that went away can still be told from a bug
    except BrokenPipeError:
        _let_go_of_stdout()
        return _BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  # told in one line
        if debug:
            detail = error.detail if isinstance(error, CommandError) else ""
            print(detail.rstrip() or traceback.format_exc().rstrip(), file=sys.stderr)
        message, code = _judged(error, debug=debug)
        print(f"warmup-plugin: {message}", file=sys.stderr)
        if isinstance(error, OSError):
            _let_go_of_stdout()
    return code


def _let_go_of_stdout() -> None:
    """Give standard output away: Python flushes it once more at exit, and would fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # it is no file, as in a test
        return


def _judged(error: BaseException, *, debug: bool) -> tuple[str, int]:
    """Return what to say about an error, and the exit code."""
    match error:
        case KeyboardInterrupt():
            return "interrupted", _INTERRUPTED
        case CommandError(code=code):
            return str(error), code
        case RuleError() | WarmupError():
            is_usage = isinstance(error, SettingError)
            return str(error), CommandError.USAGE if is_usage else CommandError.FAILED
        case OSError(filename=str(name), strerror=str(reason)):
            return f"{name}: {reason}", CommandError.FAILED
        case OSError(errno=number, strerror=reason) if number in _NO_ROOM:
            return f"standard output: {reason}", CommandError.FAILED
    hint = "" if debug else "; --debug shows where, please report it"
    return f"unexpected {type(error).__name__}: {error}{hint}", _UNEXPECTED
