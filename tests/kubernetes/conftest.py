# SPDX-License-Identifier: Apache-2.0
"""Loads the helpers of this folder, which is no package, by their paths."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

for _name in ("manifests", "kubelet"):
    _spec = importlib.util.spec_from_file_location(
        f"tests.kubernetes.{_name}", Path(__file__).with_name(f"{_name}.py")
    )
    assert _spec is not None
    assert _spec.loader is not None
    sys.modules[_spec.name] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[_spec.name])
