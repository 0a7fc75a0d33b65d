# SPDX-License-Identifier: Apache-2.0
"""What a cold start does once in a process: import what a warm start does without.

Done while all ranks wait for the programs that FlashInfer runs to look at its environment.
"""

from __future__ import annotations

import importlib

from warmup_plugin.coordination.decisions import (
    AGREE,
    CERTIFY,
    LOAD,
    PLAN,
    READY,
    SHARE,
    SURVEY,
)
from warmup_plugin.coordination.messages import prepare_reader

#: What only the steps have a use for that a warm start does not take.
COLD_STEPS = (
    "warmup_plugin.cache.external",
    "warmup_plugin.cache.journal",
    "warmup_plugin.cache.publishing",
    *(
        f"warmup_plugin.steps.{name}"
        for name in ("plan", "verify_entries", "tune", "share", "prepare", "publish", "resume")
    ),
    "warmup_plugin.tuner.race.counts",
)


def prepare_cold_steps(*, is_alone: bool) -> None:
    """Import the cold steps and make their readers, once in a process, while all ranks wait."""
    for name in COLD_STEPS:
        importlib.import_module(name)
    if is_alone:  # nothing is read there
        return
    prepare_reader(AGREE)
    prepare_reader(LOAD)
    prepare_reader(SURVEY)
    prepare_reader(PLAN)
    prepare_reader(SHARE)
    prepare_reader(READY)
    prepare_reader(CERTIFY)
