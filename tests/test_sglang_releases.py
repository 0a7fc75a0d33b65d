# SPDX-License-Identifier: Apache-2.0
"""What the adapter takes SGLang's function for: by its names, as each release has them.

The functions here have the names of SGLang's own, as they were recorded from the packages, and no
more: what the packages themselves come to is in `tests/engines`.
"""

from __future__ import annotations

import textwrap
from types import ModuleType
from typing import Any

import pytest

from warmup_plugin.engines.sglang import compat as sglang

_SGLANG = {
    "0.5.23": "autotune_v2(mode='tune')",
    "0.5.22": "",
    "0.5.21": "",
    "0.5.20": "",
    "0.5.19": "",
}
_CONTEXT = """
    import contextlib
    from pathlib import Path

    @contextlib.contextmanager
    def flashinfer_autotune_context(model_runner, *, run_lm_head):
        path = flashinfer_autotune_cache_path(model_runner)
        if envs.SGLANG_FLASHINFER_AUTOTUNE_CACHE.get():
            _drop_diverged_autotune_cache(path)
        get_flashinfer_autotune_skip_ops(model_runner)
        {more}
        yield

    envs = None
    flashinfer_autotune_cache_path = get_flashinfer_autotune_skip_ops = len
    run_flashinfer_autotune_forward = _drop_diverged_autotune_cache = len
"""


def _context(more: str) -> Any:
    module: Any = ModuleType("recorded")
    exec(textwrap.dedent(_CONTEXT).replace("{more}", more or "pass"), vars(module))  # noqa: S102
    return module


@pytest.fixture
def of_version(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(engine: Any, version: str) -> None:
        monkeypatch.setattr(engine, "version", lambda: version)

    return make


def test_every_tested_release_is_recorded_here() -> None:
    assert set(_SGLANG) == set(sglang.TESTED)


@pytest.mark.parametrize("release", sglang.TESTED)
def test_sglangs_default_races_as_its_release_has_it(of_version: Any, release: str) -> None:
    module = _context(_SGLANG[release])
    of_version(sglang, f"{release}.post1")

    assert sglang.missing(module) == []
    assert sglang.races_default(module.flashinfer_autotune_context) == bool(_SGLANG[release])


def test_a_tested_sglang_in_which_the_default_races_otherwise_is_told(of_version: Any) -> None:
    of_version(sglang, "0.5.23")
    assert sglang.missing(_context("")) == ["autotune_v2"]
    of_version(sglang, "0.5.22.post1")
    assert sglang.missing(_context(_SGLANG["0.5.23"])) == ["context without autotune_v2"]
    of_version(sglang, "0.9.0")
    assert sglang.missing(_context("")) == sglang.missing(_context(_SGLANG["0.5.23"])) == []
