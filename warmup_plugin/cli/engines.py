# SPDX-License-Identifier: Apache-2.0
"""The engines that this package has an adapter for, as the command line asks about them.

Owns one row for each: how it finds plugins and who chooses among them, by the engine's own rule;
where its cache root lies. Imports no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from warmup_plugin.engines.sglang import compat as sglang
from warmup_plugin.engines.vllm import compat as vllm


@dataclass(frozen=True)
class Engine:
    """One engine.

    ``chosen`` is the variable that limits the plugins, ``loads`` that engine's way of reading it;
    ``other_groups`` are the groups of entry points that the same variable limits.
    """

    name: str
    package: str
    tested: tuple[str, ...]
    group: str
    chosen: str
    loads: Callable[[str | None, str], bool]
    root_variable: str
    default_root: Callable[[Mapping[str, str]], Path]
    other_groups: tuple[str, ...] = ()


def vllm_loads(chosen: str | None, name: str) -> bool:
    """Return whether vLLM 0.33.0 loads a plugin: it splits at commas and takes no blank away.

    Unset is all; set to nothing it names one plugin without a name.
    """
    return chosen is None or name in chosen.split(",")


def sglang_loads(chosen: str | None, name: str) -> bool:
    """Return whether SGLang 0.5.23 loads a plugin: it takes blanks away, and nothing set is all."""
    return not chosen or name in {part.strip() for part in chosen.split(",")}


ENGINES: Final = (
    Engine("vLLM", "vllm", vllm.TESTED, "vllm.general_plugins", "VLLM_PLUGINS", vllm_loads,
           vllm.ROOT_VARIABLE, vllm.default_root,
           ("vllm.platform_plugins", "vllm.io_processor_plugins", "vllm.stat_logger_plugins")),
    Engine("SGLang", "sglang", sglang.TESTED, "sglang.srt.plugins", "SGLANG_PLUGINS", sglang_loads,
           sglang.ROOT_VARIABLE, sglang.default_root),
)  # fmt: skip
