# SPDX-License-Identifier: Apache-2.0
"""The installed FlashInfer: every private name of it that this package uses, and what it can do.

Owns the only ``import flashinfer`` and the only places where one of its private names is spelled.
`probe` asks for each name before anything is used and tries how file keys behave on a tuner of its
own, so a release that moved something is reported, by name, and never half used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import itertools
import json
import logging
import os
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flashinfer
import flashinfer.autotuner as fi
import msgspec
import torch

from warmup_plugin.cache.stamps import FINGERPRINT, PACKAGES
from warmup_plugin.tuner.library_search import bearing_failed_searches
from warmup_plugin.tuner.package_names import naming_packages_quickly
from warmup_plugin.tuner.packages import by_content
from warmup_plugin.tuner.proven import PROVEN

#: The fields of a file key that tells options apart: op, runner, profile, extras.
ALL_FIELDS = 4

#: Names the survey and the replay cannot do without: (where, name).
REQUIRED = (
    ("module", "_collect_metadata"),
    ("module", "autotune"),
    ("AutoTuner", "_apply_tuning_overrides"),
    ("AutoTuner", "_find_nearest_profile"),
    ("AutoTuner", "_generate_optimization_profiles"),
    ("AutoTuner", "_override_round_up"),
    ("AutoTuner", "_override_tuning_buckets"),
    ("AutoTuner", "_prepare_input_tensors"),
    ("AutoTuner", "_profile_single_kernel"),
    ("AutoTuner", "choose_one"),
    ("AutoTuner", "clear_cache"),
    ("AutoTuner", "load_configs"),
    ("AutoTuner", "save_configs"),
    ("AutoTuner", "search_cache"),
    ("tuner", "_active_tuning_contexts"),
    ("tuner", "_file_configs"),
    ("tuner", "is_tuning_mode"),
    ("tuner", "profiling_cache"),
)


class Capabilities(msgspec.Struct, frozen=True):
    """What the installed release can do.

    ``missing``: required private names that are not where they were. ``unproven``: what it does
    otherwise than every release that the tests run on. ``keys_tell_options_apart``: two runners
    that differ in their extras have two file keys (not so in 0.6.12). ``fields_without_extras`` and
    ``fields_with_extras``: how many fields a file key has.
    """

    version: str
    missing: tuple[str, ...]
    keys_tell_options_apart: bool
    fields_without_extras: int
    fields_with_extras: int
    unproven: tuple[str, ...] = ()

    @property
    def can_record(self) -> bool:
        """Return whether survey and replay can work at all."""
        return not self.lack

    @property
    def lack(self) -> str:
        """Return why they cannot, or an empty string."""
        if self.missing:
            return f"FlashInfer {self.version} has no {', '.join(self.missing)}"
        if self.unproven:
            what = "; ".join(self.unproven)
            return f"FlashInfer {self.version} is not one that this package knows: {what}"
        return ""


def version() -> str:
    """Return FlashInfer's version, as it stands in the table's path."""
    return str(flashinfer.__version__)


def managed_stores(root: Path | None) -> tuple[Path, ...]:
    """Return the folders of FlashInfer's managed store below a root, its default without one."""
    try:
        from flashinfer import autotune_cache
    except ImportError:  # before 0.7
        return ()
    root = root or autotune_cache.get_default_cache_root()
    return tuple(sorted(path for path in (root / "v2").glob("*") if path.is_dir()))


def tuner() -> Any:
    """Return FlashInfer's one tuner of this process."""
    return fi.AutoTuner.get()


def stamp() -> dict[str, str]:
    """Return FlashInfer's environment stamp, absent values as "unknown", and `stamps.PACKAGES`."""
    collect = getattr(fi, "_collect_metadata", dict)
    with bearing_failed_searches(), naming_packages_quickly():
        found = {name: str(value or "unknown") for name, value in collect().items()}
    packages = by_content(found.get(FINGERPRINT, ""))
    return {**found, PACKAGES: packages} if packages else found


def origin() -> tuple[str, ...]:
    """Return which FlashInfer this is, and where it was imported from."""
    return version(), str(flashinfer.__file__)


#: What takes long in a stamp: field -> where the function is that looks it up, once per process.
SLOW = {
    "cublas_version": (fi.AutoTuner.__module__, "_get_cublas_version"),
    "cutlass_dsl_version": ("flashinfer.jit.cute_dsl_core", "_get_cute_dsl_version"),
}
#: The one of them for which FlashInfer runs other programs, and waits for them.
BY_PROGRAMS = "cublas_version"


