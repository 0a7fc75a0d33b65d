# SPDX-License-Identifier: Apache-2.0
"""A process that has FlashInfer and has not this package: loads a table and says what it serves.

Run as ``python alone.py TABLE`` with the checkout on the import path, for `toys.py` only.
"""

from __future__ import annotations

import json
import sys

from flashinfer.autotuner import AutoTuner

from tests.tuner import toys


def main(table: str) -> None:
    """Load the table as any engine does, and call every op as a model does."""
    loaded = AutoTuner.get().load_configs(table)
    served = {**toys.every_call(), "told apart": toys.told_apart(), "fp4": toys.fp4_gemms()}
    ours = sorted(name for name in sys.modules if name.split(".")[0] == "warmup_plugin")
    print(json.dumps({"loaded": loaded, "served": served, "ours": ours}))  # noqa: T201  # its answer


if __name__ == "__main__":
    main(sys.argv[1])
