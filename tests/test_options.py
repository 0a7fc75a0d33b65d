# SPDX-License-Identifier: Apache-2.0
"""A slip in what a runner gives is told at once, with argument, value and rule; also on two ranks.

Nothing is asked of FlashInfer here: every case ends before a session opens.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import warmup_plugin
from warmup_plugin import Identity, RankInfo, Settings, session, warm_up
from warmup_plugin.engines.embedded import EngineConfig, launch
from warmup_plugin.errors import RuleError, SessionError, SettingError
from warmup_plugin.steps.options import DROPPED_IN, FORMER, Options, check_forward

if TYPE_CHECKING:
    from warmup_plugin.engines.embedded.worker import Engine

IDENTITY = Identity.of(model="m", dtype="float32")


def no_forward() -> None:
    pytest.fail("the forward ran")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("identity", "x", "an Identity"),
        ("identity", {}, "an Identity"),
        ("ranks", 0, "a RankInfo"),
        ("ranks", {}, "a RankInfo"),
        ("group", -100, "a process group of which this rank is a member"),
        ("settings", {}, "a Settings"),
        ("cache_root", 3, "a path"),
        ("cache_root", "", "a path"),
        ("cache_root", "tables", "an absolute path"),
        ("cache_root", Path("~/tables"), "an absolute path"),
        ("engine_cache_root", 3, "a path"),
        ("extra_tables", "/tmp", "paths of tables"),  # noqa: S108  # a value that is refused
        ("ops", {}, "a KnownOps"),
        ("tuning_context", "autotune", "a function"),
        ("engine", "mine", "an EngineInfo, or a pair of texts"),
        ("engine", ("mine", 1), "an EngineInfo, or a pair of texts"),
        ("engine", ("", "1"), "an EngineInfo, or a pair of texts"),
        ("progress", "bar", "a function"),
        ("keep_existing", "no", "True or False"),
        ("require_sharing", 1, "True or False"),
        ("may_keep_step", "yes", "True or False"),
    ],
)
def test_what_an_argument_must_be(name: str, value: Any, rule: str) -> None:
    """By the function and by the context manager alike."""
    given: dict[str, Any] = {"identity": IDENTITY, name: value}
    with pytest.raises(RuleError) as raised:
        warm_up(no_forward, **given)
    assert (raised.value.name, raised.value.rule.startswith(rule)) == (name, True)
    assert raised.value.value in (value, str(value))
    with pytest.raises(RuleError, match=f"^{name} is ") as again, session(**given):
        no_forward()
    assert str(again.value) == str(raised.value)


def test_a_forward_is_a_function() -> None:
    with pytest.raises(RuleError, match=r"^forward is 3: must be a function without arguments$"):
        warm_up(3, identity=IDENTITY)  # type: ignore[arg-type]  # which is the point


async def coroutine() -> None:
    no_forward()


def generator() -> Iterator[None]:
    no_forward()
    yield


@pytest.mark.parametrize(
    ("forward", "rule"),
    [
        (lambda n: n, r"a function without arguments \(missing a required argument: 'n'\)"),
        (coroutine, "a function without arguments that runs when called, not a coroutine"),
        (generator, "a function without arguments that runs when called, not a coroutine"),
    ],
)
def test_a_forward_is_called_without_arguments(forward: Any, rule: str) -> None:
    """Refused on the rank that passes it, before any rank waits; the error has its name."""
    with pytest.raises(RuleError, match=f"must be {rule}") as raised:
        warm_up(forward, identity=IDENTITY)
    assert raised.value.value == forward.__qualname__


class Called:
    """A runner whose instance is the forward, as an engine may have it."""

    def __call__(self, *, tokens: int = 1) -> None:
        del tokens


@pytest.mark.parametrize("forward", [Called(), partial(print, end=""), dict, breakpoint])
def test_a_forward_may_be_anything_that_is_called(forward: Any) -> None:
    """Also one that has defaults, and one in C that does not tell its arguments."""
    check_forward(forward)


def test_ranks_of_a_job_that_has_not_begun() -> None:
    """Said at once, with what to do, and not when the group is looked for."""
    with pytest.raises(SessionError, match=r"call torch\.distributed\.init_process_group first$"):
        warm_up(no_forward, identity=IDENTITY, ranks=RankInfo(rank=1, world_size=2))


def test_a_path_may_be_a_text(tmp_path: Path) -> None:
    """As everywhere in Python; so may a setting's."""
    options = Options.of(
        {
            "identity": IDENTITY,
            "cache_root": str(tmp_path),
            "engine_cache_root": os.fspath(tmp_path),
        }
    )
    assert (options.cache_root, options.engine_cache_root) == (tmp_path, tmp_path)
    settings = Settings(cache_root=str(tmp_path), layers=[str(tmp_path)])  # type: ignore[arg-type]  # which is the point
    assert (settings.cache_root, settings.layers) == (tmp_path, (tmp_path,))
    with pytest.raises(SettingError, match="must be an absolute path"):
        Settings(cache_root="tables")  # type: ignore[arg-type]  # as above


