# SPDX-License-Identifier: Apache-2.0
"""`warmup-plugin import`: what engines and FlashInfer have tuned by themselves, for our next start.

    <root>/flashinfer_autotune/<version>/<arch>/imported/<sha256>.json

Owns where such tables are looked for, and that none of their usable entries is lost: files of one
environment are joined under their keys, the first file wins where two differ. A start that has no
complete table of its own takes the entries of its environment up, each for exactly the call that it
was tuned for, after every rank has run it once. Nothing of the engines' is changed.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from warmup_plugin.cache.external import IMPORTED, read_any
from warmup_plugin.cache.files import is_inside
from warmup_plugin.cache.paths import IDENTITY_NAME, LAYOUT
from warmup_plugin.cache.stamps import INDETERMINATE
from warmup_plugin.cache.table import Entry, Table, render_table
from warmup_plugin.cli import environment, output, places
from warmup_plugin.cli.archive import write_whole
from warmup_plugin.cli.engines import ENGINES
from warmup_plugin.cli.output import CommandError
from warmup_plugin.runtime.safe_json import Miss, digest
from warmup_plugin.settings import Settings

HELP = "take over what vLLM, SGLang or FlashInfer have tuned by themselves"
DESCRIPTION = """\
Take over tables that an engine or FlashInfer has kept itself, so that the next
start with this package need not tune their entries again. FROM is vllm, sglang
or flashinfer (their usual places), or a file or folder. Theirs stay as they
are."""
EXAMPLES = """\
examples:
  warmup-plugin import vllm                  $VLLM_CACHE_ROOT or ~/.cache/vllm
  warmup-plugin import sglang --engine-root /models/cache
  warmup-plugin import flashinfer            its managed store, v2
  warmup-plugin import /backup/autotune --arch sm100 --dry-run
"""
_STORE: Final = "manifest.json"
_MOST_FILES: Final = 100_000


@dataclass
class Found:
    """Tables of one environment, joined; ``conflicts``: keys under which files differ."""

    stamp: Mapping[str, str]
    entries: dict[str, Entry] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    conflicts: int = 0

    def add(self, table: Table, source: Path) -> None:
        """Take what is not there yet."""
        for key, entry in table.entries.items():
            self.conflicts += self.entries.setdefault(key, entry) != entry
        self.sources.append(str(source))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("source", metavar="FROM", help="vllm, sglang, flashinfer, or a path")
    parser.add_argument("--version", metavar="V", help="FlashInfer's (default: as the file says)")
    parser.add_argument("--arch", metavar="A", help="sm<digits> or cpu (default: this machine's)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be taken over")
    places.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def run(
    *, source: str, version: str | None, arch: str | None, dry_run: bool, root: Path | None,
    engine_root: Path | None, json: bool,
) -> int:  # fmt: skip
    """Look, join, write and say so."""
    settings = Settings.from_env()
    target = _target(source, root, engine_root, settings)
    looked_in = places_of(source, engine_root, os.environ)
    found, misses = collect(looked_in, settings.table_bytes)
    if not found:
        where = ", ".join(map(str, looked_in))
        why = f" ({misses[0][0]}: {misses[0][1].reason})" if misses else ""
        raise CommandError(f"no usable table at {where}{why}")
    rows = [_put(each, target, version, arch, dry_run=dry_run) for each in found]
    rejected = [{"path": str(path), "reason": miss.reason} for path, miss in misses]
    if json:
        output.print_json({"schema": 1, "dry_run": dry_run, "tables": rows, "unusable": rejected})
    else:
        _print(rows, rejected, dry_run=dry_run)
    return 0


def _target(
    source: str, root: Path | None, engine_root: Path | None, settings: Settings
) -> places.Root:
    """Return where to write: an engine's own tables are for that engine's next start."""
    is_engine = source in {engine.package for engine in ENGINES}
    if is_engine and root is None and engine_root is None:
        return places.of_engine(source, settings, os.environ)
    return places.target(places.find(root, engine_root, settings, os.environ))


def places_of(source: str, engine_root: Path | None, environ: Mapping[str, str]) -> list[Path]:
    """Return where a source keeps its tables: paths read in the packages, not imported from them.

    vLLM 0.33.0: `flashinfer_autotune_cache` below its cache root, or the override; SGLang 0.5.23:
    `flashinfer/autotune` below its own; FlashInfer 0.7: `v2` below its autotune store.
    """
    home = Path(environ.get("HOME", "/"))
    if source == "vllm":
        base = engine_root or places.default_of("vllm", environ)
        override = environ.get("VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR")
        return [base / "flashinfer_autotune_cache", *([Path(override)] if override else [])]
    if source == "sglang":
        base = engine_root or places.default_of("sglang", environ)
        return [base / "flashinfer" / "autotune"]
    if source == "flashinfer":
        base = Path(environ.get("FLASHINFER_WORKSPACE_BASE") or home) / ".cache" / "flashinfer"
        own = environ.get("FLASHINFER_AUTOTUNE_CACHE_DIR")
        return [Path(own) if own else base / "autotune"]
    path = Path(source).expanduser()
    if not path.exists():
        raise CommandError(f"{path}: no such file; or one of vllm, sglang, flashinfer")
    return [path]


def collect(places: list[Path], limit: int) -> tuple[list[Found], list[tuple[Path, Miss]]]:
    """Return what can be used, joined by environment, and what cannot, with the reason."""
    found: dict[tuple[tuple[str, str], ...], Found] = {}
    misses = []
    for path in (path for place in places for path in _candidates(place)):
        table = read_any(path, limit)
        if isinstance(table, Miss):
            misses.append((path, table))
        elif table.entries:
            known = tuple(sorted(table.stamp.items()))
            found.setdefault(known, Found(table.stamp)).add(table, path)
    return list(found.values()), misses


def _candidates(place: Path) -> Iterator[Path]:
    """Yield files that may be tables, and folders of a managed store; not this package's own."""
    if place.is_file() or (place / _STORE).is_file():
        yield place
        return
    number = 0
    for folder, names, files in os.walk(place):
        names[:] = sorted(name for name in names if name != LAYOUT)
        here = Path(folder)
        if IDENTITY_NAME in files or here.name == IMPORTED:  # ours
            names.clear()
            continue
        if _STORE in files:
            names.clear()
            yield here
            continue
        for name in sorted(files):
            number += 1
            if number > _MOST_FILES:
                return
            if name.endswith(".json") and not name.startswith("."):
                yield here / name


