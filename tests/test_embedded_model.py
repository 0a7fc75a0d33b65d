# SPDX-License-Identifier: Apache-2.0
"""Every layout of the embedded engine is the same model, and its launcher leaves nothing behind.

Ranks are real processes, every launch is bounded in time. Functions with a first parameter
``engine`` run on the ranks. Tuning here is FlashInfer's own, without the package.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # torch's own spelling

from warmup_plugin.cache.stamps import FINGERPRINT, PACKAGES
from warmup_plugin.engines.embedded import EngineConfig, LaunchError, launch
from warmup_plugin.engines.embedded.count_calls import count_calls, tuning_functions
from warmup_plugin.engines.embedded.model import prompt, weight
from warmup_plugin.engines.embedded.parallel import ALL_REDUCE, tuning_over

if TYPE_CHECKING:
    from warmup_plugin.engines.embedded.worker import Engine

pytestmark = pytest.mark.multiprocess

LAYOUTS: list[dict[str, int]] = [
    {},
    {"tp": 2},
    {"pp": 2},
    {"dp": 2},
    {"tp": 2, "ep": 2},
    {"dp": 2, "ep": 2},
    {"tp": 2, "pp": 2},
    {"tp": 2, "dp": 2, "ep": 4},
    {"tp": 4},
]


def name_of(layout: dict[str, int]) -> str:
    return "-".join(f"{axis}{size}" for axis, size in layout.items()) or "one rank"


def run(config: EngineConfig, function: Any, **options: Any) -> list[Any]:
    options.setdefault("timeout_s", 60.0)
    return launch(config, script=f"{__file__}:{function.__name__}", **options)


# -- on the ranks --------------------------------------------------------------------------------


def tune(engine: Engine, *, together: bool = True) -> dict[str, Any]:
    """Run a forward before, while and after FlashInfer tunes it."""
    from flashinfer.autotuner import AutoTuner, autotune

    logits = [engine.forward()]
    group = engine.tuning_group if together else None
    with count_calls(**tuning_functions()) as counts, tuning_over(group), autotune(True):
        logits.append(engine.forward())
    logits.append(engine.forward())
    return {
        "logits": [x.tolist() for x in logits if x is not None],
        "served": engine.ops.served(),
        "counts": dict(counts),
        "failed": dict(AutoTuner.get().stats.failed_profiling_count),
    }


def describe(engine: Engine) -> tuple[int, str | None, Path | None, str | None, int]:
    variable = os.environ.get("WARMUP_PLUGIN_MODE")
    return engine.ranks.local_rank, engine.ranks.node, engine.root, variable, os.getpid()


def fail_on_one(engine: Engine) -> None:
    if engine.ranks.rank == 1:
        raise ZeroDivisionError("planted")
    time.sleep(30)


def die_on_one(engine: Engine) -> str:
    if engine.ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "fine"


def hang_on_one(engine: Engine) -> str:
    engine.say(f"{os.getpid()}")
    if engine.ranks.rank == 1:
        stand_still()
    return "fine"


def stand_still() -> None:
    time.sleep(30)


# -- what they should have computed --------------------------------------------------------------


def reference(config: EngineConfig, tokens: torch.Tensor) -> torch.Tensor:
    """The same decoder, on one rank, in plain torch."""
    hidden, ffn = config.hidden, config.ffn

    def w(name: str, *shape: int) -> torch.Tensor:
        return weight(config, name, *shape)

    def norm(x: torch.Tensor) -> torch.Tensor:
        return x / (x.pow(2).mean(1, keepdim=True) + torch.finfo(x.dtype).eps).sqrt()

    x = w("embedding", config.vocab, hidden)[tokens]
    for number in range(config.layers):
        at = f"layer{number}"
        y = norm(x)
        q, k, v = (
            (y @ w(f"{at}.{part}", hidden, hidden).T + w(f"{at}.{part}_bias", hidden))
            .view(len(x), config.heads, -1)
            .transpose(0, 1)
            for part in "qkv"
        )
        scores = q @ k.mT / (hidden // config.heads) ** 0.5
        mask = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(mask, -torch.inf).softmax(-1) @ v
        x = x + mixed.transpose(0, 1).reshape(len(x), hidden) @ w(f"{at}.out", hidden, hidden).T
        y = norm(x)
        if number < config.layers // 2:
            x = x + F.silu(y @ w(f"{at}.up", ffn, hidden).T) @ w(f"{at}.down", hidden, ffn).T
            continue
        best = (y @ w(f"{at}.gate", config.experts, hidden).T).topk(config.top_k, 1)
        w1 = w(f"{at}.w1", config.experts, ffn, hidden)
        w2 = w(f"{at}.w2", config.experts, hidden, ffn)
        add = torch.zeros_like(x)
        for share, expert in zip(best.values.softmax(1).T, best.indices.T, strict=True):
            inner = F.silu(torch.einsum("th,tfh->tf", y, w1[expert]))
            add += share[:, None] * torch.einsum("tf,thf->th", inner, w2[expert])
        x = x + add
    return norm(x) @ w("model.head", config.vocab, hidden).T


# -- tests ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def _loaded_fork_server() -> None:
    """Let no test's time limit pay for loading torch and FlashInfer."""
    run(EngineConfig(), describe)


