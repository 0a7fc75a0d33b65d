# SPDX-License-Identifier: Apache-2.0
"""A registry as `push` and `pull` ask it: what is said on their command lines, and one question.

Owns the options and the bounds. The question is asked in a process of its own, which is ended when
its time is up, with all that it waits for: a name server, a handshake, a program that keeps
passwords. Raises `CommandError`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from warmup_plugin.cli.output import CommandError
from warmup_plugin.fleet import client, reference

if TYPE_CHECKING:
    from warmup_plugin.fleet.reference import Reference

_LIMIT_S: Final = 120.0
_MOST_S: Final = 86_400.0
#: Of a registry that has been asked.
_SILENCE_S: Final = 15.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the image, and how its registry is asked."""
    parser.add_argument("reference", metavar="IMAGE", help="oci://HOST/NAME:TAG")
    parser.add_argument(
        "--limit", metavar="S", type=float, default=_LIMIT_S,
        help=f"seconds for all of it (default: {_LIMIT_S:g})",
    )  # fmt: skip
    parser.add_argument(
        "--plain-http", action="store_true", help="ask by http: passwords and tables in clear"
    )


def parsed(text: str, *, to_push: bool) -> Reference:
    """Return the image that is meant.

    Raises:
        CommandError: the text is no reference, or none of a place to push to.
    """
    try:
        found = reference.parse(text)
    except ValueError as error:
        raise CommandError(str(error), code=CommandError.USAGE) from None
    if to_push and (not found.tag or found.digest):
        message = f"{text}: push gives an image a tag; its digest is what its tables say"
        raise CommandError(message, code=CommandError.USAGE)
    return found


def ask(
    do: Literal["push", "pull"], image: Reference, place: Path, *, limit: float, is_plain: bool,
    table_bytes: int,
) -> dict[str, Any]:  # fmt: skip
    """Have a layout pushed, or an image pulled into one; return what the process says.

    Raises:
        CommandError: it came to nothing; the reason is one line.
    """
    if not 0 < limit <= _MOST_S:
        message = f"--limit {limit:g}: must be above 0, and {_MOST_S:g} at most"
        raise CommandError(message, code=CommandError.USAGE)
    request = {
        "do": do, "reference": msgspec.structs.asdict(image), "place": str(place),
        "limit_s": limit, "timeout_s": min(limit, _SILENCE_S), "table_bytes": table_bytes,
        "is_plain": is_plain,
    }  # fmt: skip
    answer = client.Worker(client.REGISTRY).ask(request, limit)
    if answer["state"] not in ("pushed", "pulled"):
        raise CommandError(f"{image}: {answer.get('reason', '')}")
    return answer
