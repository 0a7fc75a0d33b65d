# SPDX-License-Identifier: Apache-2.0
"""The objects of a fleet: read whole and bounded, written once, pointers and leases swapped.

Owns the only use of obstore, and what its errors mean in words. What is swapped is swapped by its
ETag; in a folder, which knows no such condition, its states are numbered and each is created once:
the highest number is the latest. Raises `FleetError`, whose text names no secret.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import obstore
from obstore import exceptions, store

from warmup_plugin.errors import WarmupError
from warmup_plugin.fleet.document import LIMIT
from warmup_plugin.fleet.location import Location, parse
from warmup_plugin.fleet.pointer import LEASES, POINTERS, Whose, parse_base

if TYPE_CHECKING:
    from warmup_plugin.settings import FleetCredentials

#: Numbered states that stay, so that a reader that has listed them finds the one it chose.
_KEPT: Final = 16
_NUMBER: Final = re.compile("[0-9]{8}")
_ABSENT: Final = (exceptions.NotFoundError, FileNotFoundError)
_TAKEN: Final = (exceptions.AlreadyExistsError, FileExistsError)
_DENIED: Final = (exceptions.PermissionDeniedError, PermissionError)
_ALLOW_HTTP: Final = {
    "s3": "AWS_ALLOW_HTTP", "gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP",
}  # fmt: skip
#: What an address may carry that is for nobody's log: a signature, a token.
_SECRETS: Final = re.compile(r"(https?://[^\s?\"']*)\?[^\s\"')]*")
#: What the library puts before a server's answer.
_REQUEST: Final = re.compile(r"Error performing [A-Z]+ \S+ in .*? - ")
#: How stores say that a request's time is too far from their own.
_OFF_CLOCK: Final = ("RequestTimeTooSkewed", "RequestExpired")
#: How stores say that it is not the object that is missing.
_NO_BUCKET: Final = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


class FleetError(WarmupError):
    """What the store refused, or could not do."""


class Seen(NamedTuple):
    """A pointer or lease as it stood. ``tag``: by which it is swapped, its number in a folder."""

    data: bytes
    tag: str


class Objects:
    """A fleet's objects. ``timeout_s``: for one request; it is tried again once."""

    def __init__(
        self, url: str, credentials: FleetCredentials, *, timeout_s: float, writes: bool = False
    ) -> None:
        self._place = parse(url)
        with _in_words("the store"):
            self._store = _opened(self._place, credentials, timeout_s, writes=writes)

    def get(self, key: str, limit: int) -> bytes | None:
        """Return an object, None where there is none; refuses one of more than ``limit`` bytes."""
        found = self._get(key, limit)
        return found.data if found else None

    def _get(self, key: str, limit: int) -> Seen | None:
        with _in_words(_named(key)):
            try:
                found = obstore.get(self._store, key)
            except _ABSENT as error:
                if any(word in str(error) for word in _NO_BUCKET):
                    raise FleetError(f"{self._place.bucket}: there is no such bucket") from None
                return None
            size = int(found.meta["size"])
            if size > limit:
                raise FleetError(f"{_named(key)}: {size} bytes, more than the {limit} allowed")
            return Seen(bytes(found.bytes()), found.meta["e_tag"] or "")

    def create(self, key: str, data: bytes) -> bool:
        """Write an object that is not there yet; return False where it is."""
        return self._put(key, data, "create") is not None

    def _put(self, key: str, data: bytes, mode: Any) -> Seen | None:
        """Write an object on a condition; return None where that does not hold."""
        with _in_words(_named(key)):
            try:
                done = obstore.put(self._store, key, data, mode=mode, use_multipart=False)
            except (exceptions.PreconditionError, *_TAKEN):
                return None
            except _ABSENT:
                if mode == "create":
                    raise
                return None
            return Seen(data, done["e_tag"] or "")

    def overwrite(self, key: str, data: bytes) -> None:
        """Write an object, also over another one: only for one that is not what its name says."""
        with _in_words(_named(key)):
            obstore.put(self._store, key, data, mode="overwrite", use_multipart=False)

    def pointer(self, whose: Whose) -> Seen | None:
        """Return the latest pointer of an identity, None where there is none."""
        return self._latest(whose.base)

    def swap(self, whose: Whose, data: bytes, seen: Seen | None) -> bool:
        """Replace the pointer that was seen; return False where it is another one by now."""
        return self._swap(whose.base, data, seen) is not None

    def lease(self, whose: Whose) -> Seen | None:
        """Return the lease of an identity as it stands, None where there is none."""
        return self._latest(whose.lease)

    def swap_lease(self, whose: Whose, data: bytes, seen: Seen | None) -> Seen | None:
        """Replace the lease that was seen; return None where it is another one by now."""
        return self._swap(whose.lease, data, seen)

    def _latest(self, base: str) -> Seen | None:
        if not self._place.is_numbered:
            return self._get(base, LIMIT)
        numbers = sorted(self._numbers(base), reverse=True)
        for number in numbers[:_KEPT]:
            if found := self._get(_numbered(base, number), LIMIT):
                return Seen(found.data, str(number))
        return None

    def _swap(self, base: str, data: bytes, seen: Seen | None) -> Seen | None:
        if self._place.is_numbered:
            return self._number_next(base, data, int(seen.tag) if seen else 0)
        if seen is None:
            return self._put(base, data, "create")
        return self._put(base, data, {"e_tag": seen.tag})

    def all_pointers(self) -> Iterator[Whose]:
        """Yield every identity that the fleet has a pointer of, each once."""
        seen = set()
        with _in_words("the list"):
            for rows in obstore.list(self._store, prefix=POINTERS.rstrip("/")):
                for row in rows:
                    found = parse_base(row["path"])
                    if found and found[0] not in seen:
                        seen.add(found[0])
                        yield found[0]

    def _numbers(self, base: str) -> list[int]:
        with _in_words(_named(base)):
            try:
                rows = [row for part in obstore.list(self._store, prefix=base) for row in part]
            except _ABSENT:
                return []
        found = (row["path"].removeprefix(f"{base}/") for row in rows)
        return [int(number) for number in found if _NUMBER.fullmatch(number) and int(number)]

    def _number_next(self, base: str, data: bytes, last: int) -> Seen | None:
        """Create the state after the last one that was seen."""
        mine = _numbered(base, last + 1)
        if not self.create(mine, data):
            return None
        numbers = self._numbers(base)
        with _in_words(_named(base)):
            if max(numbers, default=0) > last + _KEPT:
                # So many came since that this number had been removed: it is free, and not ours.
                obstore.delete(self._store, mine)
                return None
        with contextlib.suppress(FleetError), _in_words(_named(base)):
            for old in sorted(numbers):
                if old <= last + 1 - _KEPT:
                    obstore.delete(self._store, _numbered(base, old))
        return Seen(data, str(last + 1))


