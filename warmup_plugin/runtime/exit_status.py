# SPDX-License-Identifier: Apache-2.0
"""The exit statuses with which this package ends a process."""

from __future__ import annotations

#: A process that ended itself because another rank's forward failed leaves with this status.
EXIT_ABANDONED = 79