def slow_fields() -> dict[str, Callable[[], str]]:
    """Return what looks up each slow field that the stamp has, of those that are not yet known."""
    # To make a stamp, only to see its fields, takes two searches for packages that may be missing.
    code = getattr(getattr(fi, "_collect_metadata", None), "__code__", None)
    told = getattr(code, "co_consts", ())  # not all of them before 0.7
    found = {}
    for field, (module, name) in SLOW.items():
        look: Any = getattr(sys.modules.get(module), name, None)
        if field in told and hasattr(look, "cache_info") and not look.cache_info().currsize:
            found[field] = look
    return found


def looked_up_anew() -> dict[str, str]:
    """Ask the slow questions again, whatever FlashInfer has heard; none where it cannot be asked.

    With them, where the release has it, what `stamp` adds. Raises whatever its searches raise.
    """
    looks: dict[str, Any] = {
        field: getattr(sys.modules.get(module), name, None)
        for field, (module, name) in SLOW.items()
    }
    if not all(hasattr(look, "__wrapped__") for look in looks.values()):
        return {}
    with naming_packages_quickly():
        found = {field: str(look.__wrapped__()) for field, look in looks.items()}
    packages = by_content(found[FINGERPRINT])
    return {**found, PACKAGES: packages} if packages else found


@contextlib.contextmanager
def answering(fields: Mapping[str, str]) -> Iterator[None]:
    """Have FlashInfer take these for the answers to its slow questions in the body."""
    with contextlib.ExitStack() as stack:
        for field, answer in fields.items():
            place, name = SLOW[field]
            module = sys.modules[place]
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, functools.partial(str, answer))
        yield


def can_answer() -> bool:
    """Return whether FlashInfer's stamp has in its slow fields what `answering` gives it: tried."""
    given = {field: f"answered: {field}" for field in SLOW}
    if not all(hasattr(sys.modules.get(module), name) for module, name in SLOW.values()):
        return False
    with answering(given):
        found = stamp()
    return all(found.get(field) == answer for field, answer in given.items())


@functools.cache
def probe() -> Capabilities:
    """Look for the required names and try what is relied on, once per process.

    What a release in `proven.py` does is known, by its source: the tests have tried it.
    """
    there = {"module": fi, "AutoTuner": getattr(fi, "AutoTuner", None)}
    own = fi.AutoTuner() if there["AutoTuner"] else None
    there["tuner"] = own
    absent = ((w, name) for w, name in REQUIRED if not hasattr(there[w], name))
    missing = tuple(f"{where}.{name}" for where, name in absent)
    if missing:
        return Capabilities(version(), missing, False, 0, 0)
    if fields := PROVEN.get(sources_digest()):
        return Capabilities(version(), (), fields[1] == ALL_FIELDS, *fields)
    return tried(own)


def tried(own: Any) -> Capabilities:
    """Return what a release is found to do: its file keys, and all the laws of `behaviour.py`."""
    from warmup_plugin.tuner import behaviour  # only for a release that no test has run on

    try:
        found = _fields_of_keys(own, [(), ("a",), ("b",)])
    except Exception as error:  # noqa: BLE001  # whatever an unknown release raises: it is not used
        said = f"file keys: {type(error).__name__}: {error}"[:300]
        return Capabilities(version(), (), False, 0, 0, unproven=(said,))
    is_apart = found[("a",)] == found[("b",)] == ALL_FIELDS
    known = Capabilities(version(), (), is_apart, found[()], found[("a",)])
    return msgspec.structs.replace(known, unproven=behaviour.broken(Keys(known)))


def sources_digest() -> str:
    """Return a digest of the source of FlashInfer's tuner; empty where that cannot be read."""
    source, found = Path(str(fi.__file__)), hashlib.sha256()
    try:
        # A module before 0.6.15, a package from then on.
        is_package = hasattr(fi, "__path__")
        for path in sorted(source.parent.glob("*.py")) if is_package else [source]:
            found.update(path.read_bytes())
    except OSError:
        return ""
    return found.hexdigest()


