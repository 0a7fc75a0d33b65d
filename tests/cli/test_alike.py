# SPDX-License-Identifier: Apache-2.0
"""What holds for all verbs: how an identity is named, what a broken file costs, streams, words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.cli.shelves import GONE, VERSION, age, files_below, identity, put, receipt, tuned
from warmup_plugin.cli.parser import VERBS, name_of
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.settings import Settings, unknown_variables

if TYPE_CHECKING:
    from tests.cli.conftest import Ran

Cli = Callable[..., "Ran"]

COMMAND = (sys.executable, "-m", "warmup_plugin")

#: Verbs that take an identity, with `{}` for what is given.
NAMING = {
    "show": ["show", "{}"],
    "explain": ["explain", "{}"],
    "explain two": ["explain", "{}", "{}"],
    "report": ["report", "{}"],
    "verify": ["verify", "{}"],
    "diff": ["diff", "{}", "{}"],
    "pack": ["pack", "{}", "-o", "/dev/null"],
    "retry": ["retry", "{}"],
    "rm": ["rm", "{}", "--dry-run"],
}


@pytest.mark.parametrize("argv", NAMING.values(), ids=NAMING)
def test_first_digits_name_an_identity_for_every_verb(
    cli: Cli, tmp_path: Path, argv: list[str]
) -> None:
    """As `ls` prints them; too few, none and nonsense are one line each, of the same words."""
    directory = put(tmp_path)
    receipt(directory, process=GONE)
    many = [put(tmp_path, identity(tp=tp)) for tp in range(3, 40)]

    def ran(name: str) -> Ran:
        return cli(*(word.format(name) for word in argv), "--root", tmp_path)

    assert ran(directory.name[:12]).code == 0
    assert ran(directory.name[:12].upper()).code == 0
    shared = max((path.name[0] for path in many), key=[p.name[0] for p in many].count)
    several, nothing, nonsense = ran(shared), ran("0" * 64), ran("nonsense")
    assert [several.code, nothing.code, nonsense.code] == [1, 1, 1]
    assert f"several identities begin with {shared}: " in several.err
    assert len(several.err) < 200, "not all of them, and not all their digits"
    assert nothing.err.startswith("warmup-plugin: no identity below ")
    assert nonsense.err == (
        "warmup-plugin: nonsense: no such file or directory, nor the first digits of an identity\n"
    )
    assert ran("/no/such").err == "warmup-plugin: /no/such: no such file or directory\n"


def test_retry_is_of_an_identity(cli: Cli, tmp_path: Path) -> None:
    """Not of any folder: nothing has died there, and that would be no answer."""
    ran = cli("retry", tmp_path, "--root", tmp_path)
    said = f"warmup-plugin: {tmp_path}: not the directory of an identity\n"
    assert (ran.code, ran.err) == (1, said)


# -- broken files ----------------------------------------------------------------------------------

BROKEN = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "empty": lambda path: path.write_bytes(b""),
    "other rows": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "ranks": [{"rank": 0}]})
    ),
    "a text for a time": lambda path: path.write_text(
        json.dumps({**json.loads(path.read_text()), "winners": [tuned(ms="fast")]})
    ),
    "bad numbers": lambda path: path.write_text(
        path.read_text().replace('"world_size": 2', '"world_size": NaN')
    ),
}


@pytest.mark.parametrize("breaks", BROKEN.values(), ids=BROKEN)
def test_a_broken_receipt_costs_a_line(
    cli: Cli, tmp_path: Path, breaks: Callable[[Path], Any]
) -> None:
    """The one before it answers; by name it is an error."""
    directory = put(tmp_path)
    good, bad = receipt(directory), receipt(directory)
    os.utime(good, (1, 1))
    breaks(bad)
    for verb in (["explain", "--last"], ["report"], ["explain", directory.name[:6]]):
        ran = cli(*verb, "--json", "--root", tmp_path)
        assert ran.code == 0
        assert ran.document["receipt"] == str(good)
        assert ran.err.startswith(f"warmup-plugin: note: {bad}: ")
        assert ran.err.count("\n") == 1
        assert cli(*verb, "--quiet", "--root", tmp_path).err == ""
    assert cli("stats", "--root", tmp_path, "--json").document["unread"] == 1
    assert cli("report", bad).code == 1
    good.unlink()
    ran = cli("report", "--root", tmp_path)
    assert (ran.code, "can be read" in ran.err) == (1, True)


FAULTS = {
    "cut": lambda table: table.write_bytes(table.read_bytes()[:60]),
    "empty": lambda table: table.write_bytes(b""),
    "edited": lambda table: table.write_bytes(table.read_bytes().replace(b"7", b"8", 1)),
}


@pytest.mark.parametrize("breaks", FAULTS.values(), ids=FAULTS)
def test_a_faulty_table_is_complete_nowhere(
    cli: Cli, tmp_path: Path, breaks: Callable[[Path], Any]
) -> None:
    """`ls`, `doctor`, `where` and `verify` say the same of it; others are told beside it."""
    directory = put(tmp_path)
    put(tmp_path, identity(tp=4))
    breaks(directory / "rank_tp0_pp0_dp0.json")
    ls = cli("ls", "--root", tmp_path, "--json").document["tables"]
    where = cli("where", "--root", tmp_path, "--arch", "sm100", "--json").document["identities"]
    for rows in (ls, where):
        (row,) = (row for row in rows if row["identity"] == directory.name)
        assert (row["state"], row["entries"]) == ("has faults", 0)
    doctor = cli("doctor", "--quick", "--root", tmp_path)
    assert doctor.code == 1
    assert "1 cannot be used" in doctor.out
    assert cli("verify", "--root", tmp_path).code == 1


def test_an_identity_that_cannot_be_read_has_its_reason(cli: Cli, tmp_path: Path) -> None:
    """An empty file is not a missing one."""
    (put(tmp_path) / "identity.json").write_bytes(b"")
    assert "? (identity.json: Input data was truncated)" in cli("ls", "--root", tmp_path).out


def test_pack_leaves_out_what_does_not_hold_only_if_told(cli: Cli, tmp_path: Path) -> None:
    """The refusal names both ways on."""
    directory, good = put(tmp_path / "r"), put(tmp_path / "r", identity(tp=4))
    (directory / "rank_tp0_pp0_dp0.json").write_bytes(b"{")
    ran = cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "r")
    assert (ran.code, (tmp_path / "t.tar").exists()) == (1, False)
    assert "--skip-faulty" in ran.err
    ran = cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "r", "--skip-faulty", "--json")
    assert [row["identity"] for row in ran.document["identities"]] == [good.name]
    assert str(directory) in ran.err


# -- times that can be none ------------------------------------------------------------------------


@pytest.mark.parametrize("ms", [-5.0, 0.0, 1e-320, 1e308, None])
@pytest.mark.parametrize("side", ["ms", "default_ms"])
def test_impossible_times_are_no_gain(cli: Cli, tmp_path: Path, ms: object, side: str) -> None:
    """Receipts of earlier versions hold what a clock gone wrong has said; every figure survives."""
    path = receipt(
        put(tmp_path), winners=[tuned(), tuned(**{side: ms})], seconds={"tune": -3.0},
        tasks={"seen": 2, "tuned": 2},
    )  # fmt: skip
    for words in (["report", path, "--only", "gains"], ["report", path], ["explain", path],
                  ["show", path], ["stats", "--root", tmp_path]):  # fmt: skip
        ran = cli(*words)
        assert (ran.code, ran.err) == (0, ""), words
    gain = cli("report", path, "--json").document["over_default"]
    assert gain is not None
    assert 0 < gain < float("inf")
    if ms in (-5.0, 0.0, None):
        assert gain == 2.0


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_a_receipt_with_no_number_for_a_time(cli: Cli, tmp_path: Path, text: str) -> None:
    """It is JSON no longer, or a number that none can hold: one line, and not a crash."""
    directory = put(tmp_path)
    path = receipt(directory, winners=[tuned(default_ms=12345.5)])
    path.write_text(path.read_text().replace("12345.5", text))
    ran = cli("report", path, "--only", "gains")
    assert ran.code in (0, 1)
    assert "unexpected" not in ran.err
    assert "inf" not in ran.out


# -- streams ---------------------------------------------------------------------------------------


def command(*argv: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    words = [str(word) for word in (*COMMAND, *argv)]
    return subprocess.run(words, check=False, timeout=60, **options)


def test_an_archive_travels_through_a_pipe(cli: Cli, tmp_path: Path) -> None:
    """`pack -o - | unpack -`, and /dev/stdin and /dev/stdout; the bytes are those of a file."""
    put(tmp_path / "a")
    cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "a")
    whole = (tmp_path / "t.tar").read_bytes()
    for out in ("-", "/dev/stdout"):
        packed = command("pack", "-q", "-o", out, "--root", tmp_path / "a", capture_output=True)
        assert packed.returncode == 0
        assert packed.stdout.startswith(whole)
    packed = command("pack", "-o", "-", "--root", tmp_path / "a", capture_output=True)
    assert packed.stdout == whole
    assert b"sha256:" in packed.stderr
    digest = packed.stderr.split()[-1].decode()
    for number, source in enumerate(("-", "/dev/stdin")):
        there = tmp_path / str(number)
        with subprocess.Popen(["/bin/cat", str(tmp_path / "t.tar")], stdout=subprocess.PIPE) as cat:
            ran = command("unpack", source, "--digest", digest, "--root", there, stdin=cat.stdout,
                          capture_output=True)  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, b"")
        assert cli("verify", "--root", there).code == 0
    assert cli("pack", "-o", "-", "--json", "--root", tmp_path / "a").code == 2


def test_what_cannot_be_an_output(cli: Cli, tmp_path: Path) -> None:
    """A directory, a folder that is not there: one line, and no file beside it."""
    path = receipt(put(tmp_path / "r"))
    before = files_below(tmp_path)
    for out in (".", tmp_path, tmp_path / "no" / "t"):
        for words in (
            ["pack", "--root", tmp_path / "r", "-o", out],
            ["report", path, "--html", out],
        ):
            if words[0] == "report":
                pytest.importorskip("plotly", reason="the page is an extra")
            ran = cli(*words)
            assert ran.code == 1
            assert ran.err.startswith(f"warmup-plugin: {out}: ")
    assert files_below(tmp_path) == before


READERS = {
    "help": ["--help"], "ls": ["ls"], "where": ["where", "--arch", "sm100"], "verify": ["verify"],
    "show": ["show", "{}"], "report": ["report", "{}"], "explain": ["explain", "{}"],
    "config": ["config"], "stats": ["stats"], "status": ["status"], "diff": ["diff", "{}", "{}"],
    "doctor": ["doctor", "--quick"], "completion": ["completion", "bash"],
    "pack": ["pack", "-o", "{root}/t.tar"],
}  # fmt: skip


@pytest.mark.parametrize("argv", READERS.values(), ids=READERS)
def test_no_room_no_reader_no_stream(tmp_path: Path, argv: list[str]) -> None:
    """A full disk, a reader that went away, a closed stream: by every verb that prints."""
    directory = put(tmp_path / "r")
    receipt(directory)
    words = [word.format(directory.name[:12], root=tmp_path) for word in argv]
    environ = {**os.environ, "WARMUP_PLUGIN_CACHE_ROOT": str(tmp_path / "r")}
    with Path("/dev/full").open("wb") as full:
        ran = command(*words, stdout=full, stderr=subprocess.PIPE, env=environ)
    assert (ran.returncode, ran.stderr) == (
        1, b"warmup-plugin: standard output: No space left on device\n"
    )  # fmt: skip
    read, write = os.pipe()
    os.close(read)
    ran = command(*words, stdout=write, stderr=subprocess.PIPE, env=environ)
    os.close(write)
    assert (ran.returncode, ran.stderr) == (141, b"")
    script = 'exec "$@" >&-'
    closed = subprocess.run(
        ["/bin/bash", "-c", script, "-", *COMMAND, *words], stderr=subprocess.PIPE, check=False,
        timeout=60, env=environ,
    )  # fmt: skip
    assert (closed.returncode, closed.stderr) == (1, b"warmup-plugin: standard output is closed\n")


def test_a_pipe_gets_each_line_whole(tmp_path: Path) -> None:
    """Whoever greps for a path or a sentence finds it; a terminal's width is a terminal's."""
    path = receipt(put(tmp_path), warnings=["a warning " * 30])
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    ran = command("show", path, capture_output=True, env=environ)
    assert ("a warning " * 30).strip().encode() in ran.stdout


# -- words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "meant"),
    [
        (["lss"], "ls"), (["ls", "--jsn"], "--json"),
        (["prune", "--older-then", "1d"], "--older-than"),
    ],
)  # fmt: skip
def test_the_nearest_name_is_offered(cli: Cli, argv: list[str], meant: str) -> None:
    """With the usage of the verb, not of the whole command."""
    ran = cli(*argv)
    assert ran.code == 2
    assert f"did you mean {meant}?" in ran.err
    if len(argv) > 1:
        assert f"usage: warmup-plugin {argv[0]}" in ran.err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_verb_and_option(cli: Cli, shell: str) -> None:
    script = cli("completion", shell).out
    for module in VERBS:
        assert name_of(module) in script
    assert "skip-faulty" in script


def test_bash_completes(cli: Cli, tmp_path: Path) -> None:
    """By bash itself: verbs first, then the options of the verb."""
    (tmp_path / "script").write_text(cli("completion", "bash").out)
    program = """
    source "$1"
    COMP_WORDS=(warmup-plugin ver) COMP_CWORD=1; _warmup_plugin; echo "${COMPREPLY[*]}"
    COMP_WORDS=(warmup-plugin pack --sk) COMP_CWORD=2; _warmup_plugin; echo "${COMPREPLY[*]}"
    """
    ran = subprocess.run(
        ["/bin/bash", "-c", program, "-", str(tmp_path / "script")], capture_output=True, text=True,
        check=True, timeout=30,
    )  # fmt: skip
    assert ran.stdout == "verify\n--skip-faulty\n"


# -- settings --------------------------------------------------------------------------------------


def test_config_names_value_and_source(cli: Cli, tmp_path: Path) -> None:
    """Of every setting; a variable that is none is named with the one that was meant."""
    env = {"WARMUP_PLUGIN_MARGIN": "0.5", "WARMUP_PLUGIN_MOD": "off"}
    document = cli("config", "--json", "--root", tmp_path, **env).document
    assert document["settings"].keys() == Settings.__dataclass_fields__.keys()
    margin = {"value": 0.5, "source": "WARMUP_PLUGIN_MARGIN", "variable": "WARMUP_PLUGIN_MARGIN"}
    assert document["settings"]["margin"] == margin
    assert document["settings"]["mode"]["source"] == "default"
    assert document["unknown"] == {"WARMUP_PLUGIN_MOD": "WARMUP_PLUGIN_MODE"}
    ran = cli("config", "--set", "--root", tmp_path, **env)
    assert "is it WARMUP_PLUGIN_MODE?" in ran.err
    assert "margin" in ran.out
    assert "silence_s" not in ran.out
    found = cli("doctor", "--quick", "--json", "--root", tmp_path, **env).document["findings"]
    (row,) = (row for row in found if row["words"].startswith("WARMUP_PLUGIN_MOD:"))
    assert (row["state"], row["fix"]) == ("bad", "is it WARMUP_PLUGIN_MODE?")


@pytest.mark.multiprocess
def test_a_start_warns_of_a_variable_that_is_none(tmp_path: Path) -> None:
    """Every rank's receipt has it, once; the start goes on as without it."""
    env = {"WARMUP_PLUGIN_MOD": "off", "WARMUP_PLUGIN_LAYER": "/x"}
    for found in launch(EngineConfig(tp=2), root=tmp_path, env=env):
        told = [text for text in found.report.warnings if "no such setting" in text]
        near = ("LAYER (is it WARMUP_PLUGIN_LAYERS?)", "MOD (is it WARMUP_PLUGIN_MODE?)")
        assert told == [f"no such setting: {', '.join(f'WARMUP_PLUGIN_{each}' for each in near)}"]
        assert found.report.agreement == "certified"


