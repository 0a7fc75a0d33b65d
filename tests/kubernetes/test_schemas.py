# SPDX-License-Identifier: Apache-2.0
"""The manifests hold against the schemas of Kubernetes, and say the same wherever they say it.

The schemas are Kubernetes' own (package kubernetes-validate). What the schemas of KServe and of
vLLM's production-stack have beyond a pod stands in `manifests.py` and here, with its source.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.kubernetes import manifests
from warmup_plugin.settings import Settings

#: The oldest and the newest release whose schemas are there and that get fixes.
RELEASES = ["1.34", "1.37"]
PAGE = manifests.EXAMPLES.parent / "docs" / "kubernetes.md"
ALL = [pytest.param(path, id=manifests.name_of(path)) for path in manifests.FILES]
SERVED = [pytest.param(path, id=manifests.name_of(path)) for path in manifests.served()]
#: What the page says of `failureThreshold`, by what a start of that manifest does.
TUNES, READS = 720, 90
#: What the model entries of the chart may hold, and must: helm/values.schema.json of
#: vllm-project/production-stack at e9ba5fa, with the volume's access mode, which its values.yaml
#: explains and its schema leaves out.
MODEL_MAY: dict[str, type] = {
    "name": str, "repository": str, "tag": str, "modelURL": str, "replicaCount": int,
    "requestCPU": int, "requestMemory": str, "requestGPU": int, "pvcStorage": str,
    "pvcAccessMode": list, "vllmConfig": dict, "env": list,
}  # fmt: skip
MODEL_MUST = {*MODEL_MAY} - {"pvcAccessMode", "vllmConfig", "env"}


def as_pod(spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}


def validate(document: dict[str, Any], release: str) -> None:
    kubernetes_validate.validate(document, release, strict=True)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("path", ALL)
def test_it_is_what_kubernetes_takes(path: Path, release: str) -> None:
    """Every document of Kubernetes' own, and the pod of every file; strictly."""
    own = [d for d in manifests.documents(path) if d.get("apiVersion", "") in KUBERNETES]
    found = [*own, *map(as_pod, manifests.pods(path))]
    assert found
    for document in found:
        validate(document, release)


KUBERNETES = {"v1", "apps/v1", "batch/v1"}


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        pytest.param('"failureThreshold"', '"failureTreshold"', id="misspelt"),
        pytest.param('"periodSeconds": 10', '"periodSeconds": "10"', id="text for a number"),
        pytest.param('"httpGet": {"path"', '"httpGet": {"paths"', id="another field"),
    ],
)
def test_a_broken_manifest_is_refused(was: str, becomes: str) -> None:
    """The control: the schemas that are asked are strict."""
    (deployment,) = manifests.documents(manifests.EXAMPLES / "vllm" / "deployment-baked.yaml")
    text = json.dumps(deployment)
    assert was in text
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(json.loads(text.replace(was, becomes)), RELEASES[-1])


