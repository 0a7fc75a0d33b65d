# SPDX-License-Identifier: Apache-2.0
"""Files that people ask about, read and judged; no file is changed.

Owns how a file is recognised (by its content, by its name where that tells nothing) and what
belongs together: a table, its manifest, the identity beside them. A file that cannot be used is a
`Miss` with the reason, never an exception.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from warmup_plugin.cache.manifest import Manifest, parse_manifest
from warmup_plugin.cache.paths import IDENTITY_NAME
from warmup_plugin.cache.table import Table, parse_table
from warmup_plugin.errors import IdentityError
from warmup_plugin.identity import FACTOR_NAMES, Identity
from warmup_plugin.observability.report import WarmupReport
from warmup_plugin.runtime.safe_json import Miss, decode, digest

Kind = Literal["table", "manifest", "report", "identity"]

_TABLE_END, _MANIFEST_END = ".json", ".manifest.json"
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_REPORT = msgspec.json.Decoder(WarmupReport)
_FACTORS = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True)
class TableFile:
    """A table and its files. ``vouched``: the manifest's sha256 is the table's."""

    path: Path
    bytes: int
    sha256: str
    table: Table | Miss
    manifest_path: Path
    manifest: Manifest | Miss
    identity: Identity | Miss
    vouched: bool

    @property
    def has_fault(self) -> bool:
        """Return whether one of the two files is there and cannot be used."""
        manifest_is_bad = isinstance(self.manifest, Miss) and self.manifest.kind != "absent"
        if isinstance(self.manifest, Manifest):
            manifest_is_bad = not self.vouched or self.manifest.tasks_miss is not None
        return isinstance(self.table, Miss) or manifest_is_bad


def read_bytes(path: Path, limit: int) -> bytes | Miss:
    """Return a file's content; one of more than ``limit`` bytes is not read to its end."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except FileNotFoundError:
        return Miss("no such file", "absent")
    except IsADirectoryError:
        return Miss("a directory, not a file", "unreadable")
    except OSError as error:
        return Miss(error.strerror or str(error), "denied")
    if len(data) > limit:
        return Miss(f"more than the {limit} bytes allowed", "too_large")
    return data


def kind_of(path: Path, data: bytes) -> Kind:
    """Return what a file is, or is meant to be."""
    fields = decode(_FIELDS, data)
    names = set() if isinstance(fields, Miss) else set(fields)
    if "table_sha256" in names or path.name.endswith(_MANIFEST_END):
        return "manifest"
    if "plugin_version" in names or path.parent.name == "reports":
        return "report"
    if path.name == IDENTITY_NAME or ("model" in names and names <= set(FACTOR_NAMES)):
        return "identity"
    return "table"


def read_table(path: Path, limit: int) -> TableFile:
    """Read a table, given itself or its manifest, with what lies beside it."""
    if path.name.endswith(_MANIFEST_END):
        path = path.with_name(path.name.removesuffix(_MANIFEST_END) + _TABLE_END)
    manifest_path = path.with_name(path.name.removesuffix(_TABLE_END) + _MANIFEST_END)
    data, manifest_data = read_bytes(path, limit), read_bytes(manifest_path, limit)
    sha256 = "" if isinstance(data, Miss) else digest(data)
    manifest = (
        manifest_data
        if isinstance(manifest_data, Miss)
        else parse_manifest(manifest_data, limit=limit)
    )
    return TableFile(
        path=path,
        bytes=0 if isinstance(data, Miss) else len(data),
        sha256=sha256,
        table=data if isinstance(data, Miss) else parse_table(data, limit=limit),
        manifest_path=manifest_path,
        manifest=manifest,
        identity=read_identity(path.with_name(IDENTITY_NAME), limit),
        vouched=isinstance(manifest, Manifest) and manifest.table_sha256 == sha256,
    )


def read_identity(path: Path, limit: int) -> Identity | Miss:
    """Read config factors, as they stand in `identity.json`."""
    data = read_bytes(path, limit)
    factors = data if isinstance(data, Miss) else decode(_FACTORS, data)
    if isinstance(factors, Miss):
        return factors
    try:
        return Identity(factors)
    except IdentityError as error:
        return Miss(str(error), "unreadable")


def read_report(path: Path, limit: int) -> WarmupReport | Miss:
    """Read a report; fields of a newer version are left out."""
    data = read_bytes(path, limit)
    found: WarmupReport | Miss = data if isinstance(data, Miss) else decode(_REPORT, data)
    return found


def factors_in_words(factors: Mapping[str, Any]) -> str:
    """Return the factors that people tell identities apart by: model, dtype, sizes."""
    model = factors.get("model")
    name = "model ?"
    if isinstance(model, dict):
        config = str(model.get("config_sha256", ""))[:8]
        name = str(model.get("label") or f"model {config}")
    sizes = [f"{axis.upper()}{factors[axis]}" for axis in ("tp", "pp", "dp", "ep", "cp")
             if factors.get(axis, 1) != 1]  # fmt: skip
    role = "" if factors.get("role", "target") == "target" else str(factors["role"])
    weights = dict.fromkeys(map(_as_word, _quantization(factors)))
    parts = [name, role, str(factors.get("dtype", "")), *weights]
    return ", ".join([*filter(None, parts), " x ".join(sizes) or "1 rank"])


def _quantization(factors: Mapping[str, Any]) -> list[Any]:
    """Return what weights are quantized to; SGLang's factor has two places for it, often empty."""
    value = factors.get("quantization")
    return [each for each in (value if isinstance(value, list) else [value]) if each is not None]


def _as_word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)[:40]
