# SPDX-License-Identifier: Apache-2.0
"""The command line, typed without options, about a start that SGLang has really made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import check_last_start, default_root, environ_without

from warmup_plugin.engines.sglang import compat

pytestmark = [pytest.mark.engine, pytest.mark.multiprocess]

ROOT = "SGLANG_CACHE_DIR"
HERE = str(Path(__file__).parent)
#: Its import needs what `sglang_import` puts right on a machine without a GPU.
_ASK = (
    "import sglang_import; from sglang.srt.environ import envs; print(envs.SGLANG_CACHE_DIR.get())"
)


def test_it_answers_about_the_last_start(job: Callable[..., Any]) -> None:
    """Where the table lies, why it tuned, where the time went, whether all is well there."""
    check_last_start(job(tp=2), ROOT, f"sglang {compat.TESTED[0]}")


@pytest.mark.parametrize("has_xdg", [False, True])
def test_the_default_root_is_the_engines(
    tmp_path: Path, has_xdg: bool  # noqa: FBT001  # both environments
) -> None:  # fmt: skip
    """What SGLang itself says of it, without its variable."""
    environ = environ_without(ROOT, tmp_path, has_xdg=has_xdg)
    environ["PYTHONPATH"] = os.pathsep.join([HERE, environ.get("PYTHONPATH", "")])
    assert default_root(_ASK, environ) == str(compat.default_root(environ))