def test_a_file_by_name_needs_no_home(cli: Cli, tmp_path: Path) -> None:
    """Where no cache root can be had, what is named by its path is still looked at."""
    directory = put(tmp_path)
    path, table = receipt(directory), directory / "rank_tp0_pp0_dp0.json"
    nowhere = {"HOME": None, "XDG_CACHE_HOME": None}
    for words in (["show", table], ["verify", table], ["report", path], ["explain", path],
                  ["diff", table, table], ["retry", directory], ["config"]):  # fmt: skip
        assert cli(*words, **nowhere).code == 0, words
    ran = cli("verify", "abc", **nowhere)
    assert (ran.code, "set WARMUP_PLUGIN_CACHE_ROOT" in ran.err) == (1, True)
    assert cli("ls", **nowhere).code == 1


def test_unknown_variables() -> None:
    """Only ours, and none of the known ones."""
    environ = {"WARMUP_PLUGIN_MODE": "on", "WARMUP_PLUGIN_QQQQ": "1", "VLLM_X": "", "HOME": "/"}
    assert unknown_variables(environ) == {"WARMUP_PLUGIN_QQQQ": ""}


# -- stats, diff, rm -------------------------------------------------------------------------------


def test_stats_sum_up_the_starts(cli: Cli, tmp_path: Path) -> None:
    """A warm start has saved what the last cold one of its identity took, where that is known."""
    one, other = put(tmp_path), put(tmp_path, identity(tp=4))
    cold: dict[str, Any] = {"tasks": {"seen": 3, "tuned": 3}, "seconds": {"tune": 1.0}}
    steps = [{"rank": 0, "steps": [["tune", 0.0, 7.0]]}, {"rank": 1, "steps": [["tune", 0.0, 9.0]]}]
    receipt(one, at=100.0, ranks=steps, **cold)
    receipt(one, at=200.0, seconds={"open": 0.5})
    receipt(one, at=300.0, seconds={"open": 0.5})
    receipt(other, at=150.0, seconds={"open": 0.5})
    receipt(other, at=160.0, read=[{"path": "/t", "entries": 0, "reason": "cut"}], **cold)
    receipt(other, at=170.0, agreement="none", **cold)
    receipt(one, at=200.0, rank=1)  # another node's, of a start that is counted
    found = cli("stats", "--root", tmp_path, "--json").document
    assert (found["starts"], found["warm"], found["unread"]) == (6, 3, 0)
    assert found["misses"] == {"no table": 1, "file": 1, "not shared": 1}
    assert (found["saved_seconds"], found["saving_unknown"]) == (18.0, 1)
    assert (found["tuned_seconds"], found["warm_seconds"]) == (11.0, 1.5)
    text = cli("stats", "--root", tmp_path).out
    assert "3 (50%)" in text
    assert "18.0 s of tuning; of 1 warm start it is not known any more" in text
    assert cli("stats", "--root", tmp_path / "none").code == 0


