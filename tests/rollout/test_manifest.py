"""KServe's manifest follows the pointer."""

from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml

from storyrec.errors import ConfigError
from storyrec.pointer import Canary, Champion, Pointer
from storyrec.rollout.manifest import inference_service

DEPLOYMENT = Path(__file__).parents[2] / "deploy" / "serving.yaml"
FIRST = Champion("a" * 16, date(2026, 3, 8), "2026-03-09T04:00:00+00:00")
SECOND = Canary("b" * 16, date(2026, 3, 9), "2026-03-10T04:00:00+00:00", share=0.05, since="2026-03-10T05:00:00+00:00")


def test_the_champion_alone() -> None:
    manifest = yaml.safe_load(inference_service(Pointer(FIRST), deployment=DEPLOYMENT))
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert manifest["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert manifest["metadata"]["annotations"]["storyrec/champion"] == FIRST.version
    assert manifest["spec"].keys() == {"predictor"}


def test_a_canary_beside_it_with_its_share_of_the_requests() -> None:
    manifest = yaml.safe_load(inference_service(Pointer(FIRST, SECOND), deployment=DEPLOYMENT))
    (canary,) = manifest["spec"]["canary"]
    assert canary["trafficPercent"] == 5
    assert manifest["metadata"]["annotations"]["storyrec/canary"] == SECOND.version
    predictors = {"champion": manifest["spec"]["predictor"], "canary": canary["predictor"]}
    (pod,) = [d["spec"] for d in yaml.safe_load_all(DEPLOYMENT.read_text()) if d["kind"] == "Deployment"]
    (server,) = pod["template"]["spec"]["containers"]
    for name, predictor in predictors.items():
        (container,) = predictor["containers"]
        assert (predictor["name"], container["name"]) == (name, "kserve-container")
        assert container["args"] == ["--follow", name]
        assert {key: container[key] for key in server if key != "name"} == {k: server[k] for k in server if k != "name"}
        assert predictor["volumes"] == pod["template"]["spec"]["volumes"]
        assert not {key for key in predictor if "scal" in key.lower() or key == "maxReplicas"}  # KServe refuses these
    assert (predictors["champion"]["minReplicas"], predictors["canary"]["minReplicas"]) == (pod["replicas"], 1)


def test_a_shadow_is_nothing_that_kserve_has() -> None:
    with pytest.raises(ConfigError, match=r"has 0\.0% of the users"):
        inference_service(Pointer(FIRST, replace(SECOND, share=0.0)), deployment=DEPLOYMENT)


@pytest.mark.parametrize("content", ["", "kind: Service", "a: [", "- 1"])
def test_manifests_without_a_deployment_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.yaml").write_text(content)
    with pytest.raises(ConfigError, match="no Deployment"):
        inference_service(Pointer(FIRST), deployment=tmp_path / "other.yaml")
    with pytest.raises(ConfigError, match="no Deployment"):
        inference_service(Pointer(FIRST), deployment=tmp_path / "none.yaml")