class ToyRunner(fi.TunableRunner):  # type: ignore[misc]  # flashinfer is untyped
    """A runner that never runs; only its key and its candidates are asked for."""

    def __init__(self, extras: tuple[Any, ...], tactics: tuple[int, ...] = (0,)) -> None:
        self.extras, self.tactics = extras, tactics

    def get_cache_key_extras(self, _inputs: Any) -> tuple[Any, ...]:
        return self.extras

    def get_valid_tactics(self, _inputs: Any, _profile: Any) -> list[int]:
        return list(self.tactics)

    def forward(self, inputs: Any, **_options: Any) -> Any:
        return inputs


def _fields_of_keys(own: Any, cases: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], int]:
    """Return how many fields the release's file key has for some extras, by what it finds."""
    key = ("warmup_plugin::probe", ToyRunner.__name__, ((1, 1),))
    table = {str(key): [ToyRunner.__name__, 3]}
    table.update({str((*key, extras)): [ToyRunner.__name__, 4] for extras in cases})
    inputs, config = [torch.empty(1, 1)], fi.TuningConfig()
    found = {}
    with as_file(json.dumps(table).encode()) as path, _quietly():
        own.load_configs(path)
        for extras in cases:
            runners = [ToyRunner(extras)]
            _, _, tactic, _ = own.search_cache(key[0], runners, key[2], config, inputs=inputs)
            found[extras] = int(tactic)
    return found


def _log() -> logging.Logger:
    """Return FlashInfer's logger, which it makes by hand: `logging` does not know it."""
    own = getattr(sys.modules.get("flashinfer.jit.core"), "logger", None)
    return own if isinstance(own, logging.Logger) else logging.getLogger("flashinfer.jit")


# -- what `behaviour.py` tries with ------------------------------------------------------------


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Try something of FlashInfer in the body: without a group, a GPU, bars, logs, slow questions.

    Without CUDA a stream cannot be asked whether it is captured, and is not.
    """
    known = {field: "tried" for field, at in SLOW.items() if hasattr(sys.modules.get(at[0]), at[1])}
    cuda: Any = torch.cuda
    asked = cuda.is_current_stream_capturing
    if not cuda.is_available():
        cuda.is_current_stream_capturing = bool
    try:
        with no_process_group(), no_bars(), _quietly(), answering(known):
            yield
    finally:
        cuda.is_current_stream_capturing = asked


def own_tuner(clock: Callable[[Any], object]) -> Any:
    """Return a tuner apart from the process's, which asks this clock what a tactic takes."""

    class OwnClock(fi.AutoTuner):  # type: ignore[misc]  # flashinfer is untyped
        def _profile_single_kernel(
            self, _runner: Any, _inputs: Any, tactic: Any, *_rest: Any, **_options: Any
        ) -> object:
            return clock(tactic)

    return OwnClock()


@contextlib.contextmanager
def tuning_alone(tuner: Any) -> Iterator[None]:
    """Have a tuner of one's own tune in the body."""
    tuner.is_tuning_mode = True
    try:
        yield
    finally:
        tuner.is_tuning_mode = False


def toy_config(buckets: tuple[int, ...]) -> Any:
    """Return the config of an op whose first dimension has these buckets."""
    spec = fi.DynamicTensorSpec(
        input_idx=(0,), dim_idx=(0,), gen_tuning_buckets=buckets, map_to_tuning_buckets=int
    )
    return fi.TuningConfig(dynamic_tensor_specs=(spec,))


def measuring_methods() -> set[str]:
    """Return the tuner's methods that time a tactic, those within them included."""
    return {
        name
        for name, method in vars(fi.AutoTuner).items()
        if _mentions(getattr(method, "__code__", None), "_profile_single_kernel")
    }


def _mentions(code: Any, name: str) -> bool:
    if not isinstance(code, types.CodeType):
        return False
    return name in code.co_names or any(_mentions(inner, name) for inner in code.co_consts)


@contextlib.contextmanager
def group_that_fails() -> Iterator[None]:
    """Give FlashInfer a tuning group in the body in which no rank can meet another."""
    with no_process_group():
        if hasattr(fi, "set_autotune_process_group"):
            fi.set_autotune_process_group("no group")
        yield


#: Options to open a context with, in the order of `OVERRIDES`.
OPTIONS_TRIED = ((1, 2), True, 3, 0.25)