def test_an_engines_own_root_stops_no_start() -> None:
    """It comes from a variable of the user's, not from the code: memory only, with a warning."""
    assert Options.of(
        {"identity": IDENTITY, "engine_cache_root": "tables"}
    ).engine_cache_root == Path("tables")


FORMER_VALUES: dict[str, Any] = {
    "root": "/tables", "engine_root": "/engine", "others": [Path("/other.json")],
    "keep_loaded": True, "must_share": True,
}  # fmt: skip


@pytest.mark.parametrize("former", FORMER)
def test_a_former_name_of_an_argument_is_taken(former: str) -> None:
    """With a warning that names the name of today and the release, at the caller's own line."""
    name, value = FORMER[former], FORMER_VALUES[former]
    off: dict[str, Any] = {"identity": IDENTITY, "settings": Settings.from_env({}, mode="off")}
    said = (
        f"^the argument '{former}' of {{}} is now called '{name}'; "
        f"warmup-plugin {DROPPED_IN} drops the former name$"
    )
    with pytest.warns(DeprecationWarning, match=said.format(r"warm_up\(\)")) as one:
        warm_up(lambda: None, **off, **{former: value})
    with (
        pytest.warns(DeprecationWarning, match=said.format(r"session\(\)")) as two,
        session(**off, **{former: value}),
    ):
        pass
    assert [warning.filename for warning in (*one, *two)] == [__file__, __file__]
    with pytest.warns(DeprecationWarning, match=former):
        old = Options.of({"identity": IDENTITY, "former": {former: value}})
    new = Options.of({"identity": IDENTITY, name: value})
    assert msgspec.structs.replace(old, settings=new.settings) == new


def test_the_former_names_are_those_of_this_release() -> None:
    """Once the release that drops them is here, this test asks for their removal."""
    release = tuple(int(part) for part in warmup_plugin.__version__.split(".")[:2])
    assert release < tuple(int(part) for part in DROPPED_IN.split(".")[:2])


@pytest.mark.parametrize("function", [warm_up, session], ids=["warm_up", "session"])
def test_an_unknown_argument_is_named_with_the_nearest(function: Any) -> None:
    first = (no_forward,) if function is warm_up else ()

    def call(**given: Any) -> None:
        found = function(*first, identity=IDENTITY, **given)
        if function is session:
            found.__enter__()

    name = re.escape(f"{function.__name__}() got an unexpected keyword argument ")
    with pytest.raises(TypeError, match=f"^{name}'cache_rot'; did you mean 'cache_root'\\?$"):
        call(cache_rot="/x")
    with pytest.raises(TypeError, match=f"^{name}'zzz'$"):
        call(zzz=1)
    with pytest.raises(TypeError, match=r"got both 'cache_root' and its former name 'root'$"):
        call(cache_root="/x", root="/y")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("rank", "0", "must be a whole number"),
        ("tp_size", 1.5, "must be a whole number"),
        ("node", 3, "must be a text"),
    ],
)
def test_a_coordinate_is_a_number(name: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={value!r}: {rule}"):
        RankInfo(**{name: value})


def forgotten(engine: Engine) -> str:
    """Warm up on a rank of two and say neither where it stands nor with whom."""
    try:
        warm_up(engine.forward, identity=engine.identity(), cache_root=engine.root)
    except SessionError as error:
        return str(error)
    return "it warmed up"


def on_purpose(engine: Engine) -> str:
    """The same, said to be alone: a replica that shares nothing with the others of its group."""
    report = warm_up(
        lambda: None, identity=engine.identity(), cache_root=engine.root, ranks=RankInfo()
    )
    return f"it warmed up alone, {report.world_size} rank"


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("forgotten", "torch.distributed has 2 ranks here, and warm_up got neither ranks="),
        ("on_purpose", "it warmed up alone, 1 rank"),
    ],
)
def test_a_rank_of_a_job_is_not_taken_for_alone(script: str, said: str, cache_root: Path) -> None:
    """Each would be certified by itself, with tactics that the other does not serve."""
    found = launch(
        EngineConfig(tp=2), root=cache_root, script=f"{__file__}:{script}", timeout_s=60.0
    )
    assert [each.startswith(said) for each in found] == [True, True], found
