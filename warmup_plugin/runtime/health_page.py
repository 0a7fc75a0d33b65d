# SPDX-License-Identifier: Apache-2.0
"""Whether a server says that it is ready, by its health page.

Owns that one question. It is asked directly: a proxy of the environment is not for this machine.
"""

from __future__ import annotations

_OK = 200


def answers(url: str, limit_s: float) -> bool:
    """Return whether a page answers 200 within so many seconds; False for what is no address."""
    import urllib.request  # no engine's start asks

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=limit_s) as answer:
            return bool(answer.status == _OK)
    except (OSError, ValueError):
        return False
