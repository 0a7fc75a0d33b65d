# SPDX-License-Identifier: Apache-2.0
"""Whether a process uses an identity's tables now, as far as its directory tells.

Owns the rule. In use is what an engine tunes for (the lease in `journal/`), and what the process of
one of the kept receipts was started with, as long as that process runs. A process that cannot be
seen from here (another machine, another container) counts as running for a week after its start.
Not seen: engines that write no receipts (mode read-only, replay), and those whose receipt has made
room for newer ones while all of the newer ones' processes have ended. Reads only.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from warmup_plugin.cache.lease import holder
from warmup_plugin.cache.paths import JOURNAL
from warmup_plugin.cli.inventory import Kept
from warmup_plugin.cli.load import read_report
from warmup_plugin.cli.receipts import receipts_of
from warmup_plugin.runtime.process_info import view
from warmup_plugin.runtime.safe_json import Miss

UNSEEN_S: Final = 7 * 86_400.0


def last_used(kept: Kept) -> float:
    """Return when a table was written or a start wrote its receipt, unix seconds."""
    times = [kept.changed]
    for path in receipts_of(kept):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def user_of(kept: Kept, limit: int) -> str:
    """Return who uses these tables, an empty string where no process does."""
    directory = Path(kept.directory)
    if JOURNAL in kept.folders and (tuner := holder(directory)):
        return f"{tuner}, which tunes"
    for path in sorted(receipts_of(kept), reverse=True):
        if found := _of_receipt(path, limit):
            return found
    return ""


def _of_receipt(path: Path, limit: int) -> str:
    report = read_report(path, limit)
    if isinstance(report, Miss):
        return ""
    age_s = time.time() - report.at
    card = report.process
    if card is None:  # written before receipts told of their process
        return "a start of the last week" if age_s < UNSEEN_S else ""
    seen = view(card)
    if seen in ("runs", "stopped"):
        return f"process {card.pid} of {report.engine}"
    if seen == "unseen" and age_s < UNSEEN_S:
        return f"process {card.pid} of another machine, started {age_s / 86_400:.1f} days ago"
    return ""
