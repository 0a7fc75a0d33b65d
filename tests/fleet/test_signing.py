# SPDX-License-Identifier: Apache-2.0
"""Bundles that are signed, unsigned, or signed by a stranger: which are used, and what is said."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.fleet.broken_fleets import make_key
from tests.fleet.tables import LIMIT, WHOSE, write
from warmup_plugin.cli import main
from warmup_plugin.fleet.objects import FleetError, Objects
from warmup_plugin.fleet.pointer import Pointer, Signature, parse_pointer, render_pointer
from warmup_plugin.fleet.pull import latest, pull
from warmup_plugin.fleet.push import push
from warmup_plugin.fleet.signing import Keys, signed
from warmup_plugin.runtime.safe_json import Miss

if TYPE_CHECKING:
    from tests.fleet.conftest import Started


def pointer_of(objects: Objects) -> Pointer:
    seen = objects.pointer(WHOSE)
    assert seen is not None
    found = parse_pointer(seen.data, WHOSE.identity)
    assert isinstance(found, Pointer)
    return found


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    """A folder in which one host has published, unsigned."""
    found = Objects(f"file://{tmp_path}/shared", "given", timeout_s=5, writes=True)
    write(tmp_path / "a", ["x"])
    assert push(found, WHOSE, tmp_path / "a", LIMIT).state == "published"
    return found


def unsigned(pointer: Pointer, _path: str) -> Pointer:
    return pointer


def by_the_key(pointer: Pointer, path: str) -> Pointer:
    return signed(pointer, WHOSE, path)


def of_another_bundle(pointer: Pointer, path: str) -> Pointer:
    other = signed(msgspec.structs.replace(pointer, bundle="0" * 64), WHOSE, path)
    return msgspec.structs.replace(pointer, signatures=other.signatures)


def of_another_identity(pointer: Pointer, path: str) -> Pointer:
    other = signed(pointer, WHOSE._replace(identity="0" * 64), path)
    return msgspec.structs.replace(pointer, signatures=other.signatures)


def garbled(pointer: Pointer, path: str) -> Pointer:
    (one,) = signed(pointer, WHOSE, path).signatures
    return msgspec.structs.replace(pointer, signatures=(Signature(one.key, "?!"),))


def short(pointer: Pointer, path: str) -> Pointer:
    (one,) = signed(pointer, WHOSE, path).signatures
    value = base64.b64encode(base64.b64decode(one.value)[:-1]).decode()
    return msgspec.structs.replace(pointer, signatures=(Signature(one.key, value),))


@pytest.mark.parametrize(
    ("change", "is_used"),
    [
        (unsigned, False), (by_the_key, True), (of_another_bundle, False),
        (of_another_identity, False), (garbled, False), (short, False),
    ],
)  # fmt: skip
def test_a_bundle_is_used_if_a_key_that_is_allowed_has_signed_it(
    objects: Objects,
    tmp_path: Path,
    change: Callable[[Pointer, str], Pointer],
    is_used: bool,  # noqa: FBT001  # a table
) -> None:
    """This very bundle, for this very identity."""
    private, public = make_key(tmp_path, "mine")
    pointer = change(pointer_of(objects), private)
    assert objects.swap(WHOSE, render_pointer(pointer), objects.pointer(WHOSE))
    found = pull(objects, WHOSE, tmp_path / "p", LIMIT, Keys([public]).refuse)
    assert (found.state == "fetched") is is_used
    assert pull(objects, WHOSE, tmp_path / "q", LIMIT).state == "fetched"
    if not is_used:
        assert "signed" in found.reason
        assert not (tmp_path / "p").exists()


def test_a_strangers_signature_is_none(objects: Objects, tmp_path: Path) -> None:
    """And the one that is allowed counts beside it."""
    private, public = make_key(tmp_path, "mine")
    stranger, _ = make_key(tmp_path, "stranger")
    keys = Keys([public])
    once = signed(pointer_of(objects), WHOSE, stranger)
    assert "signed by none of the keys allowed" in keys.refuse(once, WHOSE)
    both = signed(once, WHOSE, private)
    assert len(both.signatures) == 2
    assert keys.refuse(both, WHOSE) == ""
    assert len(signed(both, WHOSE, private).signatures) == 2


def test_who_signs_takes_over_nothing_that_nobody_allowed_has_signed(
    objects: Objects, tmp_path: Path
) -> None:
    """A signature is for all of a bundle: a stranger's winners would come under it."""
    private, public = make_key(tmp_path, "mine")
    write(tmp_path / "b", ["y"])
    keys = Keys([public])
    done = push(
        objects, WHOSE, tmp_path / "b", LIMIT,
        refuse=keys.refuse, sign=lambda pointer, whose: signed(pointer, whose, private),
    )  # fmt: skip
    assert (done.state, "is not signed" in done.reason) == ("published", True)
    found = latest(objects, WHOSE, LIMIT, keys.refuse)
    assert not isinstance(found, Miss)
    assert set(found[1].manifest.tasks) == {"y"}


@pytest.mark.parametrize("content", [b"", b"garbage", None, "private"])
def test_a_list_of_keys_that_cannot_be_read_allows_nothing(
    tmp_path: Path, content: bytes | str | None
) -> None:
    """The file and the rule are named."""
    path = tmp_path / "key.pub"
    if content == "private":
        path.write_bytes(Path(make_key(tmp_path, "mine")[0]).read_bytes())
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(FleetError, match=r"key\.pub: (must be an ed25519 public key|No such file)"):
        Keys([str(path)])


@pytest.mark.multiprocess
def test_a_start_uses_what_is_signed(
    start: Callable[..., Started], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Unsigned it tunes by itself and says why; once somebody has looked and signed it is warm."""
    private, public = make_key(tmp_path, "mine")
    _, others = make_key(tmp_path, "others")
    (tmp_path / "shared").mkdir()
    env = {"WARMUP_PLUGIN_FLEET": f"file://{tmp_path}/shared"}
    start(tmp_path / "a", {**env, "WARMUP_PLUGIN_FLEET_ROLE": "write"})
    keys = {**env, "WARMUP_PLUGIN_FLEET_KEYS": f"{others}{os.pathsep}{public}"}
    cold = start(tmp_path / "b", keys)
    assert (cold.fleet.state, cold.timed_of_tasks > 0) == ("refused", True)
    assert "is not signed" in cold.fleet.reason

    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["fleet", "sign"]) == 2
    assert "no key to sign with" in capsys.readouterr().err
    assert main(["fleet", "sign", "--key", private, "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in answer["identities"]] == ["signed"]

    warm = start(tmp_path / "c", keys)
    assert (warm.fleet.state, warm.timed_of_tasks) == ("fetched", 0)
    stranger = start(tmp_path / "c", {**env, "WARMUP_PLUGIN_FLEET_KEYS": others})
    assert stranger.fleet.state == "refused"
    assert not stranger.fleet.directory