def options_given() -> tuple[Any, ...]:
    """Return how a context's options stand in the tuner's stack: those that the release has."""
    known = inspect.signature(fi.autotune).parameters
    given = {k: v for k, v in zip(OVERRIDES, OPTIONS_TRIED, strict=True) if k in known}
    with fi.autotune(False, **given):
        return tuple(tuner()._get_override_stack()[-1])


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep FlashInfer from telling of the probe's table as if it were somebody's."""
    log = _log()
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def warnings_only() -> Iterator[None]:
    """Keep FlashInfer from telling of a path that is nobody's; what it warns of stands."""
    log = _log()
    before = log.level
    log.setLevel(max(log.getEffectiveLevel(), logging.WARNING))
    try:
        yield
    finally:
        log.setLevel(before)


@contextlib.contextmanager
def as_file(data: bytes) -> Iterator[str]:
    """Give bytes a path that FlashInfer can open; no file system is touched.

    Where the system has no descriptor to spare, no /proc or no such files, FlashInfer's own name
    for `open` answers that one path from memory in the body.
    """
    with contextlib.ExitStack() as stack:
        path = _in_memory_file(data, stack)
        if path is None:
            path = stack.enter_context(_opening_from_memory(data))
        yield path


def _in_memory_file(data: bytes, stack: contextlib.ExitStack) -> str | None:
    try:
        handle = os.memfd_create("warmup-plugin-table")
        stack.callback(os.close, handle)
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        path = f"/proc/self/fd/{handle}"
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))  # FlashInfer needs a descriptor, too
    except (OSError, AttributeError):
        return None
    return path


#: Nothing can be here: its parent is no directory, on every system.
NOWHERE = Path(os.devnull, "warmup-plugin")


@contextlib.contextmanager
def _opening_from_memory(data: bytes) -> Iterator[str]:
    module: Any = sys.modules[fi.AutoTuner.__module__]
    own_path = str(NOWHERE / "table.json")

    def open_(path: Any, *args: Any, **options: Any) -> Any:
        is_ours = path == own_path
        return io.StringIO(data.decode()) if is_ours else open(path, *args, **options)  # noqa: PTH123  # handed on as called

    module.open = open_
    try:
        yield own_path
    finally:
        del module.open


class Keys:
    """How the installed release builds file keys."""

    def __init__(self, capabilities: Capabilities) -> None:
        self._without = capabilities.fields_without_extras
        self._with = capabilities.fields_with_extras

    def file_key(self, op: str, runner: str, profile: Any, extras: tuple[Any, ...]) -> str:
        """Return the key under which a table holds this runner's entry."""
        if (self._with if extras else self._without) < ALL_FIELDS:  # no extras in the key
            return str((op, runner, profile))
        return str((op, runner, profile, extras))

    @staticmethod
    def legacy_key(op: str, runner: str, profile: Any) -> str:
        """Return the three-field key of old files."""
        return str((op, runner, profile))


def effective_config(tuner: Any, config: Any) -> Any:
    """Return the config with the open context's bucket overrides applied, as tuning would."""
    overridden = (
        tuner._override_tuning_buckets is not None
        or tuner._override_round_up
        or getattr(tuner, "_override_cuda_graph_profile_replays", None) is not None
    )
    return tuner._apply_tuning_overrides(config) if overridden else config


def profiles(tuner: Any, config: Any, inputs: list[Any]) -> list[Any]:
    """Return the profiles tuning would measure, in FlashInfer's order."""
    found: list[Any] = tuner._generate_optimization_profiles(config, inputs)
    return found


def nearest_profile(shapes: Any, config: Any) -> tuple[tuple[int, ...], ...]:
    """Return the mapped profile that stands in the key of these shapes."""
    found: tuple[tuple[int, ...], ...] = fi.AutoTuner._find_nearest_profile(shapes, config)
    return found


def synthesise(tuner: Any, profile: Any, inputs: list[Any], config: Any) -> list[Any]:
    """Return inputs for one profile, made by FlashInfer as for a measurement."""
    tensors = tuner._prepare_input_tensors(profile, inputs)
    hook = getattr(config, "inputs_pre_hook", None)
    return list(hook(tensors)) if hook is not None else tensors


def skipped_ops(tuner: Any) -> frozenset[str]:
    """Return the ops the open contexts exclude from tuning (none before 0.6.13)."""
    return frozenset(getattr(tuner, "_effective_skip_ops", ()))


#: The fields of an entry of FlashInfer's override stack that are replayed, in order: buckets,
#: rounding and graph replays are in the effective config; the last is 0.7.4's `tie_tolerance`.
OVERRIDES = ("tuning_buckets", "round_up", "cuda_graph_profile_replays", "tie_tolerance")


