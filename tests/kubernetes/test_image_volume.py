# SPDX-License-Identifier: Apache-2.0
"""The pod of the page on registries: Kubernetes takes it, and it reads what the image has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from warmup_plugin.cache.image import CACHE

PAGE = Path(__file__).parents[2] / "docs" / "registry.md"


def pod() -> dict[str, Any]:
    """Return the pod around what the page shows."""
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    metadata = {"name": "pod"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": yaml.safe_load(block)}


@pytest.mark.parametrize("release", ["1.34", "1.37"])
def test_it_is_what_kubernetes_takes(release: str) -> None:
    """Strictly; and a field of another name is refused."""
    kubernetes_validate.validate(pod(), release, strict=True)
    broken = pod()
    image = broken["spec"]["volumes"][0]["image"]
    image["refrence"] = image.pop("reference")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, release, strict=True)


def test_it_reads_where_the_image_has_tables() -> None:
    """The mount, the layer and the folder of the image fit together."""
    (container,), (volume,) = pod()["spec"]["containers"], pod()["spec"]["volumes"]
    (mount,) = container["volumeMounts"]
    (layers,) = [row["value"] for row in container["env"] if row["name"] == "WARMUP_PLUGIN_LAYERS"]
    assert (mount["name"], layers) == (volume["name"], f"{mount['mountPath']}/{CACHE}")
    assert re.fullmatch(r"[^:@]+@sha256:[0-9a-f]{64}", volume["image"]["reference"])