def _put(
    found: Found, target: places.Root, version: str | None, arch: str | None, *, dry_run: bool
) -> dict[str, Any]:
    """Write one table beside the identities of its environment."""
    data = render_table(Table(found.stamp, found.entries))
    folder = _shelf(found, target, version, arch) / IMPORTED
    path = folder / f"{digest(data)}.json"
    is_new = not path.exists()
    if not is_inside(folder, target.path):
        raise CommandError(f"{folder}: a link that leads out of {target.path}")
    if is_new and not dry_run:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CommandError(f"{error.filename or folder}: {error.strerror}") from None
        write_whole(path, data)
    return {
        "path": str(path), "entries": len(found.entries), "conflicts": found.conflicts,
        "sources": found.sources, "new": is_new, "unseen": _why_unseen(found, path),
    }  # fmt: skip


def _why_unseen(found: Found, path: Path) -> str:
    """Return why no start on this machine will take the table up, as far as can be told."""
    gpu, version = found.stamp.get("gpu"), found.stamp.get("flashinfer_version")
    if gpu not in INDETERMINATE:
        here = environment.gpu_names()
        if gpu not in here:
            has = f"has {' and '.join(sorted(set(here)))}" if here else "has no GPU"
            placed = ""
            if path.parent.parent.name == "cpu":
                placed = "; --arch sm<digits> puts it where starts on such a GPU look"
            return f"tuned on {gpu}, and this machine {has}{placed}"
    installed = environment.flashinfer_version()
    if version not in INDETERMINATE and installed is not None and version != installed.value:
        return f"of FlashInfer {version}, and {installed.value} is installed here"
    return ""


def _shelf(found: Found, target: places.Root, version: str | None, arch: str | None) -> Path:
    if target.kind == "override":
        return target.path
    said = found.stamp.get("flashinfer_version")
    version = version or (None if said in INDETERMINATE else said)
    if version is None:
        raise CommandError(f"{found.sources[0]} does not say which FlashInfer it is of: --version")
    return target.path / LAYOUT / version / (arch or environment.architecture(os.environ).value)


def _print(rows: list[dict[str, Any]], rejected: list[dict[str, str]], *, dry_run: bool) -> None:
    out = output.console()
    for row in rows:
        output.print_path(out, Path(row["path"]))
        entries = output.plural(row["entries"], "entry", "entries")
        files = output.plural(len(row["sources"]), "place")
        differ = f", {row['conflicts']} differ: the first was taken" if row["conflicts"] else ""
        verb = "would be taken over" if dry_run else "taken over" if row["new"] else "there already"
        output.print_rows(out, [(f"{entries} from {files} {verb}{differ}",)])
        if row["unseen"]:
            line = f"no start on this machine will take it up: {row['unseen']}"
            output.print_rows(out, [(output.words(line, "yellow"),)])
    output.print_rows(out, [("not usable", row["path"], row["reason"]) for row in rejected])
