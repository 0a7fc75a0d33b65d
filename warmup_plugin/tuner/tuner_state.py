# SPDX-License-Identifier: Apache-2.0
"""What the tuner holds: taken down, replaced, put back.

Owns the tuner's loaded entries during a session. A table is installed by emptying the tuner and
loading one file, since winners in memory beat loaded ones. What others had loaded or tuned is kept
aside and goes back in at the end, never over a key of ours; records of other products stay where
they are. Raises `InstallError` where FlashInfer refuses the table.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from warmup_plugin.cache.lazy_table import restamped
from warmup_plugin.cache.table import Entry, Table, canonical_tactic, parse_table, render_table
from warmup_plugin.errors import InstallError
from warmup_plugin.runtime.gc_pause import collector_paused
from warmup_plugin.runtime.safe_json import Miss
from warmup_plugin.tuner import compat

logger = logging.getLogger("warmup_plugin")

_NO_LIMIT = 1 << 40  # FlashInfer wrote it just now, or it was checked when it was read


def held_entries() -> dict[str, Entry]:
    """Return all the tuner holds, as FlashInfer itself would save it: no file is needed for that.

    What no table can hold FlashInfer could not save either; it is left out, with a warning.
    """
    found: dict[str, Entry] = {}
    for winner in compat.held(compat.tuner()):
        try:
            policy = None if winner.policy is None else tuple(map(canonical_tactic, winner.policy))
            more = "" if winner.more is None else msgspec.json.encode(winner.more).decode()
            entry = Entry(winner.runner, canonical_tactic(winner.tactic), policy, more)
        except (TypeError, ValueError) as error:
            logger.warning("warmup-plugin: an entry of others is lost: %s: %s", winner.key, error)
        else:
            found[winner.key] = entry
    return found


def _of_op(key: str, ops: Collection[str]) -> bool:
    return any(key.startswith(f"({op!r}, ") for op in ops)


class LoadedEntries:
    """What FlashInfer has loaded, as entries of a table; of equal ones one is kept."""

    def __init__(self, configs: Mapping[str, tuple[str, Any]], policies: Mapping[str, Any]) -> None:
        self._configs, self._policies = configs, policies
        self._known: dict[tuple[str, int, Any], Entry] = {}

    def get(self, key: str) -> Entry | None:
        """Return the entry of a file key."""
        if (held := self._configs.get(key)) is None:
            return None
        (runner, tactic), policy = held, self._policies.get(key)
        if type(tactic) is not int:  # to a dictionary True is 1
            return Entry(runner, canonical_tactic(tactic), policy)
        name = runner, tactic, policy
        if (entry := self._known.get(name)) is None:
            entry = self._known[name] = Entry(*name)
        return entry

    def __contains__(self, key: str) -> bool:
        return key in self._configs


class Installed(msgspec.Struct, eq=False):
    """The tuner's loaded entries, before, during and after a session.

    ``others``: what was there before. ``_loaded``: what this session has loaded, and ``_agreed``,
    the arguments of the last `load`. ``_memory``: winners in memory that stay over a load.
    """

    others: Mapping[str, Entry] = msgspec.field(default_factory=dict)
    _loaded: dict[str, Any] = msgspec.field(default_factory=dict)
    _agreed: tuple[bytes, Mapping[str, str], Collection[str]] = (b"", {}, ())
    _memory: compat.Memory = msgspec.field(default_factory=dict)

    @classmethod
    def take_down(cls) -> Installed:
        """Note what the tuner holds now; nothing is changed yet."""
        if not compat.probe().can_record or compat.is_empty(compat.tuner()):
            return cls()
        return cls(held_entries())

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
        kept = {k: e for k, e in self.others.items() if _of_op(k, keep_ops)}
        table = parse_table(document, limit=_NO_LIMIT) if table is None else table
        if isinstance(table, Miss):
            raise InstallError(f"the agreed table cannot be installed: {table.reason}")
        self._agreed = document, stamp, keep_ops
        if kept:
            document = render_table(Table(stamp, {**kept, **table.entries}))
        elif dict(table.stamp) != dict(stamp):
            document = restamped(document, stamp) or render_table(Table(stamp, table.entries))
        self._load(document)

    def load_final(
        self, entries: Mapping[str, Entry], stamp: Mapping[str, str], own: Collection[str]
    ) -> None:
        """Install these entries and all others' entries under keys that are not in ``own``."""
        others = {k: e for k, e in self.others.items() if k not in own}
        self._load(render_table(Table(stamp, {**others, **entries})))

    def _load(self, document: bytes) -> None:
        """Load one document into the emptied tuner; its records belong to no op here."""
        tuner = compat.tuner()
        with compat.sparing_others(tuner), compat.as_file(document) as path:
            tuner.clear_cache()
            try:
                with collector_paused(), compat.warnings_only():
                    loaded = tuner.load_configs(path)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, OSError) as error:
                tuner.clear_cache()
                raise InstallError(f"FlashInfer cannot load the table: {error!r}") from error
        if loaded is False:
            raise InstallError("FlashInfer refuses the table: its stamp is another environment's")
        self._loaded = compat.loaded(tuner)
        compat.put_in_memory(tuner, self._memory)

    def keep_memory(self) -> None:
        """Let the winners in memory, which this rank has tuned for itself, stay over each load."""
        self._memory = compat.memory_of(compat.tuner())

    def entries(self, table: Table) -> LoadedEntries | Mapping[str, Entry]:
        """Return the entries of the table that is loaded: FlashInfer has them at hand already."""
        policies = compat.loaded_policies(compat.tuner())
        return table.entries if policies is None else LoadedEntries(self._loaded, policies)

    def is_intact(self) -> bool:
        """Return whether the tuner still holds exactly what was loaded."""
        return compat.is_loaded(compat.tuner(), self._loaded)

    def restore(self) -> bool:
        """Load again what other code has replaced; return whether that was needed.

        Looks at one entry and at their number, as it runs at every call of the survey.
        """
        if compat.seems_loaded(compat.tuner(), self._loaded):
            return False
        logger.warning(
            "warmup-plugin: another table was loaded during the warm-up "
            "(autotune(cache=...)?); it is ignored, the agreed one is loaded again"
        )
        document, stamp, keep_ops = self._agreed
        self.absorb(keep_ops)
        self.load(document, stamp, keep_ops)
        return True

    def absorb(self, ops: Collection[str]) -> None:
        """Count the winners of these ops, tuned by other code meanwhile, among the others'."""
        found = {k: e for k, e in held_entries().items() if _of_op(k, ops)}
        self.others = {**self.others, **found}

    def only(self, number: int) -> bool:
        """Return whether this many entries are loaded, and others had loaded none."""
        return len(self._loaded) == number and not self.others

    def put_back(self) -> None:
        """Leave the tuner as it was found: others' entries and nothing else."""
        if not compat.probe().can_record:
            return
        compat.clear(compat.tuner())
        self._memory = {}
        if self.others:
            with contextlib.suppress(InstallError):  # a stamp that changed in mid-session
                self._load(render_table(Table(compat.stamp(), self.others)))
