# SPDX-License-Identifier: Apache-2.0
"""Who has signed a bundle: ed25519 signatures in the pointer, held against a list of public keys.

Owns what is signed (a bundle's sha256 together with whose it is, so that no signature fits another
identity) and the only use of `cryptography`. A key that cannot be read is a `FleetError`: nothing
is used then, since its signer is not known. An older bundle that was signed stays signed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from warmup_plugin.fleet.objects import FleetError
from warmup_plugin.fleet.pointer import Pointer, Signature, Whose

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

#: A key in PEM is some hundred bytes.
_MOST_BYTES: Final = 1 << 16


class Keys:
    """The public keys of those whose bundles are used, by fingerprint; all are, without any.

    Raises:
        FleetError: a file is no public key.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        found = [_public_key(Path(path)) for path in paths]
        self._keys: Mapping[str, Ed25519PublicKey] = {fingerprint(key): key for key in found}

    def add(self, path: str) -> None:
        """Take the public half of a private key for one of them."""
        key = _private_key(Path(path)).public_key()
        self._keys = {**self._keys, fingerprint(key): key}

    def refuse(self, pointer: Pointer, whose: Whose) -> str:
        """Return why a bundle is not used, or an empty string."""
        if not self._keys:
            return ""
        if not pointer.signatures:
            return f"bundle {pointer.bundle[:12]} is not signed"
        if any(self._holds(signature, pointer, whose) for signature in pointer.signatures):
            return ""
        by = ", ".join(signature.key[:12] for signature in pointer.signatures[:4])
        return f"bundle {pointer.bundle[:12]} is signed by none of the keys allowed (by {by})"

    def _holds(self, signature: Signature, pointer: Pointer, whose: Whose) -> bool:
        from cryptography.exceptions import InvalidSignature

        key = self._keys.get(signature.key)
        if key is None:
            return False
        try:
            key.verify(base64.b64decode(signature.value, validate=True), _statement(pointer, whose))
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


def signed(pointer: Pointer, whose: Whose, path: str) -> Pointer:
    """Return the pointer with a signature of this private key; others of the bundle stay.

    Raises:
        FleetError: the file is no private key.
    """
    key = _private_key(Path(path))
    mine = fingerprint(key.public_key())
    value = base64.b64encode(key.sign(_statement(pointer, whose))).decode()
    others = tuple(each for each in pointer.signatures if each.key != mine)
    return msgspec.structs.replace(pointer, signatures=(*others, Signature(mine, value)))


def fingerprint(key: Ed25519PublicKey) -> str:
    """Return the sha256 of a public key's 32 bytes, 64 hex digits."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _statement(pointer: Pointer, whose: Whose) -> bytes:
    return "\n".join(("warmup-plugin bundle 1", *whose, pointer.bundle, "")).encode()


def _public_key(path: Path) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise FleetError(f"{path}: must be an ed25519 public key in PEM")
    return key


def _private_key(path: Path) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise FleetError(f"{path}: must be an ed25519 private key in PEM, without a password")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise FleetError(f"{path}: {error.strerror or error}") from None
