# SPDX-License-Identifier: Apache-2.0
"""The process in which a registry is asked: an image of tables, put there or taken from there.

Owns the only use of oras, which knows the registries' protocol, their tokens and Docker's
credentials. Of its own are the bounds, which oras has none of: each request is tried once and
ends, nothing is read beyond its size, credentials and tokens go nowhere by plain http unless that
is asked for, and what arrives is held against its digest. Never imported by an engine.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import requests
from oras.container import Container
from oras.provider import Registry
from requests.adapters import BaseAdapter, HTTPAdapter

from warmup_plugin.cache import image, image_layout
from warmup_plugin.cache.archive import ArchiveError
from warmup_plugin.cache.image import Blob, Descriptor, Image
from warmup_plugin.errors import WarmupError
from warmup_plugin.fleet.answering import Asking, answer_one, end_after
from warmup_plugin.fleet.reference import Reference

_ACCEPT: Final = f"{image.MANIFEST_TYPE}, {image.DOCKER_MANIFEST_TYPE}"
_PART: Final = 1 << 16
#: Where `docker login`, `skopeo login` and Kubernetes leave credentials, beside Docker's own place.
_CREDENTIALS: Final = (("DOCKER_CONFIG", "config.json"), ("REGISTRY_AUTH_FILE", ""))
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_REFUSALS: Final = {
    _UNAUTHORIZED: "the credentials are not accepted, or there are none", 403: "permission denied",
    _NOT_FOUND: "there is no such image", 429: "too many requests",
}  # fmt: skip
#: Of what a registry says of a refusal.
_WORDS: Final = 160


class RegistryError(WarmupError):
    """What the registry refused, or could not do."""


class Request(Asking, kw_only=True):
    """What is asked: push what lies in ``place``, or pull into it.

    ``limit_s`` is for all of it, ``timeout_s`` for each silence of the registry.
    """

    do: Literal["push", "pull"]
    reference: Reference
    place: str
    limit_s: float
    timeout_s: float
    table_bytes: int
    is_plain: bool = False


def main(parent: int) -> None:
    """Answer one request; an empty one is none."""
    answer_one(Request, parent, _answer)


def _answer(request: Request) -> Any:
    end_after(request.limit_s)
    try:
        with _in_words():
            client = _Client(request)
            return _push(client, request) if request.do == "push" else _pull(client, request)
    except ArchiveError as error:
        return {"state": "refused", "reason": str(error)}


def _push(client: _Client, request: Request) -> Any:
    whole = image_layout.read(Path(request.place), request.table_bytes)
    sent = [client.put(blob, request.place) for blob in (whole.config, whole.layer)]
    client.put_manifest(whole.manifest)
    return {"state": "pushed", "digest": whole.manifest.digest, "blobs": sum(sent)}


def _pull(client: _Client, request: Request) -> Any:
    manifest = image.blob(client.manifest())
    if request.reference.digest not in ("", manifest.digest):
        raise ArchiveError(f"the registry's manifest is {manifest.digest}, not the one asked for")
    named = image.parse_manifest(manifest.data, request.table_bytes)
    whole = Image(manifest, client.blob(named.config), client.blob(named.layers[0]))
    image_layout.write(Path(request.place), whole)
    return {"state": "pulled", "digest": manifest.digest}


class _Bounded(HTTPAdapter):  # type: ignore[misc]  # requests is Any to the checker
    """Requests that end where the other side is silent."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        super().__init__()

    def send(self, request: Any, **options: Any) -> Any:
        return super().send(request, **{**options, "timeout": self._timeout_s})


class _Refused(BaseAdapter):  # type: ignore[misc]  # as above
    """Requests by plain http that were not asked for: a redirect, or where tokens are made."""

    def send(self, request: Any, **_options: Any) -> Any:
        raise RegistryError(f"leads to {request.url.partition('?')[0]}, which is not https")

    def close(self) -> None:
        """There is nothing to close."""