class Options(msgspec.Struct, frozen=True):
    """What of the open contexts a replay needs besides the effective config.

    ``unknown``: why an option in force cannot be replayed, or an empty string.
    """

    memory_only_v2: bool = False
    tie_tolerance: float | None = None
    unknown: str = ""


def options_in_force(tuner: Any) -> Options:
    """Return the options of the open contexts that change a winner."""
    ask = getattr(tuner, "_get_override_stack", None)  # from 0.6.18 on
    stack = ask() if ask is not None else ()
    top = tuple(stack[-1]) if stack else ()
    more = [value for value in top[len(OVERRIDES) :] if value not in (None, False)]
    unknown = f"a tuning context has an option in force that is not known: {more!r}" if more else ""
    tie = top[3] if len(top) > 3 else None  # noqa: PLR2004  # its place among `OVERRIDES`
    return Options(in_v2_context(tuner), tie or None, unknown)


class Winner(msgspec.Struct, frozen=True):
    """An entry of the tuner's, as it would be saved.

    Only where `held` gives it: the policy, and ``more``, what 0.7.4 writes after that.
    """

    key: str
    runner: str
    tactic: Any
    policy: Any = None
    more: Any = None


def winners_since(tuner: Any, count: int, keys: Keys | None = None) -> list[Winner]:
    """Return the winners stored in the tuner's memory after its first ``count``, newest first."""
    keys, cache = keys or Keys(probe()), tuner.profiling_cache
    newest = itertools.islice(reversed(cache.items()), len(cache) - count)
    return [_winner(keys, key, value) for key, value in newest]


def _winner(keys: Keys, key: Any, value: Any) -> Winner:
    # Before 0.6.18 a key was a plain tuple with the runner's hash third, and the runner's index
    # came first in the value.
    if isinstance(key, tuple):
        op, runner, _, profile, extras = key
        return Winner(keys.file_key(op, runner, profile, extras), runner, value[1])
    return Winner(key.file_key, key.runner_class_name, value[0])


def held(tuner: Any, keys: Keys | None = None) -> list[Winner]:
    """Return all that FlashInfer would save, which it can only do to a directory.

    Loaded entries first, then those in memory, which win under the same key; of memory only what
    stands under no measurement policy of autotune_v2's, as FlashInfer saves no other.
    """
    file_policies = getattr(tuner, "_file_config_policies", {})
    policies = getattr(tuner, "_profiling_cache_policies", {})
    file_more = getattr(tuner, "_file_config_selections", {})
    more = getattr(tuner, "_profiling_cache_selections", {})
    found = [
        Winner(key, entry[0], entry[1], file_policies.get(key), file_more.get(key))
        for key, entry in tuner._file_configs.items()
    ]
    keys = keys or Keys(probe())
    for key, value in tuner.profiling_cache.items():
        beside: dict[str, Any] = {
            "policy": policies.get((None, key)),
            "more": more.get((None, key)),
        }
        found.append(msgspec.structs.replace(_winner(keys, key, value), **beside))
    return found


def forget_profiles(tuner: Any) -> None:
    """Drop the profiles kept beside winners in memory: they hold on to what was recorded.

    To its initialisers and so to what those have closed over. FlashInfer itself keeps None there
    for a winner it has read from its managed store.
    """
    for key, value in tuner.profiling_cache.items():
        tuner.profiling_cache[key] = (*value[:-1], None)


def policy_of(config: Any) -> Any:
    """Return the measurement policy FlashInfer stores with winners of this config, if it does."""
    policy = getattr(fi.AutoTuner, "_profiling_policy", None)
    return None if policy is None else policy(config)


def samples_of(tuner: Any, config: Any) -> int | None:
    """Return how many measurements FlashInfer averages for each tactic, where it says so."""
    ask = getattr(tuner, "_get_profiling_repeat", None)  # from 0.7 on an op may have its own
    repeat = getattr(tuner, "repeat", None) if ask is None else ask(config)
    return repeat if isinstance(repeat, int) else None


def is_measured_as(config: Any, policy: Any) -> bool:
    """Return whether an entry of this measurement policy was measured in the way the config asks.

    FlashInfer's own rule while tuning; 0.7.0 has it for its memory only, and looks past files.
    """
    asked = policy_of(config)
    if asked is not None and policy is None:
        policy = fi.AutoTuner._default_profiling_policy(config)
    return bool(asked is None or asked == policy)


