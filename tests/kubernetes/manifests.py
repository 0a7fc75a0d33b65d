# SPDX-License-Identifier: Apache-2.0
"""The manifests of examples/, read: documents, pods and their containers, whatever wraps them.

Owns the way from a file to the pod that Kubernetes would run, also for the two snippets that are no
manifests of Kubernetes' own: KServe's service and the values of vLLM's production-stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).parents[2] / "examples"
FILES = sorted(EXAMPLES.glob("*/*.yaml"))
ENGINES = ("vllm", "sglang")
KSERVE = EXAMPLES / "vllm" / "kserve.yaml"
PRODUCTION_STACK = EXAMPLES / "vllm" / "production-stack-values.yaml"

#: Fields of a KServe predictor that are no fields of a pod: `ComponentExtensionSpec` in
#: pkg/apis/serving/v1beta1/component.go of kserve/kserve.
PREDICTOR_FIELDS = {
    "annotations", "batcher", "canaryTrafficPercent", "containerConcurrency", "deploymentStrategy",
    "labels", "logger", "maxReplicas", "minReplicas", "scaleMetric", "scaleTarget", "timeout",
}  # fmt: skip


def name_of(path: Path) -> str:
    """Return how tests call a file: its engine and its name."""
    return f"{path.parent.name}/{path.name}"


def documents(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a file."""
    return [found for found in yaml.safe_load_all(path.read_text()) if found]


def pods(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the spec of each pod that a file leads to."""
    for document in documents(path):
        spec = document.get("spec", {})
        if "template" in spec:
            yield spec["template"]["spec"]
        elif document.get("kind") == "InferenceService":
            predictor = spec["predictor"]
            yield {name: value for name, value in predictor.items() if name not in PREDICTOR_FIELDS}
        elif "servingEngineSpec" in document:
            yield from _pods_of_production_stack(document["servingEngineSpec"])


def _pods_of_production_stack(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the pods of the chart's template, as far as our values are in them.

    helm/templates/deployment-vllm-multi.yaml: the model's volume is at /data, a deployment of
    several GPUs has shared memory, and the probes that the values leave out are the chart's.
    """
    probe = {"initialDelaySeconds": 15, "httpGet": {"path": "/health", "port": 8000}}
    for model in values["modelSpec"]:
        size = str(model["vllmConfig"]["tensorParallelSize"])
        yield {
            "containers": [
                {
                    "name": "vllm",
                    "image": f"{model['repository']}:{model['tag']}",
                    "command": ["vllm", "serve", model["modelURL"], "--tensor-parallel-size", size],
                    "env": model["env"],
                    "ports": [{"name": "container-port", "containerPort": 8000}],
                    "startupProbe": values["startupProbe"],
                    "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 3},
                    "volumeMounts": [
                        {"name": "storage", "mountPath": "/data"},
                        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108  # the pod's own
                    ],
                }
            ],
            "volumes": [
                {"name": "storage", "persistentVolumeClaim": {"claimName": "storage"}},
                {"name": "shm", "emptyDir": {"medium": "Memory"}},
            ],
        }


def engine_of(path: Path) -> dict[str, Any]:
    """Return the container that serves."""
    (pod,) = pods(path)
    (container,) = pod["containers"]
    return dict(container)


def served() -> list[Path]:
    """Return the files whose pod serves: all but the Jobs."""
    return [path for path in FILES if not path.name.startswith("job-")]
