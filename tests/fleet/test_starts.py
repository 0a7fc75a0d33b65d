# SPDX-License-Identifier: Apache-2.0
"""Starts of hosts that share a fleet: who tunes, who is warm, and on what they agree."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from pathlib import Path

import pytest
from tests_fleet_conftest import start

pytestmark = pytest.mark.multiprocess