def test_diff_tells_winners_and_times(cli: Cli, tmp_path: Path) -> None:
    """Of one identity too, of which `explain` can only say that its factors are equal."""
    one, other = put(tmp_path / "a", tactic=7), put(tmp_path / "b", tactic=9, keys=2)
    for words in ((one, other), (one / "rank_tp0_pp0_dp0.json", other)):
        ran = cli("diff", *words, "--json")
        assert ran.code == 1
        assert (ran.document["differ"], ran.document["same"]) == (3, 0)
    rows = {row["shapes"]: (row["a"], row["b"], row["a_ms"]) for row in ran.document["entries"]}
    assert rows["1x64 64x64"] == ("Runner 7", "Runner 9", 0.5)
    assert rows["4x64 64x64"] == ("Runner 7", None, 0.5)
    default = put(tmp_path / "c", tactic=-1)
    rows = cli("diff", one, default, "--json").document["entries"]
    assert {(row["b"], row["a_ms"], row["b_ms"]) for row in rows} == {("Runner default", 0.5, 1.0)}
    assert "Runner 7 -> Runner 9" in cli("diff", one, other).out
    assert "3 winners differ in their tables" in cli("explain", one, other).out
    assert cli("diff", one, one).code == 0
    assert "they share a table" in cli("explain", one, one).out
    assert cli("diff", one, tmp_path).code == 1