@pytest.mark.parametrize("layout", LAYOUTS, ids=name_of)
def test_every_layout_is_the_same_model(layout: dict[str, int], cache_root: Path) -> None:
    """Equal to plain torch with default, racing and tuned tactics; tp ranks serve one table."""
    config = EngineConfig(**layout)  # type: ignore[arg-type]  # sizes only
    results = run(config, tune, root=cache_root)
    for rank, result in enumerate(results):
        place = config.place(rank)
        expected = reference(config, prompt(config, place.dp_rank, config.tokens))
        on_last = place.pp_rank == config.pp - 1
        assert len(result["logits"]) == (3 if on_last else 0)
        for logits in result["logits"]:
            torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-3, atol=1e-3)
        assert not result["failed"]
        assert all(tactic != -1 for _, tactic in result["served"].values())
        peer = rank - place.tp_rank
        assert result["served"] == results[peer]["served"], "tp peers were tuned together"


def test_stages_of_a_pipeline_have_different_ops() -> None:
    first, second = ({key.split()[0] for key in result["served"]}
                     for result in run(EngineConfig(pp=2), tune))  # fmt: skip
    assert first == {"embedded::gemm"}
    experts = {"embedded::expert_gemm", "embedded::moe_gemm1", "embedded::moe_gemm2"}
    assert second == {"embedded::gemm", "embedded::lm_head", *experts}


@pytest.mark.parametrize("together", [True, False], ids=["together", "left alone"])
def test_ranks_left_to_themselves_disagree(together: bool) -> None:  # noqa: FBT001
    """The timing that shows whether ranks agreed: tactic r is the fastest on rank r."""
    config = EngineConfig(tp=2, timing="rank_noise")
    first, second = run(config, tune, arguments={"together": together})
    differing = {key for key in first["served"] if first["served"][key] != second["served"][key]}
    # The collective op is not tuned at all by ranks that do not tune together.
    alone = {key for key in first["served"] if not key.startswith(ALL_REDUCE)}
    assert differing == (set() if together else alone)
    for logits in zip(first["logits"], second["logits"], strict=True):
        torch.testing.assert_close(*map(torch.tensor, logits), rtol=1e-3, atol=1e-3)


def test_deterministic_timings_give_equal_winners_at_every_start() -> None:
    config = EngineConfig(timing="deterministic")
    (first,), (second,) = run(config, tune), run(config, tune)
    assert first["served"] == second["served"]
    assert len(set(first["served"].values())) > 4


def test_the_collective_op_keeps_its_own_file(cache_root: Path) -> None:
    """Written once, by the group's first rank, with its entries only; then no rank tunes it."""
    cold = inputs_made(cache_root)
    (path,) = (cache_root / "all_reduce").iterdir()
    entries = {key for key in json.loads(path.read_text()) if key != "_metadata"}
    assert len(entries) == 3
    assert all(ALL_REDUCE in key for key in entries)
    assert inputs_made(cache_root) == [number - 3 for number in cold]
    path.write_text("[]")
    assert inputs_made(cache_root) == cold
    assert len(json.loads(path.read_text())) == 4


def test_its_file_serves_equal_packages_at_another_path(cache_root: Path) -> None:
    """Others it does not serve: FlashInfer's own stamp tells them apart, and so does ours."""
    cold = inputs_made(cache_root)
    (path,) = (cache_root / "all_reduce").iterdir()
    document = json.loads(path.read_text())
    stamp = document["_metadata"]
    equal = stamp.get(PACKAGES, stamp[FINGERPRINT])
    for packages, spared in ((equal, 3), ("others", 0)):
        stamp.update({FINGERPRINT: "installed elsewhere", PACKAGES: packages})
        path.write_text(json.dumps(document))
        assert inputs_made(cache_root) == [number - spared for number in cold]


