# SPDX-License-Identifier: Apache-2.0
"""The page of a real start of four ranks: complete, fetching nothing, drawn by a real browser."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from warmup_plugin.engines.embedded import EngineConfig, launch

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

pytestmark = pytest.mark.multiprocess

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
FIGURES = ("timeline", "per-op", "gains", "sources")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which four ranks have started once."""
    found = tmp_path_factory.mktemp("page")
    launch(EngineConfig(tp=2, pp=2), root=found)
    return found


@pytest.fixture
def page(cli: Cli, root: Path, tmp_path: Path) -> Path:
    """The page of that start."""
    pytest.importorskip("plotly", reason="the page is drawn by plotly, an extra")
    path = tmp_path / "start.html"
    ran = cli("report", "--html", path, "--root", root)
    assert ran.code == 0, ran.err
    return path


def browse(page: Path, *options: str) -> str:
    """Load a page in a browser that has no network, and return what became of it."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    argv = [
        found, "--headless", "--no-sandbox", "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr",
        "--virtual-time-budget=20000", "--window-size=1150,2300",
        *options, page.as_uri(),
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="browser-") as folder:
        # All that a browser writes beside its answer: its profile, caches, the desktop's settings.
        names = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_RUNTIME_DIR")
        own = dict.fromkeys(names, folder)
        done = subprocess.run(
            [argv[0], f"--user-data-dir={folder}/profile", *argv[1:]],
            check=True, capture_output=True, text=True, timeout=90, env={**os.environ, **own},
        )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr  # an error of the page's script, or a fetch
    return done.stdout


def svg_of(document: str, figure: str) -> str:
    """Return the drawing of one figure, as the browser made it."""
    begin = document.index(f'id="{figure}"')
    ends = [document.find(f'id="{other}"', begin + 1) for other in FIGURES]
    return document[begin : min([end for end in ends if end > 0], default=len(document))]


@pytest.mark.browser
def test_a_real_browser_draws_all_of_it(page: Path) -> None:
    """Four figures: a bar for each rank's steps and each task, cells with gains, legends."""
    document = browse(page, "--dump-dom")
    for figure in FIGURES:
        assert "main-svg" in svg_of(document, figure), f"{figure} is not drawn"
    timeline = svg_of(document, "timeline")
    for rank in range(4):
        assert f">rank {rank}<" in timeline
    for step in ("open", "survey", "tune", "a task"):
        assert f"</i>{step}</span>" in timeline
    assert timeline.count('class="point"') >= 62 + 4 * 5
    assert re.search(r">embedded::gemm<", svg_of(document, "per-op"))
    gains = re.findall(r">(\d+\.\d\d)<", svg_of(document, "gains"))
    assert len(gains) >= 20
    assert max(map(float, gains)) > 1.0
    assert "</i>tuned</span>" in svg_of(document, "sources")


@pytest.mark.browser
def test_it_can_be_photographed(page: Path, tmp_path: Path) -> None:
    """As for the docs: a picture with something on it."""
    shot = tmp_path / "shot.png"
    browse(page, f"--screenshot={shot}")
    assert shot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert shot.stat().st_size > 40_000


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_on_a_phone_and_at_night(page: Path, width: int, scheme: str) -> None:
    """In the reader's colours, drawings too; no wider than the window but where it scrolls."""
    probe, frame = page.with_name("probe.html"), page.with_name("frame.html")
    asked = """<script>window.addEventListener("load", () => setTimeout(() => {
      const of = (node, name) => getComputedStyle(node)[name];
      const label = document.querySelector("#timeline .ytick text");
      const wide = document.documentElement.clientWidth;
      parent.postMessage(JSON.stringify([
        of(document.body, "backgroundColor"), of(document.body, "color"), of(label, "fill"), wide,
        document.documentElement.scrollWidth,
        document.querySelector("#timeline .main-svg").getBoundingClientRect().right]), "*");
    }, 1000));</script></body>"""
    probe.write_text(page.read_text().replace("</body>", asked))
    # No window is as narrow as a phone; a frame is.
    frame.write_text(
        f'<body><iframe width="{width}" height="900" src="probe.html" frameborder="0"></iframe>'
        '<script>window.addEventListener("message", (told) => '
        'document.body.setAttribute("data-told", told.data));</script></body>'
    )
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    document = browse(frame, "--dump-dom", *dark)
    (told,) = re.findall(r'data-told="([^"]*)"', document)
    paper, ink, label, wide, whole, drawn = json.loads(html.unescape(told))
    night = ("rgb(22, 32, 43)", "rgb(217, 226, 236)", "rgb(217, 226, 236)")
    day = ("rgb(255, 255, 255)", "rgb(31, 41, 51)", "rgb(31, 41, 51)")
    assert (paper, ink, label) == (night if scheme == "dark" else day)
    assert 0 <= width - wide <= 20, "but for a scroll bar"
    assert whole == wide
    assert drawn <= wide


