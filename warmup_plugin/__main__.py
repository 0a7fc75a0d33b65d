# SPDX-License-Identifier: Apache-2.0
"""`python -m warmup_plugin`: the command line, where its script is not on the path."""

from __future__ import annotations

import sys

from warmup_plugin.cli import main

sys.exit(main())
