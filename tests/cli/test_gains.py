# SPDX-License-Identifier: Apache-2.0
"""What tuning has won, by every verb that says so: the times are those of what serves."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from warmup_plugin.cache.gains import gain, serving_ms
from warmup_plugin.cache.manifest import Manifest
from warmup_plugin.cache.table import Table

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]


def test_a_default_that_nothing_beats_serves_with_its_own_time(two_starts: TwoStarts) -> None:
    """What has lost against it stands in the manifest, and is no winner's time."""
    table, manifest = two_starts.table.table, two_starts.table.manifest
    assert isinstance(table, Table)
    assert isinstance(manifest, Manifest)
    kept = [
        (table.entries[key], record.ms, record.default_ms)
        for record in manifest.tasks.values()
        for keys in record.keys
        for key in keys
        if key in table.entries
    ]
    lost = [(ms, default_ms) for entry, ms, default_ms in kept if entry.tactic == -1]
    assert 0 < len(lost) < len(kept)
    assert any((gain(*times) or 1.0) < 1.0 for times in lost)
    for entry, ms, default_ms in kept:
        assert (gain(serving_ms(entry, ms, default_ms), default_ms) or 0.0) >= 1.0


def test_a_warm_start_has_won_what_the_cold_one_did(two_starts: TwoStarts, cli: Cli) -> None:
    """The one reads the receipt, the other the manifest."""
    asked = ("report", "--root", two_starts.root, "--only", "gains")
    means = [
        re.findall(r"(\d+\.\d\d) x the default's speed in the mean", cli(*asked, *more).out)
        for more in (("--cold",), ())
    ]
    assert len(means[0]) == 1
    assert means[0] == means[1]