class _Client(Registry):  # type: ignore[misc]  # oras is Any to the checker
    """One image's place in a registry."""

    def __init__(self, request: Request) -> None:
        reference, adapter = request.reference, _Bounded(request.timeout_s)
        plain = adapter if request.is_plain else _Refused()
        session = requests.Session()
        self._set_up(session, adapter, plain)
        backend = "basic" if _asks_for_basic(session, request) else "token"
        super().__init__(reference.host, insecure=request.is_plain, auth_backend=backend)
        self._set_up(self.session, adapter, plain)
        self._last: Any = None
        self.session.hooks["response"].append(self._see)
        place = Container(reference.name, registry=reference.host)
        # Oras guesses which part is the host; this one is known.
        place.registry, place.namespace, place.repository = reference.host, "", reference.name
        place.tag, place.digest = reference.tag, reference.digest
        self._place = place
        self._load_credentials()
        if backend == "basic" and not hasattr(self.auth, "_basic_auth"):
            raise RegistryError(f"{reference.host} asks for credentials, and there are none")

    def _load_credentials(self) -> None:
        try:
            self.auth.load_configs(self._place, configs=_credential_files())
        except (ValueError, TypeError, AttributeError, LookupError) as error:
            raise RegistryError(f"the credentials that are kept cannot be read: {error}") from None

    @staticmethod
    def _set_up(session: Any, adapter: Any, plain: Any) -> None:
        session.mount("https://", adapter)
        session.mount("http://", plain)
        session.auth = lambda request: request  # or a ~/.netrc would take the token's place

    def do_request(self, *args: Any, **options: Any) -> Any:
        """Ask once: oras itself asks six times, with two minutes between the first and the last."""
        try:
            answer = self._ask(*args, **options)
            if answer.status_code == _UNAUTHORIZED and getattr(self.auth, "token", None):
                self.auth.token = None  # it was for less than this request: one for reading, say
                answer = self._ask(*args, **options)
        except requests.RequestException:
            raise
        except ValueError:  # no token is to be had: what was answered last says why
            answer = self._last
        return answer if answer.status_code == _NOT_FOUND else _taken(answer)

    def _see(self, answer: Any, **_options: Any) -> None:
        self._last = answer

    def _ask(self, *args: Any, **options: Any) -> Any:
        return Registry.do_request.__wrapped__(self, *args, **options)

    def put(self, blob: Blob, place: str) -> bool:
        """Give the registry a blob; return False where it has it."""
        named = {"digest": blob.digest, "size": len(blob.data)}
        if self.blob_exists(named, self._place):
            return False
        path = Path(place, "blobs", "sha256", blob.digest.removeprefix("sha256:"))
        try:
            _taken(self.put_upload(str(path), self._place, named))
        except ValueError:  # no place was said to which the blob is to go
            raise RegistryError("the registry takes nothing under this name") from None
        return True

    def put_manifest(self, manifest: Blob) -> None:
        """Give the image its tag."""
        url = f"{self.prefix}://{self._place.manifest_url()}"
        headers = {"Content-Type": image.MANIFEST_TYPE}
        answer = _taken(self.do_request(url, "PUT", data=manifest.data, headers=headers))
        found = answer.headers.get("Docker-Content-Digest", manifest.digest)
        if found != manifest.digest:
            raise RegistryError(f"the registry keeps it as {found}, not {manifest.digest}")

    def manifest(self) -> bytes:
        """Return the image's manifest."""
        url = f"{self.prefix}://{self._place.manifest_url()}"
        answer = self.do_request(url, "GET", headers={"Accept": _ACCEPT}, stream=True)
        return _body(_taken(answer), image.DOCUMENT_BYTES)

    def blob(self, named: Descriptor) -> Blob:
        """Return a blob that is the one which was named."""
        data = _body(_taken(self.get_blob(self._place, named.digest, stream=True)), named.size)
        image.check(data, named)
        return Blob(named.digest, data)


def _asks_for_basic(session: Any, request: Request) -> bool:
    """Return whether a registry wants a password with each request, and has no tokens."""
    scheme = "http" if request.is_plain else "https"
    with session.get(f"{scheme}://{request.reference.host}/v2/", stream=True) as answer:
        wanted = answer.headers.get("WWW-Authenticate", "")
        is_asked = answer.status_code == _UNAUTHORIZED
        return is_asked and str(wanted).lower().startswith("basic")


def _credential_files() -> list[str]:
    found = [Path(os.environ[name], file) for name, file in _CREDENTIALS if os.environ.get(name)]
    return [str(path) for path in found if path.is_file()]


def _taken(answer: Any) -> Any:
    """Return an answer that is a success; what else it is, in words."""
    status = answer.status_code
    if requests.codes.ok <= status < requests.codes.multiple_choices:
        return answer
    why, said = _REFUSALS.get(status, f"the registry answers {status}"), _said(answer)
    raise RegistryError(f"{why} ({said})" if said else why)


def _said(answer: Any) -> str:
    """Return what a registry says of a refusal, as far as that is one line of text."""
    try:
        message = str(msgspec.json.decode(_body(answer, _PART))["errors"][0]["message"])
    except (ArchiveError, ValueError, LookupError, TypeError, requests.RequestException):
        return ""
    return "".join(sign for sign in message if sign.isprintable())[:_WORDS]


def _body(answer: Any, limit: int) -> bytes:
    """Return what is sent, to its end; more than ``limit`` bytes are not read."""
    found = bytearray()
    with answer:
        for part in answer.iter_content(_PART):
            found += part
            if len(found) > limit:
                raise ArchiveError(f"the registry sends more than the {limit} bytes that it said")
    return bytes(found)


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """Make of the libraries' errors one line that says what was wrong."""
    try:
        yield
    except requests.exceptions.SSLError as error:
        raise RegistryError(f"https: {_reason(error)}") from None
    except requests.exceptions.ChunkedEncodingError:
        raise RegistryError("the connection ended in the middle of an answer") from None
    except requests.RequestException as error:
        raise RegistryError(f"cannot be reached: {_reason(error)}") from None
    except OSError as error:
        raise RegistryError(f"{error.filename}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    """Return what stands in the middle of such an error."""
    text = " ".join(str(error).split())
    if "timed out" in text:
        return "it is silent"
    inner = re.search(r"\[(?:Errno -?\d+|SSL: [A-Z_]+)\] ([^'\"()]+)", text)
    return inner[1].strip() if inner else text[:200]
