# SPDX-License-Identifier: Apache-2.0
"""The numbers of the standard streams, kept for them.

Owns one precaution. Where a supervisor has closed a standard stream, the next file or socket that
is opened gets its number, and with it all that torch, a driver or the linker print. A session's
store or journal must not be that file.
"""

from __future__ import annotations

import os
from typing import Final

_LAST: Final = 2


def hold_standard_streams() -> None:
    """Put the null device in the place of each standard stream that is closed; never raises."""
    try:
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= _LAST:
            os.set_inheritable(descriptor, True)  # its only argument
        os.close(descriptor)
    except OSError:
        pass  # no null device, or no descriptor for it: nor will there be one for a file of ours