def test_unpack_keeps_what_is_there_unless_told(cli: Cli, tmp_path: Path) -> None:
    """As its help says: of another table only what is missing, whatever its generation."""
    there = put(tmp_path / "there", tactic=7, keys=2)
    for _ in range(2):  # generations pass in the place that the archive is from
        put(tmp_path / "made", tactic=8)
        put(tmp_path / "made", tactic=9)
    cli("pack", "-o", tmp_path / "t.tar", "--root", tmp_path / "made")

    def winners() -> list[str]:
        rows = cli("diff", there, there, "--all", "--json").document["entries"]
        return [row["a"] for row in rows]

    ran = cli("unpack", tmp_path / "t.tar", "--root", tmp_path / "there")
    assert "merged; in 2 tasks what was there is kept" in ran.out
    assert winners() == ["Runner 7", "Runner 7", "Runner 9"]
    assert cli("verify", "--root", tmp_path / "there", "--json").document["tables"][0]["complete"]
    assert "2 tasks" in cli("unpack", tmp_path / "t.tar", "--root", tmp_path / "there").out
    cli("unpack", tmp_path / "t.tar", "--root", tmp_path / "there", "--replace")
    assert winners() == ["Runner 9", "Runner 9", "Runner 9"]
    assert cli("verify", "--root", tmp_path / "there").code == 0