def inputs_made(root: Path) -> list[int]:
    """How often each of two ranks has made inputs to measure on, while FlashInfer tunes."""
    results = run(EngineConfig(tp=2), tune, root=root)
    return [result["counts"]["prepare_input_tensors"] for result in results]


def test_nodes_roots_and_environment_reach_the_ranks(tmp_path: Path) -> None:
    roots = [tmp_path / "a", tmp_path / "b"]
    os.environ["WARMUP_PLUGIN_MODE"] = "replay"
    try:
        by_block = run(EngineConfig(tp=2, pp=2), describe, nodes=roots)
    finally:
        del os.environ["WARMUP_PLUGIN_MODE"]
    assert [result[:4] for result in by_block] == [
        (0, "node0", roots[0], "replay"),
        (1, "node0", roots[0], "replay"),
        (0, "node1", roots[1], "replay"),
        (1, "node1", roots[1], "replay"),
    ]
    dealt = run(EngineConfig(dp=2), describe, root=tmp_path, nodes=2, node_of_rank=[1, 0],
                env={"WARMUP_PLUGIN_MODE": "off"})  # fmt: skip
    assert [result[:4] for result in dealt] == [
        (0, "node1", tmp_path, "off"),
        (0, "node0", tmp_path, "off"),
    ]
    assert "WARMUP_PLUGIN_MODE" not in os.environ


def test_a_rank_that_raises_is_named_with_its_traceback() -> None:
    with pytest.raises(LaunchError) as caught:
        run(EngineConfig(dp=2), fail_on_one, grace_s=0.2)
    assert caught.value.rank == 1
    assert "in fail_on_one" in str(caught.value)
    assert "ZeroDivisionError: planted" in str(caught.value)
    assert "ranks that did not finish either: [0]" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301  # ours


def test_a_rank_that_dies_is_named_and_the_others_results_kept() -> None:
    with pytest.raises(LaunchError) as caught:
        run(EngineConfig(dp=2), die_on_one, grace_s=5.0)
    assert caught.value.rank == 1
    assert "exit code -9" in str(caught.value)
    assert caught.value.results == {0: "fine"}


def test_a_rank_that_hangs_is_named_with_its_stack_and_ended() -> None:
    told: dict[int, int] = {}
    with pytest.raises(LaunchError) as caught:
        run(EngineConfig(dp=2), hang_on_one, timeout_s=4.0,
            progress=lambda rank, text: told.update({rank: int(text)}))  # fmt: skip
    assert caught.value.rank == 1
    assert "not finished after 4 s" in str(caught.value)
    assert "in stand_still" in str(caught.value)
    assert sorted(told) == [0, 1]
    assert all(is_gone(pid) for pid in told.values())


def is_gone(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return False
    return True


def test_ranks_end_with_their_parent(tmp_path: Path) -> None:
    """A parent that is killed leaves no rank behind; a script needs no main guard."""
    script = tmp_path / "guardless.py"
    script.write_text(
        "from warmup_plugin.engines.embedded import EngineConfig, launch\n"
        f"launch(EngineConfig(dp=2), script='{__file__}:hang_on_one', timeout_s=30,\n"
        "       progress=lambda rank, text: print(text, flush=True))\n"
    )
    with (
        tempfile.TemporaryDirectory() as left_over,
        subprocess.Popen(
            [sys.executable, script],
            env={**os.environ, "TMPDIR": left_over},
            stdout=subprocess.PIPE,
            text=True,
        ) as parent,
    ):
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        parent.kill()
    deadline = time.monotonic() + 10
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline, "a rank outlived its parent"
        time.sleep(0.05)


def test_plain_spawn_works_too(cache_root: Path) -> None:
    results = run(EngineConfig(dp=2), describe, root=cache_root, spawn=True)
    assert len({result[-1] for result in results}) == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ep": 2}, r"ep=2: must divide tp\*dp=1"),
        ({"tp": 2, "dp": 2, "ep": 3}, r"ep=3: must divide tp\*dp=4"),
        ({"tp": 3}, "tp=3: must divide the model's heads=4"),
        ({"pp": 3}, "pp=3: must divide the model's layers=4"),
        ({"dp": 8, "ep": 8}, "ep=8: must divide the model's experts=4"),
        ({"dp": 0}, "dp=0: must be at least 1"),
        ({"top_k": 5}, r"top_k=5: must be in \[1, experts=4\]"),
    ],
    ids=str,
)
def test_a_layout_that_does_not_divide_is_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**sizes)  # type: ignore[arg-type]  # sizes only