def look_up(
    tuner: Any, op: str, runners: list[Any], shapes: Any, config: Any, *, inputs: Any
) -> Any:
    """Return what serves, though a tuning context is open: (found or not, runner's index, tactic).

    While tuning, FlashInfer looks past entries of another measurement policy.
    """
    mode, tuner.is_tuning_mode = tuner.is_tuning_mode, False
    try:
        return tuner.search_cache(op, runners, shapes, config, inputs=inputs)[:3]
    finally:
        tuner.is_tuning_mode = mode


def is_blocked(tuner: Any, op: str, runner: Any, tactic: Any) -> bool:
    """Return whether FlashInfer's blocklist keeps this tactic from being a candidate.

    `TacticsBlocklist.filter`, which FlashInfer asks of each list of candidates (from 0.6.13 on).
    """
    blocklist = getattr(tuner, "_blocklist", None)
    if blocklist is None or tactic == -1:
        return False
    try:
        return not blocklist.filter(op, runner, [tactic])
    except Exception:  # noqa: BLE001  # what the list cannot judge is no candidate
        return True


def accepts(runner: Any, inputs: list[Any], tactic: Any) -> bool:
    """Return whether a runner still offers a tactic, where it can tell (`validate_tactic`).

    As FlashInfer asks at a lookup (`_tactic_still_valid`, from 0.7.0 on): raising is a refusal too.
    """
    validate = getattr(runner, "validate_tactic", None)
    if validate is None:
        return True
    try:
        return bool(validate(inputs, tactic))
    except Exception:  # noqa: BLE001  # whatever a runner raises
        return False


def store_or_policy_in_force(tuner: Any) -> str:
    """Return why winners would not go to the tuner's plain memory, or an empty string."""
    if getattr(tuner, "_active_managed_store", None) is not None:
        return "a persistent autotune_v2 store is attached: the winners are its own"
    if getattr(tuner, "_effective_measure_policy", None) is not None:
        return "an autotune_v2 measurement policy is in force: the winners are its own"
    return ""


def in_v2_context(tuner: Any) -> bool:
    """Return whether an autotune_v2 context is open on this thread."""
    return bool(getattr(tuner, "_in_v2_context", False))


@contextlib.contextmanager
def tuning_context(options: Options = Options()) -> Iterator[None]:  # noqa: B008  # it is immutable
    """Open a fresh tuning context with the recorded options; in v2's the default tactic races."""
    autotune: Any = getattr(fi, "autotune", contextlib.nullcontext)
    with contextlib.ExitStack() as stack:
        if options.tie_tolerance is not None:
            # Without tuning: the context that tunes must be the only one (`autotune` counts them).
            stack.enter_context(autotune(False, tie_tolerance=options.tie_tolerance))
        if options.memory_only_v2:
            stack.enter_context(flashinfer.autotune_v2(mode="tune", persistent_cache=False))
        else:
            stack.enter_context(autotune(True))
        yield


def is_tuning(tuner: Any) -> bool:
    """Return whether a tuning context is open in this process."""
    return bool(getattr(tuner, "is_tuning_mode", False))


def fallbacks(tuner: Any) -> list[str] | None:
    """Return the op of each shape that has fallen back to the default since the tuner was cleared.

    FlashInfer notes them itself, to warn once of each: outside tuning, where the op has entries but
    none for the shape. Its public `stats.cache_misses` exists and is never counted up (0.6.11 to
    0.7.2). None where the release keeps no such note.
    """
    noted = getattr(tuner, "_logged_cache_miss_oor", None)
    return None if noted is None else [op for op, _ in list(noted)]


def open_contexts(tuner: Any) -> int:
    """Return how many tuning contexts are open in this process."""
    return int(tuner._active_tuning_contexts)


def is_empty(tuner: Any) -> bool:
    """Return whether the tuner holds nothing that a table could hold."""
    return not (tuner._file_configs or tuner.profiling_cache)


def loaded(tuner: Any) -> dict[str, Any]:
    """Return a shallow copy of the entries the tuner holds from files."""
    return dict(tuner._file_configs)


def loaded_policies(tuner: Any) -> dict[str, Any] | None:
    """Return how these were measured, by key; None before 0.7.2, which does not say."""
    found = getattr(tuner, "_file_config_policies", None)
    return None if found is None else dict(found)


def loaded_answer(tuner: Any, keys: Iterable[str]) -> tuple[str, Any] | None:
    """Return what the tuner would serve under these file keys from files: (runner, tactic)."""
    held = (tuner._file_configs.get(key) for key in keys)  # in the order in which it looks
    found = next((entry for entry in held if entry is not None), None)
    return None if found is None else (found[0], found[1])


