# SPDX-License-Identifier: Apache-2.0
"""A process that warms up alone over toy ops, and says which modules that has imported.

Run as ``python warm_alone.py CACHE_ROOT`` with the checkout on the import path. FlashInfer, torch
and the ops are imported before, as an engine has them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import flashinfer.autotuner  # noqa: F401  # an engine has it when it warms up

from tests.tuner import toys


def main(root: str) -> None:
    """Warm up, and print the receipt's figures with the modules, in the order of their import."""
    before = set(sys.modules)
    from warmup_plugin.identity import Identity
    from warmup_plugin.kernel_warmup import warm_up
    from warmup_plugin.settings import Settings

    report = warm_up(
        lambda: toys.call("toy", [toys.Toy("toy")], toys.STATIC, toys.rows(16), toys.WEIGHT),
        identity=Identity.of(model="toys", dtype="float32"), cache_root=Path(root),
        settings=Settings.from_env(margin=0.0), engine=("toys", "1"),
    )  # fmt: skip
    modules = [name for name in sys.modules if name not in before]
    from warmup_plugin.tuner import environment_stamp

    kept = bool(environment_stamp.kept())
    found = {"warm": report.is_warm, "tasks": report.tasks, "kept": kept, "modules": modules}
    print(json.dumps(found))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(sys.argv[1])
