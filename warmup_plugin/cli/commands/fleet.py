# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin fleet`: what the fleet has, and tables put there or taken from there by hand.

Owns the actions. Each asks in a process of its own, as a start does, and passes all the checks that
a start makes; what is taken is put in place as `unpack` does. `retry` asks no fleet: it forgets
which bundles this host's starts have died with. Exit code 1 where the fleet cannot be asked or one
of the identities has no table.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from warmup_plugin.cli import archive, inventory, output, places
from warmup_plugin.cli.commands import pack, unpack
from warmup_plugin.cli.output import SHORT, CommandError
from warmup_plugin.fleet import client, location, quarantine
from warmup_plugin.settings import Settings

if TYPE_CHECKING:
    from warmup_plugin.cli.places import Root

HELP = "show what the fleet has; put tables there, or take them from there"
DESCRIPTION = """\
Ask the fleet that WARMUP_PLUGIN_FLEET names, or --url. `status` lists what it
has, and what of it is on this machine. `push` gives it the tables that are kept
here, or those of the identities named by first digits: its pointer is swapped
only if nobody else has done so, and both tables are united. `pull` takes what
it has into the cache root where the next start will look, as `unpack` does.
`sign` adds a signature to what others have published. `retry` lets this host
use bundles again with which two of its starts have died."""
EXAMPLES = """\
examples:
  warmup-plugin fleet status
  warmup-plugin fleet push                        all tables of this machine
  warmup-plugin fleet pull ed16c9                 one identity, by first digits
  warmup-plugin fleet sign ed16c9 --key fleet.key
  warmup-plugin fleet retry                       try what was passed over
  warmup-plugin fleet pull --arch sm100 --version 0.7.2.post1 --root /opt/tables
  warmup-plugin fleet status --url file:///mnt/shared/tables --json
"""
#: For one identity, and for one request of it.
_LIMIT_S: Final = 120.0
_REQUEST_S: Final = 15.0
_ACTIONS: Final = ("status", "push", "pull", "sign", "retry")
_HEADER: Final = ("identity", "FlashInfer", "arch", "entries", "state", "generation", "published",
                  "by", "here")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("action", choices=_ACTIONS, help="what to do")
    parser.add_argument("identity", metavar="HEX", nargs="*", help="first digits of identities")
    parser.add_argument("--url", metavar="URL", default="", help="this fleet, not the setting's")
    parser.add_argument("--key", metavar="FILE", type=Path, help="sign with this private key")
    parser.add_argument("--version", metavar="V", help="only this FlashInfer's")
    parser.add_argument("--arch", metavar="A", help="only this architecture's")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, action: str, identity: list[str], url: str, key: Path | None, version: str | None,
    arch: str | None, root: Path | None, engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Ask, and print what became of each identity."""
    given: dict[str, Any] = {"fleet": url} if url else {}
    if key is not None:
        given["fleet_signing_key"] = places.absolute(key)
    settings = Settings.from_env(None, **given)
    if action == "retry":
        offered = places.offered(root, engine_root, settings, os.environ)
        return _retry(identity, offered, as_json=json)
    fleet = _Asked(settings)
    if action == "push":
        roots = places.find(root, engine_root, settings, os.environ)
        rows = [fleet.push(kept) for kept in _to_push(identity, roots, version, arch, settings)]
        return _told(fleet, rows, as_json=json)
    listed = _matching(fleet.rows(), identity, version, arch)
    if action == "sign":
        return _told(fleet, [fleet.sign(row) for row in listed], as_json=json)
    if action == "pull":
        target = places.target(places.find(root, engine_root, settings, os.environ))
        return _told(fleet, [fleet.pull(row, target) for row in listed], as_json=json)
    roots = places.offered(root, engine_root, settings, os.environ)
    return _status(fleet, listed, roots, as_json=json)


class _Asked:
    """A fleet, asked in a process of its own for each request."""

    def __init__(self, settings: Settings) -> None:
        if settings.fleet is None:
            message = "no fleet is named: set WARMUP_PLUGIN_FLEET, or give --url"
            raise CommandError(message, code=CommandError.USAGE)
        self.url, self._settings = settings.fleet, settings
        lack = location.lacking(location.parse(self.url), settings.fleet_credentials, os.environ)
        if lack:
            raise CommandError(f"{self.url}: {lack}")

    def rows(self) -> list[dict[str, Any]]:
        """Return what the fleet has.

        Raises:
            CommandError: it cannot be asked.
        """
        found = self._ask("list")
        if found["state"] != "listed":
            raise CommandError(f"{self.url}: {found.get('reason', '')}")
        rows: list[dict[str, Any]] = found["rows"]
        return rows

    def push(self, kept: inventory.Kept) -> dict[str, Any]:
        """Give the fleet what is kept of an identity."""
        version, arch = kept.version, kept.arch
        if not version:
            version, arch = archive.environment_of(kept)
        whose = [version, arch, kept.identity]
        return _row(whose, self._ask("push", whose=whose, place=kept.directory))

    def sign(self, row: dict[str, Any]) -> dict[str, Any]:
        """Sign the latest bundle of an identity.

        Raises:
            CommandError: there is no key to sign with.
        """
        if self._settings.fleet_signing_key is None:
            message = "no key to sign with: set WARMUP_PLUGIN_FLEET_SIGNING_KEY, or give --key"
            raise CommandError(message, code=CommandError.USAGE)
        whose = [row["version"], row["arch"], row["identity"]]
        return _row(whose, self._ask("sign", whose=whose))

    def pull(self, row: dict[str, Any], target: Root) -> dict[str, Any]:
        """Put what the fleet has of an identity in place."""
        whose = [row["version"], row["arch"], row["identity"]]
        with tempfile.TemporaryDirectory(prefix="warmup-fleet-") as folder:
            path = Path(folder, "bundle.tar")
            found = self._ask("get", whose=whose, place=str(path))
            if found["state"] != "fetched":
                return _row(whose, found)
            limit = self._settings.table_bytes
            try:
                files = archive.read(path, limit, found["bundle"])
                (placed,) = unpack.unpack(files, target, self._settings, replace=False,
                                          dry_run=False)  # fmt: skip
            except OSError as error:
                raise CommandError(f"{error.filename or target.path}: {error.strerror}") from None
        return {**_row(whose, found), "state": placed.words(), "directory": placed.directory}

    def _ask(self, do: str, **more: Any) -> dict[str, Any]:
        settings = self._settings
        request = {
            "do": do, "url": self.url, "credentials": settings.fleet_credentials,
            "limit_s": _LIMIT_S, "timeout_s": _REQUEST_S, "table_bytes": settings.table_bytes,
            "keys": [str(path) for path in settings.fleet_keys],
            "sign_key": str(settings.fleet_signing_key or ""), **more,
        }  # fmt: skip
        return client.Worker().ask(request, _LIMIT_S)


def _row(whose: list[str], answer: dict[str, Any]) -> dict[str, Any]:
    version, arch, identity = whose
    return {"identity": identity, "flashinfer": version, "arch": arch, **answer}


def _to_push(
    names: list[str], roots: list[Root], version: str | None, arch: str | None, settings: Settings
) -> list[inventory.Kept]:
    """Return what is kept of these identities and holds.

    Raises:
        CommandError: nothing does.
    """
    found = [
        kept
        for kept in pack.chosen(names, roots, version, arch)
        if pack.holds(kept, settings.table_bytes, skip_faulty=True)
    ]
    if not found:
        raise CommandError("there is no table to push that holds")
    return found


def _matching(
    rows: list[dict[str, Any]], names: list[str], version: str | None, arch: str | None
) -> list[dict[str, Any]]:
    """Return the rows of these identities, all without a name.

    Raises:
        CommandError: the fleet has none that begins with these digits.
    """
    found = [
        row for row in rows if version in (None, row["version"]) and arch in (None, row["arch"])
    ]
    for name in names:
        if not any(row["identity"].startswith(name.lower()) for row in found):
            raise CommandError(f"the fleet has no identity that begins with {name}")
    if not names:
        return found
    return [row for row in found if row["identity"].startswith(tuple(map(str.lower, names)))]


def _told(fleet: _Asked, rows: list[dict[str, Any]], *, as_json: bool) -> int:
    """Print what became of each identity; return 1 where one came to nothing."""
    bad = [row for row in rows if row["state"] in ("failed", "refused", "absent")]
    if as_json:
        output.print_json({"schema": 1, "fleet": fleet.url, "done": not bad, "identities": rows})
    else:
        out = output.console()
        if not rows:
            out.print("  There is nothing to do.")
        output.print_rows(out, [
            (row["identity"][:SHORT], row["flashinfer"], row["arch"], row["state"],
             row.get("reason", "") or row.get("directory", "") or f"bundle {row['bundle'][:SHORT]}")
            for row in rows
        ])  # fmt: skip
    return CommandError.FAILED if bad else 0


def _retry(identities: list[str], roots: list[Root], *, as_json: bool) -> int:
    """Forget the starts that have died with a bundle, and say of which these were.

    Raises:
        CommandError: a note cannot be removed.
    """
    lifted = []
    for root in roots:
        try:
            lifted += quarantine.lift(quarantine.folder_of(root.path), identities)
        except OSError as error:
            raise CommandError(f"{error.filename or root.path}: {error.strerror}") from None
    if as_json:
        rows = [{"bundle": note.bundle, "identity": note.identity} for note in lifted]
        output.print_json({"schema": 1, "lifted": rows})
        return 0
    out = output.console()
    for bundle, identity in sorted({(note.bundle, note.identity) for note in lifted}):
        out.print(f"  {identity[:SHORT]}: bundle {bundle[:SHORT]} may be used again.")
    if not lifted:
        out.print("  No start of this host has died with a bundle.")
    return 0


def _status(fleet: _Asked, rows: list[dict[str, Any]], roots: list[Root], *, as_json: bool) -> int:
    """Print what the fleet has; faults of pointers are no fault of the question."""
    passed_over: dict[str, str] = {}
    for root in roots:
        passed_over |= quarantine.passed_over(quarantine.folder_of(root.path), driver=None)
    here = {(kept.version, kept.identity) for kept in inventory.walk(roots) if kept.tables}
    for row in rows:
        bundle = (row.get("pointer") or {}).get("bundle", "")
        row["passed_over"] = passed_over.get(bundle, "")
        row["here"] = bool({(row["version"], row["identity"]), ("", row["identity"])} & here)
    if as_json:
        output.print_json({"schema": 1, "fleet": fleet.url, "identities": rows})
        return 0
    out = output.console()
    if not rows:
        out.print(f"  {fleet.url} has no table.")
        return 0
    output.print_rows(out, [_line(row) for row in rows], header=_HEADER,
                      right=("entries", "generation"))  # fmt: skip
    for row in rows:
        if why := row["passed_over"]:
            out.print(f"  {row['identity'][:SHORT]}: {why}.")
    return 0


def _line(row: dict[str, Any]) -> tuple[str, ...]:
    first = (row["identity"][:SHORT], row["version"], row["arch"])
    here = "yes" if row["here"] else "no"
    pointer = row.get("pointer")
    if pointer is None:
        return (*first, "-", row.get("fault", "its pointer is gone"), "-", "-", "-", here)
    at = time.strftime("%Y-%m-%d %H:%M", time.localtime(pointer["at"]))
    state = "complete" if pointer["complete"] else "incomplete"
    state = "passed over" if row["passed_over"] else state
    by = f"{pointer['host']}, {pointer['engine']} {pointer['engine_version']}".strip(", ")
    return (*first, str(pointer["entries"]), state, str(pointer["generation"]), at, by, here)
