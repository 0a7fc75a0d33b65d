# SPDX-License-Identifier: Apache-2.0
"""Where a fleet's objects lie, and with which credentials they are asked for.

Owns the form of `WARMUP_PLUGIN_FLEET` and the rule for credentials: those that the environment
gives, or none where that is asked for. The instance's metadata service is asked only where
``instance`` says so. Pure: imports no client of any store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from warmup_plugin.settings import FleetCredentials

Scheme = Literal["s3", "gs", "az", "file"]
_REMOTE: Final = re.compile(r"(s3|gs|az)://([A-Za-z0-9][A-Za-z0-9._-]*)(?:/([A-Za-z0-9._/=+-]*))?")
_LOCAL: Final = re.compile(r"file://(/[^\0?#]*)")

#: Any one of these sets of variables is credentials that somebody has given.
_GIVEN: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "s3": (
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI",),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",),
    ),
    "gs": (
        ("GOOGLE_SERVICE_ACCOUNT",),
        ("GOOGLE_SERVICE_ACCOUNT_PATH",),
        ("GOOGLE_SERVICE_ACCOUNT_KEY",),
        ("GOOGLE_APPLICATION_CREDENTIALS",),
        ("GOOGLE_BEARER_TOKEN",),
    ),
    "az": (
        ("AZURE_STORAGE_ACCOUNT_KEY",),
        ("AZURE_STORAGE_ACCESS_KEY",),
        ("AZURE_STORAGE_SAS_TOKEN",),
        ("AZURE_STORAGE_SAS_KEY",),
        ("AZURE_STORAGE_TOKEN",),
        ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_CLIENT_SECRET"),
        ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE"),
    ),
}


class Location(NamedTuple):
    """A fleet's place: a bucket or container with a prefix, or a directory."""

    scheme: Scheme
    bucket: str
    prefix: str

    @property
    def is_numbered(self) -> bool:
        """Return whether pointers are numbered, since nothing here can be swapped."""
        return self.scheme == "file"


def parse(text: str) -> Location:
    """Return what a location says.

    Raises:
        ValueError: it is none.
    """
    if match := _LOCAL.fullmatch(text):
        scheme, bucket, prefix = "file", "", match[1].rstrip("/")
    elif match := _REMOTE.fullmatch(text):
        scheme, bucket, prefix = match[1], match[2], (match[3] or "").strip("/")
    else:
        raise ValueError(text)
    if scheme == "file" and not prefix:
        raise ValueError(text)
    if any(part in (".", "..") for part in prefix.split("/")):
        raise ValueError(text)
    return Location(scheme, bucket, prefix)  # type: ignore[arg-type]  # the pattern's


def is_location(value: object) -> bool:
    """Return whether this is a location, for the table of settings."""
    try:
        return isinstance(value, str) and bool(parse(value))
    except ValueError:
        return False


def lacking(place: Location, credentials: FleetCredentials, environ: Mapping[str, str]) -> str:
    """Return why the store is not asked at all, or an empty string.

    Without keys a client would ask the instance's metadata service, which the user has not agreed
    to, and which outside of a cloud costs the whole time that there is.
    """
    sets = _GIVEN.get(place.scheme, ())
    if not sets or credentials != "given":
        return ""
    if any(all(environ.get(name) for name in names) for names in sets):
        return ""
    return (
        f"no credentials for {place.scheme}:// in the environment ({' and '.join(sets[0])}, for "
        "one); WARMUP_PLUGIN_FLEET_CREDENTIALS says anonymous or instance where that is meant"
    )