def test_the_service_of_kserve() -> None:
    """Its pod is held above; around it: a predictor with one container of the name KServe knows."""
    (service,) = manifests.documents(manifests.KSERVE)
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    assert set(service) == {"apiVersion", "kind", "metadata", "spec"}
    assert set(service["spec"]) == {"predictor"}
    assert service["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Standard"}
    (container,) = service["spec"]["predictor"]["containers"]
    assert container["name"] == "kserve-container"
    volume = manifests.documents(manifests.EXAMPLES / "vllm" / "deployment-volume.yaml")[0]
    volumes = service["spec"]["predictor"]["volumes"]
    claims = [v["persistentVolumeClaim"] for v in volumes if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": volume["metadata"]["name"]}]


def test_the_values_of_the_production_stack() -> None:
    """Fields and types of the chart's schema, none of them unknown, none missing."""
    (values,) = manifests.documents(manifests.PRODUCTION_STACK)
    assert set(values) == {"servingEngineSpec"}
    assert set(values["servingEngineSpec"]) == {"startupProbe", "modelSpec"}
    for model in values["servingEngineSpec"]["modelSpec"]:
        assert set(model) >= MODEL_MUST
        wrong = [n for n, v in model.items() if not isinstance(v, MODEL_MAY.get(n, ()))]
        assert wrong == []
        assert set(model["vllmConfig"]) == {"tensorParallelSize"}
        assert all(set(row) == {"name", "value"} for row in model["env"])


@pytest.mark.parametrize("path", SERVED)
def test_the_probes_are_the_engines_own(path: Path) -> None:
    """`/health` at the port that is opened, and nothing that could pass before it answers."""
    engine = manifests.engine_of(path)
    (port,) = {port["containerPort"] for port in engine["ports"]}
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        if name == "readinessProbe" and path == manifests.PRODUCTION_STACK:
            continue  # the chart's template has none
        assert engine[name]["httpGet"] == {"path": "/health", "port": port}
        assert not {"exec", "tcpSocket", "grpc"} & set(engine[name])
        if path.parent.name == "sglang":  # its /health sleeps for a second, and waits for 20
            assert engine[name]["timeoutSeconds"] > 20


@pytest.mark.parametrize("path", SERVED)
def test_the_budget_is_that_of_the_page(path: Path) -> None:
    """Two hours where a start may tune, a quarter of an hour where it must not."""
    engine = manifests.engine_of(path)
    modes = [row["value"] for row in engine["env"] if row["name"] == "WARMUP_PLUGIN_MODE"]
    assert modes in ([], ["require-complete"])
    probe = engine["startupProbe"]
    assert probe["failureThreshold"] == (READS if modes else TUNES)
    assert probe["periodSeconds"] == 10
    said = re.findall(r"^\| .* \| 10 \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    assert {str(TUNES), str(READS)} <= set(said)


@pytest.mark.parametrize("path", ALL)
def test_what_it_names_is_there(path: Path) -> None:
    """Mounts have volumes, volumes are mounted, settings exist."""
    known = {row.metadata["variable"] for row in Settings.__dataclass_fields__.values()}
    known |= {"VLLM_CACHE_ROOT", "SGLANG_CACHE_DIR", "HOME"}
    for pod in manifests.pods(path):
        every = [*pod.get("initContainers", []), *pod["containers"]]
        mounted = {mount["name"] for each in every for mount in each.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod["volumes"]}
        assert {row["name"] for each in every for row in each.get("env", [])} <= known


def test_both_engines_have_the_same_manifests() -> None:
    """But for names, port, command, the variable of the root and what `/health` takes."""
    for path in sorted((manifests.EXAMPLES / "vllm").glob("*-*.yaml")):
        if path != manifests.PRODUCTION_STACK:
            other = manifests.EXAMPLES / "sglang" / path.name
            assert plain(path) == plain(other)


#: Of vLLM, of SGLang; both become the first.
SAME = [
    ('serve, my/model, --tensor-parallel-size, "8"]',
     'serve, --model-path, my/model, --tp-size, "8"]'),
    ('[vllm, serve, my/model, --tensor-parallel-size, "8"]',
     '[sglang, serve, --model-path, my/model, --tp-size, "8", --host, 0.0.0.0]'),
    ("FROM vllm/vllm-openai", "FROM lmsysorg/sglang"),
    ("VLLM_CACHE_ROOT", "SGLANG_CACHE_DIR"), (":0.33.0", ":0.5.23"), ("8000", "30000"),
    ("timeoutSeconds: 5", "timeoutSeconds: 30"), ("vLLM", "SGLang"), ("vllm", "sglang"),
]  # fmt: skip


def plain(path: Path) -> str:
    text = re.sub(r"  # SGLang's /health .*", "", path.read_text())
    liveness, of = r"(livenessProbe:\n.*\n +periodSeconds:) (?:10|30)\b", r"\1 N"
    text = re.sub(liveness, of, text)
    for vllm, sglang in SAME:
        text = text.replace(sglang, vllm)
    return text


#: The blocks of the page's section on figures, which no manifest needs.
OF_NO_FILE = 2


def test_the_page_shows_what_the_files_say() -> None:
    """Each block of YAML stands in one of them, line by line; the rest fits into a pod."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    texts = [squeezed(path.read_text()) for path in manifests.FILES]
    rest = [block for block in blocks if not any(squeezed(block) in text for text in texts)]
    assert len(blocks) - len(rest) >= 4
    assert len(rest) == OF_NO_FILE
    for block in rest:
        fields = yaml.safe_load(block)
        volumes = fields.pop("volumes", [])
        container = {"name": "engine", "image": "my/engine", **fields}
        validate(as_pod({"containers": [container], "volumes": volumes}), RELEASES[-1])


def squeezed(text: str) -> str:
    """Return a text without its indentation."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())
