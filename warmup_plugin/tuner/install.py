# SPDX-License-Identifier: Apache-2.0
"""What the tuner holds: taken down, replaced, put back.

Owns the tuner's loaded entries during a session. A table is installed by emptying the tuner and
loading one file, since winners in memory beat loaded ones and a second load replaces records. What
others had loaded is kept aside and goes back in at the end, never over a key of ours. Raises
`InstallError` where FlashInfer refuses the table.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from warmup_plugin.errors import InstallError
from warmup_plugin.table import Entry, Miss, Table, parse_table, render_table
from warmup_plugin.tuner import probe

logger = logging.getLogger("warmup_plugin")


def saved_document(tuner: Any) -> bytes:
    """Return all the tuner holds as FlashInfer itself would save it."""
    with tempfile.TemporaryDirectory(prefix="warmup-plugin-") as folder:
        path = Path(folder) / "saved.json"
        tuner.save_configs(str(path))
        return path.read_bytes()


def _of_op(key: str, ops: Collection[str]) -> bool:
    return any(key.startswith(f"({op!r}, ") for op in ops)


@dataclass
class Installed:
    """The tuner's loaded entries, before, during and after a session.

    ``others``: what was there before, as a table. ``ours``: what this session has loaded.
    """

    others: Table
    _state: tuple[dict[str, Any], list[str]] = ({}, [])
    _loaded: dict[str, Any] = field(default_factory=dict)
    _document: bytes = b""

    @classmethod
    def take_down(cls) -> Installed:
        """Note what the tuner holds now; nothing is changed yet."""
        tuner = probe.tuner()
        empty = Table(stamp={}, entries={})
        if not (probe.num_loaded(tuner) or tuner.profiling_cache or probe.has_records(tuner)):
            return cls(empty)
        state = probe.single_writer_state(tuner)
        try:
            table = parse_table(saved_document(tuner), limit=1 << 40)
        except OSError as error:
            table = Miss(f"no temporary directory: {error}", "unreadable")
        if isinstance(table, Miss):
            logger.warning("warmup-plugin: entries loaded by others are lost: %s", table.reason)
            return cls(empty, state)
        return cls(table, state)

    def load(
        self,
        document: bytes,
        stamp: Mapping[str, str],
        keep_ops: Collection[str],
        *,
        table: Table | Miss | None = None,
    ) -> None:
        """Install a table for the survey: these bytes, and others' entries of ``keep_ops``.

        ``stamp`` is this process's own: FlashInfer loads no other. ``table``: the same bytes,
        parsed, if they are already.
        """
        kept = {k: e for k, e in self.others.entries.items() if _of_op(k, keep_ops)}
        table = parse_table(document, limit=1 << 40) if table is None else table
        if isinstance(table, Miss):
            raise InstallError(f"the agreed table cannot be installed: {table.reason}")
        if kept or self.others.records or dict(table.stamp) != dict(stamp):
            entries = {**kept, **table.entries}
            document = render_table(Table(stamp, entries, self.others.records))
        self._load(document)

    def load_final(
        self, entries: Mapping[str, Entry], stamp: Mapping[str, str], own: Collection[str]
    ) -> None:
        """Install these entries and all others' entries under keys that are not in ``own``."""
        others = {k: e for k, e in self.others.entries.items() if k not in own}
        self._load(render_table(Table(stamp, {**others, **entries}, self.others.records)))
        probe.restore_single_writer_state(probe.tuner(), self._state)

    def _load(self, document: bytes) -> None:
        tuner = probe.tuner()
        tuner.clear_cache()
        with probe.as_file(document) as path:
            try:
                loaded = tuner.load_configs(path)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
                tuner.clear_cache()
                raise InstallError(f"FlashInfer cannot load the table: {error!r}") from error
        if loaded is False:
            raise InstallError("FlashInfer refuses the table: its stamp is another environment's")
        self._loaded = probe.loaded(tuner)
        self._document = document

    def is_intact(self) -> bool:
        """Return whether the tuner still holds exactly what was loaded."""
        return probe.is_loaded(probe.tuner(), self._loaded)

    def restore(self) -> bool:
        """Load again what somebody else has replaced; return whether that was needed.

        Looks at the number of entries only, as it runs at every call of the survey.
        """
        if probe.num_loaded(probe.tuner()) == len(self._loaded):
            return False
        logger.warning(
            "warmup-plugin: another table was loaded during the warm-up "
            "(autotune(cache=...)?); it is ignored, the agreed one is loaded again"
        )
        self._load(self._document)
        return True

    def absorb(self, ops: Collection[str]) -> None:
        """Count the winners of these ops, tuned by somebody else meanwhile, among the others'."""
        table = parse_table(saved_document(probe.tuner()), limit=1 << 40)
        if isinstance(table, Table):
            found = {k: e for k, e in table.entries.items() if _of_op(k, ops)}
            self.others = replace(self.others, entries={**self.others.entries, **found})

    def only(self, keys: Set[str]) -> bool:
        """Return whether nothing is loaded but these keys."""
        return self._loaded.keys() <= keys and not self.others.entries

    def put_back(self) -> None:
        """Leave the tuner as it was found: others' entries and nothing else."""
        tuner = probe.tuner()
        tuner.clear_cache()
        if self.others.entries or self.others.records:
            with contextlib.suppress(InstallError):  # a stamp that changed in mid-session
                self._load(render_table(replace(self.others, stamp=probe.stamp())))
            probe.restore_single_writer_state(tuner, self._state)