def test_rm_takes_what_is_named(cli: Cli, tmp_path: Path) -> None:
    """No more, and nothing in use; layers stay."""
    gone, kept = put(tmp_path / "r"), put(tmp_path / "r", identity(tp=4))
    layered = put(tmp_path / "layer", identity(tp=8))
    place = ["--root", tmp_path / "r"]
    layers = {"WARMUP_PLUGIN_LAYERS": str(tmp_path / "layer")}
    assert "would go: 1 identity" in cli("rm", gone.name[:6], "--dry-run", *place).out
    assert gone.exists()
    assert cli("rm", gone.name[:6], *place).code == 0
    assert not gone.exists()
    assert cli("rm", layered.name[:6], *place, **layers).code == 1
    assert layered.exists()
    from warmup_plugin.cache.lease import hold

    with hold(kept):
        ran = cli("rm", kept.name[:6], *place)
        busy = cli("status", *place, "--json").document["starts"]
    assert (ran.code, "in use by" in ran.out, kept.exists()) == (1, True, True)
    assert [row["identity"] for row in busy] == [kept.name]
    assert cli("status", *place).out == "  Nobody tunes here now.\n"


def test_import_says_when_nobody_here_will_look(cli: Cli, tmp_path: Path) -> None:
    """A table of a GPU that this machine lacks, and one of another FlashInfer."""
    stamp = {"flashinfer_version": VERSION, "gpu": "NVIDIA B200"}
    entry = ["('op', 'R', ((1,),), ())", ["R", 1]]
    (tmp_path / "t.json").write_text(json.dumps({"_metadata": stamp, entry[0]: entry[1]}))
    ran = cli("import", tmp_path / "t.json", "--root", tmp_path / "r", "--arch", "cpu",
              PATH="/nonexistent", width=200)  # fmt: skip
    assert ran.code == 0
    assert "no start on this machine will take it up: tuned on NVIDIA B200" in ran.out
    assert "--arch sm<digits>" in ran.out
    other = {"_metadata": {"flashinfer_version": "0.6.13", "gpu": "unknown"}, entry[0]: entry[1]}
    (tmp_path / "u.json").write_text(json.dumps(other))
    ran = cli("import", tmp_path / "u.json", "--root", tmp_path / "r", "--arch", "cpu", width=200)
    assert f"of FlashInfer 0.6.13, and {VERSION} is installed here" in ran.out


@pytest.mark.parametrize("text", ["1GB", "1gb", "1Gi", "1GiB", "1 GB", "2kb", "5TiB"])
def test_sizes_as_people_write_them(cli: Cli, tmp_path: Path, text: str) -> None:
    age(put(tmp_path), 1)
    assert cli("prune", "--max-size", text, "--dry-run", "--root", tmp_path).code == 0


@pytest.mark.parametrize("text", ["1", "GB", "1XB", "-1GB", "1.5.2GB"])
def test_what_is_no_size(cli: Cli, tmp_path: Path, text: str) -> None:
    ran = cli("prune", f"--max-size={text}", "--root", tmp_path)
    assert (ran.code, "must be a number with kB" in ran.err) == (2, True)
