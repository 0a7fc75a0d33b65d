# SPDX-License-Identifier: Apache-2.0
"""What FlashInfer writes for engines is taken over whole, and the next start tunes none of it.

The files are FlashInfer's own: `save_configs`, which vLLM and SGLang call, and the managed store of
`autotune_v2`. Whole engines: tests/engines/.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.cache.table import parse_table
from warmup_plugin.engines.embedded import EngineConfig, launch

if TYPE_CHECKING:
    from tests.cli.conftest import Ran
    from warmup_plugin.cli.demo_run import TwoStarts

Cli = Callable[..., "Ran"]

pytestmark = pytest.mark.multiprocess

#: Writes the winners of a table as an engine would: into files of two ranks, and into the managed
#: store. Through FlashInfer, from what it has loaded.
WRITE = """
import sys
from pathlib import Path
from flashinfer.autotuner import AutoTuner

table, there = map(Path, sys.argv[1:])
tuner = AutoTuner.get()
assert tuner.load_configs(str(table))
for rank in (0, 1):
    tuner.save_configs(str(there / f"rank_tp{rank}_pp0_dp0.json"))
"""


def entries_of(path: Path) -> dict[str, Any]:
    """The entries of a document of FlashInfer's, by key, as plain JSON."""
    document = json.loads(path.read_bytes())
    return {key: value for key, value in document.items() if not key.startswith("_")}


@pytest.fixture
def engine_files(two_starts: TwoStarts, tmp_path: Path) -> Path:
    """A cache root of an engine, with FlashInfer's own files of two ranks."""
    folder = tmp_path / "engine" / "flashinfer" / "autotune" / "0.7.2" / "cpu" / "0123456789abcdef"
    folder.mkdir(parents=True)
    subprocess.run(
        [sys.executable, "-c", WRITE, str(two_starts.table.path), str(folder)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    return tmp_path / "engine"


def test_no_entry_is_lost_and_none_is_tuned_again(
    cli: Cli, engine_files: Path, two_starts: TwoStarts, tmp_path: Path
) -> None:
    """SGLang's place; the first start after it takes all of them up."""
    before = {path: path.read_bytes() for path in engine_files.rglob("*.json")}
    own = tmp_path / "own"
    ran = cli("import", "sglang", "--root", own, "--json", SGLANG_CACHE_DIR=str(engine_files))
    assert ran.code == 0, ran.err
    (row,) = ran.document["tables"]
    taken = entries_of(Path(row["path"]))
    for path in before:
        assert taken == entries_of(path)
    assert (row["entries"], row["conflicts"], len(row["sources"])) == (62, 0, 2)
    config = EngineConfig(tp=2, pp=2, all_reduce_dir=str(two_starts.root / "all_reduce"))
    first = launch(config, root=own)
    assert [rank.counts["profile_single_kernel"] for rank in first] == [0, 0, 0, 0]
    assert {rank.report.certificate for rank in first} == {
        rank.report.certificate for rank in two_starts.warm
    }
    assert set(first[0].report.adopted_from) == {row["path"]}
    assert {path: path.read_bytes() for path in engine_files.rglob("*.json")} == before
    again = cli("import", "sglang", "--root", own, SGLANG_CACHE_DIR=str(engine_files))
    assert "there already" in again.out


def test_where_files_differ_the_first_is_taken_and_the_rest_counted(
    cli: Cli, engine_files: Path, tmp_path: Path
) -> None:
    """Ranks that an engine let choose apart; a broken file is named and spoils nothing."""
    first, second = sorted(engine_files.rglob("rank_tp*.json"))
    document = json.loads(second.read_bytes())
    key = next(key for key in document if not key.startswith("_"))
    document[key][1] = 99
    document["('op', 'R', ((1,),), ())"] = ["R", 0]
    second.write_text(json.dumps(document))
    (second.parent / "broken.json").write_text("[")
    ran = cli("import", engine_files, "--root", tmp_path / "own", "--json")
    (row,) = ran.document["tables"]
    taken = parse_table(Path(row["path"]).read_bytes(), limit=1 << 30)
    assert (row["entries"], row["conflicts"]) == (63, 1)
    assert entries_of(Path(row["path"]))[key] == entries_of(first)[key]
    assert getattr(taken, "stamp", {}).get("flashinfer_version")
    assert [Path(r["path"]).name for r in ran.document["unusable"]] == ["broken.json"]


def test_a_managed_store_is_taken_over(cli: Cli, tmp_path: Path) -> None:
    """As `autotune_v2` leaves it: one file per entry, below FLASHINFER_AUTOTUNE_CACHE_DIR."""
    store = tmp_path / "v2" / ("e" * 16)
    (store / "entries").mkdir(parents=True)
    stamp = {"cache_schema": "v2", "flashinfer_version": "0.7.2", "gpu": "NVIDIA B200"}
    (store / "manifest.json").write_text(json.dumps(stamp))
    for number in range(3):
        row = {"key": f"('op', 'R', (({number},),), ())", "runner": "R", "tactic": [number, 1]}
        (store / "entries" / f"{number}.json").write_text(json.dumps(row))
    place = {"FLASHINFER_AUTOTUNE_CACHE_DIR": str(tmp_path)}
    ran = cli(
        "import", "flashinfer", "--arch", "sm100", "--root", tmp_path / "own", "--json", **place
    )
    (row,) = ran.document["tables"]
    assert Path(row["path"]).parent.relative_to(tmp_path / "own").as_posix() == (
        "flashinfer_autotune/0.7.2/sm100/imported"
    )
    assert entries_of(Path(row["path"])) == {
        f"('op', 'R', (({n},),), ())": ["R", [n, 1]] for n in range(3)
    }


def test_what_cannot_be_imported(cli: Cli, tmp_path: Path) -> None:
    """Nothing there, no such place, our own tables."""
    assert cli("import", tmp_path, "--root", tmp_path).code == 1
    assert cli("import", "trtllm", "--root", tmp_path).code == 1
    ran = cli("import", "vllm", "--engine-root", tmp_path, "--root", tmp_path)
    assert (ran.code, "no usable table" in ran.err) == (1, True)
