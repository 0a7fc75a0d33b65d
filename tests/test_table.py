# SPDX-License-Identifier: Apache-2.0
"""FlashInfer's table: what is read, what is refused and why, and that FlashInfer reads ours."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from enum import IntEnum
from pathlib import Path
from typing import Any

import pytest

from warmup_plugin.cache.table import Entry, Table, canonical_tactic, parse_table, render_table
from warmup_plugin.runtime.safe_json import Miss, digest

LIMIT = 1 << 20
STAMP = {"flashinfer_version": "0.7.2.post1", "cudnn_version": "91400", "gpu": "NVIDIA H200"}
POLICY = ("cuda_graph_profile_replays", None, "l2_cache_policy", "cold")
KEY = "('fp4_gemm', 'CutlassRunner', ((16, 4096), (4096, 64), (0,)), (True, 'torch.bfloat16'))"
TABLE = Table(
    STAMP,
    {
        KEY: Entry("CutlassRunner", 7),
        "b": Entry("CuteDslRunner", (128, (64, (1, -1), "swap"), True), POLICY),
        "a": Entry("Runner", -1, POLICY),
        "größe\n": Entry("Läufer😀", None),
        "c": Entry("R", (), ()),
        "d": Entry("R", 2.5),
    },
    {"mega_moe": {"GPU-1": {"knobs": [1, {"x": None}]}}},
)


def document(**entries: Any) -> bytes:
    return json.dumps({"_metadata": STAMP, **entries}).encode()


def stamped(stamp: Any) -> bytes:
    return json.dumps({"_metadata": stamp, "k": ["R", 1]}).encode()


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


BRACKETS = b"[" * 100_000
UNREADABLE = {
    "empty": (b"", "truncated"),
    "blank": (b"  \n", "truncated"),
    "truncated": (render_table(TABLE)[:-40], "truncated"),
    "list": (b'[["R", 1]]', "object"),
    "string": (b'"table"', "object"),
    "null": (b"null", "object"),
    "number": (b"7", "object"),
    "two documents": (document() + document(), "trailing"),
    "pickle": (b"\x80\x04}\x94.", "invalid character"),
    "zeroes": (bytes(4096), "invalid character"),
    "not UTF-8": (document(k=["R", 1]).replace(b'"R"', b'"\xff"'), "utf-8"),
    "UTF-16": (document().decode().encode("utf-16"), "invalid character"),
    "byte order mark": (b"\xef\xbb\xbf" + document(), "invalid character"),
    "null entry": (document(k=None), "k: "),
    "entry a string": (document(k="R"), "k: must be an entry [runner, tactic] or "),
    "entry an object": (document(k={"runner": "R"}), "k: must be an entry [runner, tactic] or "),
    "entry a number": (document(k=1), "k: "),
    "entry empty": (document(k=[]), "k: "),
    "entry without tactic": (document(k=["R"]), "k: "),
    "four elements, no policy": (document(k=["R", 1, None, {}]), "k: "),
    "five elements, no policy": (document(k=["R", 1, None, {}, 5]), "k: "),
    "fourth element 33 deep": (document(k=["R", 1, [], nested(33)]), "nested more than 32 deep"),
    "fifth element 33 deep": (document(k=["R", 1, [], 4, nested(33)]), "nested more than 32"),
    "100 000 lists in a fourth element": (
        b'{"k": ["R", 1, [], ' + BRACKETS + b"]" * 100_000 + b"]}",
        "nested more than 32 deep",
    ),
    "runner a number": (document(k=[0, 1]), "k: "),
    "runner null": (document(k=[None, 1]), "k: "),
    "tactic an object": (document(k=["R", {"tile": 1}]), "k: "),
    "tactic NaN": (document(k=["R", float("nan")]), "invalid character"),
    "tactic infinite": (b'{"k": ["R", 1e999]}', "k: "),
    "policy null": (document(k=["R", 1, None]), "k: "),
    "policy a string": (document(k=["R", 1, "hot"]), "k: "),
    "only one of many": (document(a=["R", 1], b=["R", 1], k=["R"], z=["R", 1]), "k: "),
    "tactic 33 deep": (document(k=["R", nested(33)]), "k: "),
    "records 33 deep": (document(_records={"n": nested(33)}), "_records: must be an object nested"),
    "records a list": (document(_records=["R", 1]), "_records: must be an object"),
    "unknown private key": (document(_future=["R", 1]), "_future: must be an entry"),
    "stamp null": (stamped(None), "_metadata: "),
    "stamp a list": (stamped(["R", 1]), "_metadata: must be an object of strings"),
    "stamp a string": (stamped("0.7.2"), "_metadata: must be an object of strings"),
    "stamp with a number": (stamped({**STAMP, "sms": 132}), "_metadata.sms: must be a string"),
    "stamp nested": (stamped({**STAMP, "gpu": {"name": "H"}}), "_metadata.gpu: must be a string"),
    "100 000 lists": (BRACKETS, "object"),
    "100 000 lists in an entry": (b'{"k": ["R", ' + BRACKETS, "nested more than 32 deep"),
    "100 000 lists, closed": (
        b'{"k": ["R", ' + BRACKETS + b"]" * 100_000 + b"]}",
        "nested more than 32 deep",
    ),
    "100 000 objects": (b'{"a":' * 100_000, "nested more than 32 deep"),
    "100 000 lists in records": (b'{"_records": {"n": ' + BRACKETS, "nested more than 32 deep"),
}
FOREIGN = {
    "no stamp": (b'{"k": ["R", 1]}', "no stamp"),
    "no stamp, no entries": (b"{}", "no stamp"),
    "empty stamp": (stamped({}), "no stamp"),
    "stamp unknown": (stamped({"gpu": "unknown", "cuda_version": None}), "no stamp"),
    "wildcard": (stamped({**STAMP, "gpu": "*"}), '_metadata.gpu is "*"'),
    "all wildcards": (stamped(dict.fromkeys(STAMP, "*")), '_metadata.flashinfer_version is "*"'),
}


@pytest.mark.parametrize(("data", "words"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_unreadable(data: bytes, words: str) -> None:
    """A miss that names the key, where there is one, and the rule."""
    miss = parse_table(data, limit=LIMIT)
    assert isinstance(miss, Miss)
    assert miss.kind == "unreadable"
    assert words in miss.reason


@pytest.mark.parametrize(("data", "words"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign(data: bytes, words: str) -> None:
    """Nobody knows where it was tuned, or it claims to fit everywhere: never used blindly."""
    miss = parse_table(data, limit=LIMIT)
    assert isinstance(miss, Miss)
    assert miss.kind == "foreign"
    assert words in miss.reason


@pytest.mark.multiprocess
def test_deep_nesting_under_a_raised_recursion_limit() -> None:
    """A host may raise Python's limit; brackets must not reach the end of the C stack then."""
    script = """
import sys
sys.setrecursionlimit(10**6)
from warmup_plugin.cache.table import parse_table, render_table, Table, Entry
deep = b"[" * 300_000
for data in (deep, b'{"a":' * 300_000, b'{"_records": {"n": ' + deep, b'{"k": ["R", ' + deep,
             b'{"_records": {"\\\\"]": ' + deep + b"]" * 300_000 + b"}}",
             b'{"k": "' + b'\\\\"' * 500_000):
    print(parse_table(data, limit=1 << 30).kind)
table = Table({"gpu": "H[[{"}, {"('op', [[[{, " + '"' + "\\\\": Entry("R", ((1,), 2))})
print(parse_table(render_table(table), limit=1 << 30) == table)
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["unreadable"] * 6 + ["True"]


def test_too_large() -> None:
    """The limit is on bytes, before anything is decoded."""
    data = render_table(TABLE)
    assert parse_table(data, limit=len(data)) == TABLE
    miss = parse_table(data, limit=len(data) - 1)
    assert isinstance(miss, Miss)
    assert miss.kind == "too_large"


def test_reads_back_what_it_writes() -> None:
    """Types, nesting, policies, records and all letters."""
    table = parse_table(render_table(TABLE), limit=LIMIT)
    assert table == TABLE
    assert isinstance(table, Table)
    assert [repr(e) for e in table.entries.values()] == [
        repr(TABLE.entries[key]) for key in sorted(TABLE.entries)
    ]


def test_equal_tables_give_equal_bytes() -> None:
    """Whatever the order they were filled in: the digest is that of the content."""
    entries = dict(sorted(TABLE.entries.items(), reverse=True))
    other = Table(dict(reversed(STAMP.items())), entries, TABLE.records)
    assert render_table(other) == render_table(TABLE)
    assert digest(render_table(other)) == digest(render_table(TABLE))


def test_layout() -> None:
    """The stamp first, then one line per entry, in ASCII."""
    data = render_table(TABLE)
    lines = data.decode("ascii").splitlines()
    assert lines[1].startswith('"_metadata": {"cudnn_version":"91400",')
    assert lines[2].startswith('"_records": ')
    assert len(lines) == 4 + len(TABLE.entries)
    assert json.loads(data)[KEY] == ["CutlassRunner", 7]


def test_no_damage_raises() -> None:
    """Cut short, or with any one byte replaced, it is a table or a miss."""
    data = render_table(TABLE)
    for cut in range(0, len(data) - 1, 3):
        assert isinstance(parse_table(data[:cut], limit=LIMIT), Miss)
        for byte in (b"\x00", b"\xff", b'"', b"[", b"}", b"\\", b"-"):
            changed = data[:cut] + byte + data[cut + 1 :]
            assert isinstance(parse_table(changed, limit=LIMIT), Table | Miss)


#: As FlashInfer 0.7.4 saves it: how the winner was chosen.
SELECTION = {"time_ms": 0.5, "runner_up_ms": 0.6, "margin": 0.1, "candidates": 4}


@pytest.mark.parametrize(
    "more",
    [[SELECTION], [None], [SELECTION, {"größe": [1, {"x": None}]}, "y", 1e-9], [[], {}]],
    ids=["four elements", "null", "six elements", "empty ones"],
)
def test_what_follows_the_policy_is_kept(more: list[Any]) -> None:
    """Whatever it is, on one line, through writing and reading, with one form for equal content."""
    entry = ["R", [1, 2], ["l2", 1], *more]
    found = parse_table(document(k=entry, other=["R", 1, []]), limit=LIMIT)
    assert isinstance(found, Table)
    assert found.entries["k"].winner == ("R", (1, 2), ("l2", 1))
    assert found.entries["other"] == Entry("R", 1, ())
    written = render_table(found)
    assert json.loads(written)["k"] == entry
    assert len(written.splitlines()) == 3 + len(found.entries)
    indented = json.dumps(json.loads(document(k=entry, other=["R", 1, []])), indent=2).encode()
    for again in (written, indented):
        assert parse_table(again, limit=LIMIT) == found
    hash(found.entries["k"])


def test_what_flashinfer_adds_is_left_out() -> None:
    """Its generation is of its own writers; an indeterminate field is no field."""
    data = document(k=["R", 1], _generation="abc").replace(b'"91400"', b"null")
    table = parse_table(data, limit=LIMIT)
    assert isinstance(table, Table)
    assert table.entries == {"k": Entry("R", 1)}
    assert table.stamp == {name: STAMP[name] for name in ("flashinfer_version", "gpu")}


class Tile(IntEnum):
    WIDE = 128


class Scalar:
    """As NumPy's and torch's."""

    shape = ()

    def item(self) -> int:
        return 5

    def __repr__(self) -> str:
        return "Scalar(5)"  # in a test's name, which must be the same in every process


@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        (3, 3),
        (-1, -1),
        (True, True),
        (None, None),
        ("auto", "auto"),
        (0.5, 0.5),
        ([1, [2, [3]]], (1, (2, (3,)))),
        ((1, (2,)), (1, (2,))),
        (array("q", [1, 2]), (1, 2)),
        (range(2), (0, 1)),
        (Tile.WIDE, 128),
        ([Scalar(), Tile.WIDE], (5, 128)),
    ],
    ids=repr,
)
def test_canonical_tactic(tactic: object, expected: object) -> None:
    """As it comes back from a table, in plain types."""
    found = canonical_tactic(tactic)
    assert repr(found) == repr(expected)
    table = parse_table(render_table(Table(STAMP, {"k": Entry("R", found)})), limit=LIMIT)
    assert isinstance(table, Table)
    assert repr(table.entries["k"].tactic) == repr(expected)


ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("tactic", "error"),
    [
        ({"tile": 1}, TypeError),
        ({1, 2}, TypeError),
        (b"\x00", TypeError),
        (object(), TypeError),
        ([1, {"x": 1}], TypeError),
        (float("nan"), ValueError),
        ([float("inf")], ValueError),
        (ENDLESS, ValueError),
    ],
    ids=["dict", "set", "bytes", "object", "inner dict", "nan", "inf", "endless"],
)
def test_what_no_table_can_hold(tactic: object, error: type[Exception]) -> None:
    """Refused where it arises: in a table it would come back as another tactic."""
    with pytest.raises(error, match="a tactic "):
        canonical_tactic(tactic)


@pytest.mark.multiprocess
def test_flashinfer_reads_ours_and_we_read_its(tmp_path: Path) -> None:
    """The real `load_configs` and `save_configs`, in a process without this package."""
    script = """
import json, sys
from flashinfer.autotuner import AutoTuner
import flashinfer.autotuner.autotuner as module
module._collect_metadata = lambda: json.loads(sys.argv[3])
tuner = AutoTuner.get()
assert tuner.load_configs(sys.argv[1])
tuner.save_configs(sys.argv[2])
loaded = {k: [*e, tuner._file_config_policies.get(k)] for k, e in tuner._file_configs.items()}
print(json.dumps(sorted(loaded.items())))
"""
    ours, its = tmp_path / "ours.json", tmp_path / "its.json"
    ours.write_bytes(render_table(TABLE))
    command = [sys.executable, "-c", script, str(ours), str(its), json.dumps(STAMP)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    expected = {k: [e.runner, e.tactic, e.policy] for k, e in TABLE.entries.items()}
    assert json.loads(done.stdout.splitlines()[-1]) == json.loads(
        json.dumps(sorted(expected.items()))
    )
    assert parse_table(its.read_bytes(), limit=LIMIT) == TABLE
