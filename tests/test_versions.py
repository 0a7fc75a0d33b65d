# SPDX-License-Identifier: Apache-2.0
"""Between versions of this package: what a newer one has written survives; the page says so.

Reading of other schemas: test_manifest.py; files left to newer versions: test_store.py; FlashInfer
without this package: tuner/test_flashinfer_alone.py.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from warmup_plugin.cache.archive import SCHEMA as ARCHIVE_SCHEMA
from warmup_plugin.cache.manifest import SCHEMA
from warmup_plugin.cli.doctor_checks import FLASHINFER_TESTED
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.engines.sglang.compat import TESTED as SGLANG_TESTED
from warmup_plugin.engines.vllm.compat import TESTED as VLLM_TESTED
from warmup_plugin.observability import metrics
from warmup_plugin.observability.progress import Progress
from warmup_plugin.observability.report import WarmupReport

CHECKOUT = Path(__file__).parents[1]
CONFIG = EngineConfig(tp=2)
#: What every receipt has, and a field of a later version.
LEAST = {
    "schema": 1, "engine": "e", "engine_version": "1", "plugin_version": "9",
    "flashinfer_version": "0.7", "rank": 0, "world_size": 1, "mode": "on",
    "strategy": "leader", "agreement": "certified", "shiny": 1,
}  # fmt: skip


def only(folder: Path, pattern: str) -> Path:
    (found,) = folder.rglob(pattern)
    return found


@pytest.mark.multiprocess
def test_fields_of_a_newer_version_survive_a_start_that_tunes(cache_root: Path) -> None:
    """In the header and in a task: an older plugin tunes a part anew and writes the file."""
    launch(CONFIG, root=cache_root)
    path = only(cache_root, "*.manifest.json")
    manifest = json.loads(path.read_bytes())
    table = only(cache_root, "rank_tp0_pp0_dp0.json")
    entries = json.loads(table.read_bytes())
    kept, lost = min(manifest["tasks"]), max(manifest["tasks"])
    manifest["shiny"] = {"new": [1, 2]}
    manifest["tasks"][kept]["glow"] = "blue"
    # It tunes what its manifest does not have: one task and its entry are gone.
    for key in (key for keys in manifest["tasks"].pop(lost)["keys"] for key in keys):
        entries.pop(key, None)
    manifest["complete"] = False
    text = "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items())
    table.write_text(text + "\n}\n")
    manifest["table_sha256"] = hashlib.sha256(table.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))

    again = launch(CONFIG, root=cache_root)
    assert sum(rank.report.tasks["tuned"] for rank in again) == 1
    after = json.loads(path.read_bytes())
    assert after["generation"] == manifest["generation"] + 1
    assert after["shiny"] == {"new": [1, 2]}
    assert after["tasks"][kept]["glow"] == "blue"
    assert lost in after["tasks"]


@pytest.mark.multiprocess
def test_a_downgrade_leaves_newer_files_and_serves_without_them(cache_root: Path) -> None:
    """The older plugin works in memory; the newer one finds its files as they were."""
    launch(CONFIG, root=cache_root)
    path = only(cache_root, "*.manifest.json")
    table = only(cache_root, "rank_tp0_pp0_dp0.json")
    path.write_bytes(path.read_bytes().replace(b'"schema": 2,', b'"schema": 4,', 1))
    before = {each: each.read_bytes() for each in (path, table)}
    older = launch(CONFIG, root=cache_root)
    assert {rank.report.agreement for rank in older} == {"certified"}
    assert any("schema 4" in text for text in older[0].report.warnings)
    assert {each: each.read_bytes() for each in (path, table)} == before


def test_a_receipt_of_another_version_is_read() -> None:
    """Missing fields have their defaults, unknown ones are left out."""
    found = WarmupReport.from_json(LEAST)
    assert (found.engine, found.ranks, found.process) == ("e", (), None)
    assert WarmupReport.from_json(found.to_json()) == found


def test_the_support_page_names_what_is_tested() -> None:
    """Releases, engines, Python and schemas, as the tests and the package have them."""
    page = (CHECKOUT / "docs" / "support.md").read_text()
    tested = set(re.findall(r"^\| FlashInfer (\S+) \|", page, re.MULTILINE))
    lines = (CHECKOUT / "requirements" / "flashinfer-releases.txt").read_text().splitlines()
    releases = {line.split()[0] for line in lines if not line.startswith("#")}
    main = (CHECKOUT / "requirements" / "flashinfer-cpu.txt").read_text()
    (pinned,) = re.findall(r"^flashinfer-python==(\S+)", main, re.MULTILINE)
    sglang = (CHECKOUT / "requirements" / "sglang-cpu.txt").read_text()
    (its_own,) = re.findall(r"^flashinfer-python==(\S+)", sglang, re.MULTILINE)
    assert tested == releases | {pinned, its_own} == set(FLASHINFER_TESTED)
    assert set(re.findall(r"^\| vLLM (\S+) \|", page, re.MULTILINE)) == set(VLLM_TESTED)
    assert set(re.findall(r"^\| SGLang (\S+) \|", page, re.MULTILINE)) == set(SGLANG_TESTED)
    schemas = dict(
        re.findall(r"^\| (manifest|receipt|archive)(?:, image)? \| (\d+) \|", page, re.MULTILINE)
    )
    assert schemas == {
        "manifest": str(SCHEMA), "receipt": "1", "archive": str(ARCHIVE_SCHEMA)
    }  # fmt: skip


def test_the_receipts_page_names_every_field() -> None:
    """Of the receipt, of the progress file, of the figures."""
    page = (CHECKOUT / "docs" / "receipts.md").read_text()
    names = set(re.findall(r"`(\w+)`", page))
    assert {*WarmupReport.__struct_fields__} <= names
    assert Progress(1).document().keys() <= names
    families = re.findall(r"^\| `warmup_plugin_(\w+)` \| ([^|]*) \|", page, re.MULTILINE)
    assert {name: tuple(cell.split(", ")) if cell else () for name, cell in families} == {
        name: family.labels for name, family in metrics.FAMILIES.items()
    }
    assert names >= {*metrics.COMMON, *metrics.STATES}