def is_loaded(tuner: Any, entries: dict[str, Any]) -> bool:
    """Return whether the tuner holds exactly these entries from files."""
    return bool(tuner._file_configs == entries)


def seems_loaded(tuner: Any, entries: dict[str, Any]) -> bool:
    """Return the same, by a look at one entry: every load makes new ones."""
    held = tuner._file_configs
    return len(held) == len(entries) and all(
        held.get(key) is entry for key, entry in itertools.islice(entries.items(), 1)
    )


@contextlib.contextmanager
def no_process_group() -> Iterator[None]:
    """Take FlashInfer's tuning group away for the body, so that no measurement is a collective."""
    if not hasattr(fi, "set_autotune_process_group"):
        yield
        return
    group = fi.get_autotune_process_group()
    fi.set_autotune_process_group(None)
    try:
        yield
    finally:
        fi.set_autotune_process_group(group)


@contextlib.contextmanager
def telling_candidates(tell: Callable[[int], None]) -> Iterator[None]:
    """Have each runner's number of candidates told in the body, as FlashInfer comes to time them.

    By an attribute of the blocklist object through which it passes them all, gone at the end;
    nothing is told in releases that have none.
    """
    blocklist: Any = getattr(tuner(), "_blocklist", None)
    own = getattr(blocklist, "filter", None)
    if own is None:
        yield
        return

    def filtered(op: str, runner: Any, tactics: Any) -> Any:
        kept = own(op, runner, tactics)
        tell(len(kept))
        return kept

    blocklist.filter = filtered
    try:
        yield
    finally:
        del blocklist.filter


#: The tuner's own attributes by which a measurement is made.
_COUNTS = ("warmup", "repeat", "stream_delay_micro_secs")
Counts = tuple[int, int, float, int]  # the fields of `race.counts.Counts`, which is one


def can_narrow(tuner: Any) -> bool:
    """Return whether a race can be run: candidates can be narrowed, and counts be set."""
    has_list = hasattr(getattr(tuner, "_blocklist", None), "filter")
    return has_list and all(isinstance(getattr(tuner, name, None), int) for name in _COUNTS)


def counts_of(tuner: Any, config: Any) -> Counts:
    """Return how FlashInfer measures under this config."""
    delay_us, replays = tuner.stream_delay_micro_secs, 1
    if config.use_cuda_graph:
        delay_us = getattr(tuner, "_CUDA_GRAPH_DELAY_MICRO_SECS", delay_us)
        replays = getattr(config, "cuda_graph_profile_replays", 1)
    repeat = samples_of(tuner, config) or tuner.repeat
    return tuner.warmup, repeat, delay_us / 1000, max(1, replays)


@contextlib.contextmanager
def measuring(tuner: Any, counts: Counts | None, args: tuple[Any, ...]) -> Iterator[Any]:
    """Have the tuner measure with these counts in the body, with its own where there are none.

    Yields the arguments after the tactic: of a config that has a repeat of its own another one.
    """
    if counts is None:
        yield args
        return
    warmup, repeat, delay_ms, _ = counts
    given = args
    if args and getattr(args[0], "profiling_repeat", None) is not None:
        given = (dataclasses.replace(args[0], profiling_repeat=repeat), *args[1:])
    before = {name: getattr(tuner, name) for name in _COUNTS}
    delay_us = round(delay_ms * 1000)
    try:
        tuner.warmup, tuner.repeat, tuner.stream_delay_micro_secs = warmup, repeat, delay_us
        yield given
    finally:
        for name, value in before.items():
            setattr(tuner, name, value)


@contextlib.contextmanager
def narrowing(
    narrow: Callable[[Any, list[Any]], list[Any]], *, told: bool = False
) -> Iterator[None]:
    """Have a runner's candidates narrowed in the body, behind FlashInfer's blocklist.

    By an attribute of the blocklist object, as in `telling_candidates`, which hears of them where
    they are to be ``told``: the runner and its own list stay as they are.
    """
    blocklist: Any = tuner()._blocklist
    before = vars(blocklist).get("filter")
    own = blocklist.filter if told else functools.partial(type(blocklist).filter, blocklist)

    def filtered(op: str, runner: Any, tactics: Any) -> Any:
        return narrow(runner, list(own(op, runner, tactics)))

    blocklist.filter = filtered
    try:
        yield
    finally:
        if before is None:
            del blocklist.filter
        else:
            blocklist.filter = before


