# SPDX-License-Identifier: Apache-2.0
"""The functions that take the nine steps, in the modules where `kernel_warmup` finds them.

A warm start never imports some of these modules, so each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
from types import ModuleType

_FUNCTIONS = {
    "read": ["kernel_warmup:read"],
    "agree": ["kernel_warmup:agree"],
    "survey": ["kernel_warmup:run_survey", "kernel_warmup:surveying"],
    "plan": ["steps.plan:make_work"],
    "tune": ["steps.tune:tune"],
    "share": ["steps.share:share"],
    "prepare": ["steps.prepare:prepare"],
    "publish": ["steps.publish:publish"],
    "certify": ["kernel_warmup:certify"],
}


def functions_of(step: str) -> list[tuple[ModuleType, str]]:
    """Return module and name of each function that takes a step."""
    named = (reference.split(":") for reference in _FUNCTIONS[step])
    return [(importlib.import_module(f"warmup_plugin.{place}"), name) for place, name in named]