def test_it_tells_the_jobs_counts_from_a_ranks(page: Path) -> None:
    """And in which time zone it was; a list of one path is that path."""
    text = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    rows = dict(re.findall(r"<tr><th>(.*?)</th><td>(.*?)</td></tr>", text))
    assert re.search(r" \(\+\d{4}\)$|\(-\d{4}\)$", rows["when"])
    assert int(rows["tactics timed by all ranks"]) > int(rows["tactics timed by rank 0"]) > 0
    assert int(rows["tactics timed by ops left to themselves"]) > 0
    assert rows["tasks of rank 0"].startswith("27 seen")
    assert rows["written"].endswith("rank_tp0_pp0_dp0.json")
    legends = re.findall(r'<p class="legend">(.*?)</p>', text)
    assert len(legends) == 2
    assert "</i>tuned</span>" in legends[1]


def test_it_fetches_nothing(page: Path) -> None:
    """No address that a browser would ask for; the words of the receipt are in it."""
    text = page.read_text()
    head = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)\s*=", head)
    assert "waited" in head
    assert "certified" in head


def test_text_from_files_is_escaped(cli: Cli, root: Path, tmp_path: Path) -> None:
    """An op, a path, an engine's name: none of them becomes markup."""
    pytest.importorskip("plotly", reason="the page is drawn by plotly, an extra")
    (receipt,) = root.rglob("reports/*.json")
    document: dict[str, Any] = json.loads(receipt.read_bytes())
    evil = "<img src=x onerror=alert(1)></script><b>"
    document["engine"] = document["reason"] = evil
    document["read"] = [{"path": evil, "entries": 1, "reason": evil}]
    document["winners"][0]["op"] = evil
    document["ranks"][0]["steps"][0][0] = evil
    bad = tmp_path / "reports" / "bad.json"
    bad.parent.mkdir()
    bad.write_text(json.dumps(document))
    path = tmp_path / "bad.html"
    assert cli("report", bad, "--html", path).code == 0
    text = path.read_text()
    assert html.escape(evil) in text
    assert "<img" not in text
    assert html.escape(evil).replace("/", "\\u002f") in text  # what the drawing shows on hovering
    assert "</script><b>" not in text


def test_without_plotly_it_says_what_to_install(
    cli: Cli, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And writes nothing; the words need no plotly."""
    for name in ("plotly", "plotly.graph_objects", "plotly.io"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
    ran = cli("report", "--html", tmp_path / "page.html", "--root", root)
    assert (ran.code, "pip install 'warmup-plugin[report]'" in ran.err) == (1, True)
    assert not (tmp_path / "page.html").exists()
    said = cli("report", "--root", root, width=120)
    assert said.code == 0
    assert re.search(r"62 tasks tuned in this start: \d+\.\d\d x the default's speed", said.out)
    assert re.search(r"waited +ranks? [\d, -]+ waited \d+\.\d\d s for rank \d", said.out)