#: Winners in memory, and what is kept beside each, by their key and a partition: None here.
Memory = Mapping[str, Mapping[Any, Any]]
_BESIDE_WINNERS = ("_profiling_cache_policies", "_profiling_cache_selections")


def memory_of(tuner: Any) -> Memory:
    """Return the winners in the tuner's memory, with what it keeps beside each."""
    beside = {name: getattr(tuner, name, {}) for name in _BESIDE_WINNERS}
    own = {name: {k: v for k, v in held.items() if k[0] is None} for name, held in beside.items()}
    return {"profiling_cache": dict(tuner.profiling_cache), **own}


def put_in_memory(tuner: Any, memory: Memory) -> None:
    """Add winners to the tuner's memory; `memory_of` has taken them from it."""
    for name, held in memory.items():
        getattr(tuner, name, {}).update(held)


def forget_since(tuner: Any, count: int) -> None:
    """Drop the winners in the tuner's memory after its first ``count``: they are chosen anew."""
    cache = tuner.profiling_cache
    for key in list(itertools.islice(reversed(cache), max(0, len(cache) - count))):
        del cache[key]
        for name in _BESIDE_WINNERS:
            getattr(tuner, name, {}).pop((None, key), None)


class _NoBar:
    """Stands for a progress bar and shows none."""

    def __init__(self, *_args: Any, **_options: Any) -> None: ...

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_options: None


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """Keep FlashInfer's own progress bars, one for each call, out of the body."""
    module: Any = sys.modules[fi.AutoTuner.__module__]
    own = getattr(module, "tqdm", None)
    if own is None:
        yield
        return
    module.tqdm = types.SimpleNamespace(tqdm=_NoBar)
    try:
        yield
    finally:
        module.tqdm = own


def process_group() -> Any:
    """Return FlashInfer's tuning group, None where there is none."""
    return fi.get_autotune_process_group() if hasattr(fi, "get_autotune_process_group") else None


#: What FlashInfer keeps beside winners, and clears, loads and saves with them: the records of other
#: products (MegaMoE's), and winners in memory under a measurement policy of autotune_v2.
_BESIDE = (
    "_namespaced_records", "_observed_cache_generations", "_winner_partitions",
    # From 0.7.4 on: results of ops that tune in a loop of their own, shortlists and exclusions
    # under a policy of autotune_v2's.
    "_protocol_record_partitions", "_ranked_tactics_partitions", "_excluded_file_keys",
)  # fmt: skip
#: Under which such ops keep what they have prepared: who counts it up has them begin anew.
_GENERATION = "_protocol_cache_generation"


@contextlib.contextmanager
def sparing_others(tuner: Any) -> Iterator[None]:
    """Clear, load or save winners in the body, and nothing else: what is not ours stays."""
    beside = {name: dict(getattr(tuner, name)) for name in _BESIDE if hasattr(tuner, name)}
    unsaved = sorted(getattr(tuner, "_dirty_namespaces", ()))  # products with records to be saved
    policies = dict(getattr(tuner, "_profiling_cache_policies", {}))
    generation = getattr(tuner, _GENERATION, None)
    try:
        yield
    finally:
        if generation is not None:
            setattr(tuner, _GENERATION, generation)
        for name, content in beside.items():
            held = getattr(tuner, name)
            held.clear()
            held.update(content)
        for key, policy in policies.items():
            if isinstance(key, tuple) and key[0] is not None:  # of such a partition
                tuner._profiling_cache_policies[key] = policy
        for namespace in unsaved:
            tuner.publish_namespaced_records(namespace, tuner.get_namespaced_records(namespace))


@contextlib.contextmanager
def saving_all_but(path: Path) -> Iterator[None]:
    """Save nothing to this path in the body; to any other as ever.

    Records of other products stay to be saved: they have a file of their own to go to. An attribute
    of the tuner object, gone at the end: `AutoTuner.save_configs` is FlashInfer's own.
    """
    own = tuner()
    save = own.save_configs

    def save_configs(to: str) -> None:
        if Path(to) != path:
            save(to)

    own.save_configs = save_configs
    try:
        yield
    finally:
        del own.save_configs


def clear(tuner: Any) -> None:
    """Empty the tuner of winners, in memory and loaded."""
    with sparing_others(tuner):
        tuner.clear_cache()
