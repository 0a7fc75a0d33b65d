# SPDX-License-Identifier: Apache-2.0
"""What a table belongs to: named config factors, their canonical JSON, its sha256.

Owns the list of factors and the one byte form that is hashed: sorted keys, no spaces, ASCII.
Refuses a value that could differ between ranks, starts or machines unseen: unknown factors, other
types, numbers that are not finite, keys that are not strings. All raise `IdentityError`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Final, TypeAlias

import msgspec

from warmup_plugin.errors import IdentityError

FACTOR_NAMES: Final = (
    "model",
    "role",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "backends",
    "tp",
    "pp",
    "dp",
    "ep",
    "cp",
    "buckets",
    "round_up",
    "skip_ops",
    "measurement",
    "race_default",
    "stamp",
    "gpu",
    "switches",
    "extra",
)
ROLES: Final = ("target", "draft")
#: JSON of any form: whatever an engine and its environment give. `Identity` checks all of it.
Json: TypeAlias = Any
#: Config factors by name, of the names above.
Factors: TypeAlias = dict[str, Json]
MAX_DEPTH: Final = 32
ABSENT: Final = "(absent)"

#: Keys of a model's config that say where it lies or who saved it, not what it computes.
_NOT_THE_MODEL: Final = frozenset({"_name_or_path", "name_or_path", "transformers_version"})


class Identity(msgspec.Struct, frozen=True, eq=False, dict=True):
    """Config factors in canonical form; equal factors give equal digests on every machine.

    Make one with `Identity.of`, which names the factors.

    Args:
        factors: the factors by name. Values are texts, numbers, booleans, None, lists and mappings.

    Raises:
        IdentityError: a factor is unknown or has no canonical form.
    """

    factors: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Normalise a private copy, so that the digest cannot drift from the factors."""
        normal = {name: _normalised(name, value) for name, value in self.factors.items()}
        msgspec.structs.force_setattr(self, "factors", normal)

    @classmethod
    def of(
        cls,
        *,
        model: str | Mapping[str, Any],
        dtype: str,
        role: str = "target",
        quantization: object = None,
        kv_cache_dtype: str | None = None,
        backends: Mapping[str, Any] | None = None,
        tp: int = 1,
        pp: int = 1,
        dp: int = 1,
        ep: int = 1,
        cp: int = 1,
        buckets: Iterable[int] | None = None,
        round_up: bool = False,
        skip_ops: Iterable[str] = (),
        measurement: object = None,
        race_default: bool = False,
        stamp: Mapping[str, Any] | None = None,
        gpu: Mapping[str, Any] | None = None,
        switches: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Identity:
        """Return an identity with every factor; what is not given has the engine-neutral default.

        Args:
            model: the model's config as a mapping, of which the sha256 is kept, or a label. Keys
                that say where the model lies do not count.
            dtype: the type of the activations, such as ``"bfloat16"``.
            role: ``"target"``, or ``"draft"`` for a draft model of speculative decoding.
            quantization: the quantization of the weights, as the engine names it.
            kv_cache_dtype: the type of the KV cache's entries.
            backends: the kernel back end by kind of layer, such as ``{"moe": "trtllm"}``.
            tp: the number of tensor-parallel ranks.
            pp: the number of pipeline stages.
            dp: the number of data-parallel ranks.
            ep: the number of expert-parallel ranks.
            cp: the number of context-parallel ranks.
            buckets: the batch sizes for which FlashInfer tunes, in tokens.
            round_up: whether a batch size between two buckets takes the larger one.
            skip_ops: names of custom ops that are not tuned.
            measurement: how FlashInfer measures, as far as the engine sets that.
            race_default: whether the engine lets FlashInfer's default compete.
            stamp: versions of the software; `warm_up` adds those that it looks up.
            gpu: facts of the GPU; `warm_up` adds them.
            switches: environment variables that change which kernels run; `warm_up` adds them.
            extra: further factors of the engine. No path, port, time or rank belongs here: they
                would make each start, or each rank, another identity.

        Returns:
            The identity in canonical form.

        Raises:
            IdentityError: a factor has no canonical form.
        """
        given = {name: value for name, value in locals().items() if name in FACTOR_NAMES}
        for name in ("backends", "stamp", "gpu", "switches", "extra"):
            given[name] = {} if given[name] is None else given[name]
        return cls(given)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        return hash(self.canonical())

    def canonical(self) -> bytes:
        """Return the bytes that are hashed.

        Returns:
            JSON with sorted keys, without spaces, in ASCII; `identity.json` holds the same bytes.
        """
        return _encode(self.factors)

    @cached_property
    def digest(self) -> str:
        """The sha256 of the canonical form, 64 hex digits."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def with_factors(self, **more: object) -> Identity:
        """Return a copy with some factors replaced.

        Args:
            **more: factors by name; the names are those of `Identity.of`.

        Returns:
            The new identity; this one does not change.

        Raises:
            IdentityError: a factor is unknown or has no canonical form.
        """
        found = Identity(more)  # what is here is normal already
        msgspec.structs.force_setattr(found, "factors", {**self.factors, **found.factors})
        return found


class Difference(msgspec.Struct, frozen=True):
    """One factor in which two identities differ; `ABSENT` where a side does not have it."""

    path: str
    a: Any
    b: Any


def diff(a: Identity, b: Identity) -> list[Difference]:
    """Return the factors in which two identities differ, by dotted path, in order."""
    return list(_differences("", a.factors, b.factors))


def _differences(path: str, a: object, b: object) -> Iterable[Difference]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted(a.keys() | b.keys()):
            below = f"{path}.{key}" if path else key
            yield from _differences(below, a.get(key, ABSENT), b.get(key, ABSENT))
    elif _encode(a) != _encode(b):  # not `!=`: 1 == 1.0 == True in Python, but not in the digest
        yield Difference(path, a, b)


def _encode(plain: object) -> bytes:
    return json.dumps(
        plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _plain(path: str, value: object, depth: int = 0) -> Any:
    """Return `value` as plain JSON; raise for the first part that has no canonical form."""
    if depth > MAX_DEPTH:
        raise IdentityError(path, "...", f"nested at most {MAX_DEPTH} deep")
    # Exact types: a subclass (an enum, a NumPy scalar) may print as itself on one version only.
    # And first: asked whether it is a mapping, each new type takes 0.1 to 0.4 ms.
    if value is None or type(value) in (str, int, bool):
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise IdentityError(path, value, "a finite number")
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(f"{path}[{i}]", below, depth + 1) for i, below in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise IdentityError(f"{path}.{key}", key, "a string, as every key")
        return {key: _plain(f"{path}.{key}", below, depth + 1) for key, below in value.items()}
    raise IdentityError(path, repr(value), "a string, number, boolean, null, list or mapping")


def _normalised(name: str, value: object) -> object:
    if name not in FACTOR_NAMES:
        raise IdentityError(name, repr(value), f"one of the factors {', '.join(FACTOR_NAMES)}")
    normal_form: Callable[[str, object], object] = _NORMAL_FORMS.get(name, _plain)
    return normal_form(name, value)


def _model(name: str, value: object) -> object:
    if isinstance(value, str):
        return {"label": value}
    if not isinstance(value, Mapping):
        raise IdentityError(name, repr(value), "a label or the model's config as a mapping")
    if value.keys() in ({"label"}, {"config_sha256"}):  # already normal, as from another rank
        return _plain(name, value)
    config = _encode(_without(_plain(name, value), _NOT_THE_MODEL))
    return {"config_sha256": hashlib.sha256(config).hexdigest()}


def _without(value: Any, names: frozenset[str]) -> Any:
    """Return JSON without the keys `names`; at every level, since sub-configs repeat them."""
    if isinstance(value, dict):
        return {key: _without(below, names) for key, below in value.items() if key not in names}
    return [_without(below, names) for below in value] if isinstance(value, list) else value


def _role(name: str, value: object) -> object:
    if value not in ROLES:
        raise IdentityError(name, _shown(value), f"one of {', '.join(ROLES)}")
    return value


def _size(name: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise IdentityError(name, _shown(value), "a whole number, 1 or more")
    return value


def _flag(name: str, value: object) -> object:
    if type(value) is not bool:
        raise IdentityError(name, _shown(value), "true or false")
    return value


def _buckets(name: str, value: object) -> object:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise IdentityError(name, _shown(value), "a list of whole numbers, or null")
    return sorted({_size(name, bucket) for bucket in value})


def _skip_ops(name: str, value: object) -> object:
    # A bare string is an iterable of strings too, and would be skipped letter by letter.
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable):
        raise IdentityError(name, _shown(value), "a list of op names")
    ops = list(value)
    for op in ops:
        if type(op) is not str:
            raise IdentityError(name, _shown(op), "a list of op names")
    return sorted(set(ops))


def _shown(value: object) -> object:
    """Return a value that an error may carry: plain, so that the error still pickles."""
    return value if value is None or type(value) in (str, int, bool, float) else repr(value)


_NORMAL_FORMS: Final[Mapping[str, Callable[[str, object], object]]] = {
    "model": _model,
    "role": _role,
    **dict.fromkeys(("tp", "pp", "dp", "ep", "cp"), _size),
    "buckets": _buckets,
    "round_up": _flag,
    "skip_ops": _skip_ops,
    "race_default": _flag,
}
