# SPDX-License-Identifier: Apache-2.0
"""The dashboard's queries, as the tests of this folder ask them."""

from __future__ import annotations

import json
import re
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples" / "monitoring"


def expressions() -> dict[str, str]:
    """Return the dashboard's queries by panel, with all of its variables chosen."""
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    found = {}
    for panel in board["panels"]:
        for target in panel["targets"]:
            text = re.sub(r"\$(job|engine|host)\b", ".*", target["expr"])
            found[f"{panel['title']} {target['refId']}"] = text.replace("$__range", "1d")
    return found