def _numbered(base: str, number: int) -> str:
    return f"{base}/{number:08d}"


def _opened(
    place: Location, credentials: FleetCredentials, timeout_s: float, *, writes: bool
) -> Any:
    """Return obstore's store. Its own bounds are 30 s a request and 180 s of retries.

    Only a bound of each request and a bound of the retries hold it together.
    """
    if place.scheme == "file":
        return store.LocalStore(place.prefix, mkdir=writes)
    once = timedelta(seconds=timeout_s)
    options: dict[str, Any] = {
        "client_options": {
            "connect_timeout": once,
            "timeout": once,
            # Given options hide the variable of that name from the library.
            "allow_http": os.environ.get(_ALLOW_HTTP[place.scheme], "").lower() in ("1", "true"),
        },
        "retry_config": {
            "max_retries": 1,
            "retry_timeout": once,
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(milliseconds=100),
                "base": 2,
            },
        },
    }
    if place.prefix:
        options["prefix"] = place.prefix
    if credentials == "anonymous":
        options["skip_signature"] = True
    kinds: dict[str, Any] = {
        "s3": store.S3Store, "gs": store.GCSStore, "az": store.AzureStore,
    }  # fmt: skip
    return kinds[place.scheme](place.bucket, **options)


@contextlib.contextmanager
def _in_words(what: str) -> Iterator[None]:
    """Make of the library's errors one line that says what was asked, and no signed address."""
    try:
        yield
    except _DENIED as error:
        if any(word in str(error) for word in _OFF_CLOCK):
            raise FleetError(f"{what}: the clock of this host is off, says the store") from None
        raise FleetError(f"{what}: permission denied") from None
    except exceptions.UnauthenticatedError:
        raise FleetError(f"{what}: the credentials are not accepted") from None
    except (exceptions.BaseError, OSError, ValueError, NotImplementedError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise FleetError(f"{what}: {_shown(lines[0])}") from None


def _shown(text: str) -> str:
    """Return what a store said, without the request: its name is said already, its keys never."""
    return _SECRETS.sub(r"\1?...", _REQUEST.sub("", text))[:240]


def _named(key: str) -> str:
    """Return an object's name as people say it."""
    for prefix, name in ((POINTERS, "the pointer"), (LEASES, "the lease")):
        if key.startswith(prefix):
            return name
    kind, _, name = key.removeprefix("v1/").partition("/")
    return f"{kind} {name[:12]}"
