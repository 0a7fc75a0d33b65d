# SPDX-License-Identifier: Apache-2.0
"""Whether a server says that it is ready, by its health page.

Owns that one question. It is asked directly: a proxy of the environment is not for this machine.
"""

from __future__ import annotations

_OK = 200


def answers(url: str, limit_s: float) -> bool:
    """Return whether a page answers 200 within ``limit_s`` seconds; False for any other answer.

    So it is for a URL that is none, and for a server that does not speak HTTP.
    """
    import http.client  # no engine's start asks
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=limit_s) as answer:
            return bool(answer.status == _OK)
    except (OSError, ValueError, http.client.HTTPException):
        return False
