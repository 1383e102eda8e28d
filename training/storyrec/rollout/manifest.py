"""KServe's InferenceService for what the registry's pointer says: the champion, and the canary with its traffic.

`spec.canary` needs KServe 0.20 or later in Standard mode. Its gateway splits by request, not by user, so each model's
servers answer with their own bundle alone.
"""

import copy
from pathlib import Path
from typing import Any

import yaml

from storyrec.errors import ConfigError
from storyrec.pointer import Pointer

NAME = "storyrec"


def inference_service(pointer: Pointer, *, deployment: Path) -> str:
    """The manifest as YAML.

    Args:
        pointer: of the registry.
        deployment: manifests whose Deployment says how a server runs: deploy/serving.yaml.

    Raises:
        ConfigError: there is no Deployment in them, or the canary has less than a percent of the users.
    """
    found = _deployment(deployment)
    spec: dict[str, Any] = {"predictor": _predictor(found, follow="champion", replicas=found["replicas"])}
    versions = {"storyrec/champion": pointer.champion.version}
    if pointer.canary is not None:
        share = pointer.canary.share
        if round(100 * share) == 0:
            raise ConfigError(
                f"the canary {pointer.canary.version} has {share:.1%} of the users, and KServe has no shadows",
                expected="a percent at least",
                where="rollout.shares",
                remedy="start with a share, such as [0.05, 0.25]",
            )
        replicas = max(1, round(share * found["replicas"]))
        predictor = _predictor(found, follow="canary", replicas=replicas)
        spec["canary"] = [{"trafficPercent": round(100 * share), "predictor": predictor}]
        versions["storyrec/canary"] = pointer.canary.version
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": NAME, "annotations": {"serving.kserve.io/deploymentMode": "Standard"} | versions},
        "spec": spec,
    }
    return yaml.safe_dump(manifest, sort_keys=False)


def _deployment(path: Path) -> dict[str, Any]:
    try:
        documents = [*yaml.safe_load_all(path.read_text(encoding="utf-8"))]
        return next(document["spec"] for document in documents if document["kind"] == "Deployment")
    except (OSError, yaml.YAMLError, KeyError, TypeError, StopIteration) as error:
        raise ConfigError(
            f"there is no Deployment to be read ({error!r})",
            expected="Kubernetes manifests of the model server",
            where=str(path),
            remedy="name deploy/serving.yaml of the project with --deployment",
        ) from error


def _predictor(deployment: dict[str, Any], *, follow: str, replicas: int) -> dict[str, Any]:
    """The Deployment's pods; KServe finds the server by its container's name and the order of its ports."""
    pod = copy.deepcopy(deployment["template"]["spec"])
    (container,) = pod["containers"]
    container |= {"name": "kserve-container", "args": ["--follow", follow]}
    return {"name": follow, "minReplicas": replicas, **pod}
