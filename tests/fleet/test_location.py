# SPDX-License-Identifier: Apache-2.0
"""Where a fleet is, and when it is asked at all: addresses and credentials."""

from __future__ import annotations

import pytest

from warmup_plugin.errors import SettingError
from warmup_plugin.fleet.location import lacking, parse
from warmup_plugin.fleet.objects import _shown
from warmup_plugin.settings import Settings

GOOD = {
    "s3://bucket": ("s3", "bucket", ""),
    "s3://bucket/a/b/": ("s3", "bucket", "a/b"),
    "gs://my-bucket/tables": ("gs", "my-bucket", "tables"),
    "az://container/x": ("az", "container", "x"),
    "file:///mnt/shared tables": ("file", "", "/mnt/shared tables"),
}
BAD = [
    "bucket", "s3:/bucket", "s3://", "s3://key:secret@bucket/x", "s3://bucket/x?versionId=1",
    "s3://bucket/../other", "file://relative", "file:///", "http://bucket/x", "s3://bucket/a b",
    "file:///mnt/../etc", "s3://bucket/x#y",
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), GOOD.items())
def test_a_location(text: str, expected: tuple[str, str, str]) -> None:
    """Read as it is meant."""
    assert parse(text) == expected
    assert Settings.from_env({"WARMUP_PLUGIN_FLEET": text}).fleet == text


@pytest.mark.parametrize("text", BAD)
def test_no_location(text: str) -> None:
    """Refused with the variable, the value and the rule, before any start begins."""
    with pytest.raises(SettingError, match=r"WARMUP_PLUGIN_FLEET is .*: must be s3://BUCKET"):
        Settings.from_env({"WARMUP_PLUGIN_FLEET": text})


@pytest.mark.parametrize("text", ["localhost:8000/health", "ftp://x/y", "http://u:p@host/health"])
def test_no_health_page(text: str) -> None:
    """The same for the page that is asked whether the engine serves."""
    with pytest.raises(SettingError, match="WARMUP_PLUGIN_FLEET_HEALTH"):
        Settings.from_env({"WARMUP_PLUGIN_FLEET_HEALTH": text})


@pytest.mark.parametrize(
    ("url", "environ", "asks"),
    [
        ("s3://b", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, True),
        ("s3://b", {"AWS_WEB_IDENTITY_TOKEN_FILE": "/t", "AWS_ROLE_ARN": "r"}, True),
        ("s3://b", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://169.254.170.23/v1"}, True),
        ("s3://b", {"AWS_ACCESS_KEY_ID": "k"}, False),
        ("s3://b", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "s"}, False),
        ("gs://b", {"GOOGLE_APPLICATION_CREDENTIALS": "/key.json"}, True),
        ("gs://b", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, False),
        ("az://c", {"AZURE_STORAGE_SAS_TOKEN": "t"}, True),
        ("az://c", {"AZURE_CLIENT_ID": "i", "AZURE_TENANT_ID": "t"}, False),
        ("file:///x", {}, True),
    ],
)
def test_only_credentials_that_were_given(url: str, environ: dict[str, str], asks: bool) -> None:  # noqa: FBT001  # a table
    """Without them a client would look for some at the machine's metadata service."""
    place = parse(url)
    assert (not lacking(place, "given", environ)) is asks
    assert not lacking(place, "anonymous", environ)
    assert not lacking(place, "instance", environ)


def test_what_a_store_says_is_told_without_signatures() -> None:
    """An address that is signed would be a key in a log."""
    text = (
        "HTTP error for https://account.blob.core.windows.net/c/v1/ptr?sv=2024&sig=SECRET (timeout)"
    )
    assert "SECRET" not in _shown(text)
    assert _shown(
        "Generic S3 error: Error performing GET http://h/b/k in 7ms, after 1 retries - x: 503"
    ) == ("Generic S3 error: x: 503")
