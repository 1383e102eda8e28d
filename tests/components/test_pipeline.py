"""The compiled pipeline: what the cluster is told."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from components.pipeline import compile_pipeline

from storyrec.config import Config, Kubeflow, Toleration
from storyrec.errors import StorageError
from storyrec.kubeflow import read_pipeline

GPU_STEPS = {"exec-pretrain-dual", "exec-finetune-aden"}
ALL_STEPS = GPU_STEPS | {
    "exec-build-dataset",
    "exec-fetch-champion",
    "exec-pack-bundle",
    "exec-evaluate-model",
    "exec-bless-model",
    "exec-read-verdict",
    "exec-deploy-model",
    "exec-keep-champion",
}
CONFIG = Config(
    kubeflow=Kubeflow(
        image="registry.example/storyrec:1",
        gpu_node_selector={"pool": "gpu"},
        gpu_tolerations=(Toleration(key="gpu", operator="Equal", value="yes", effect="NoExecute"),),
    )
)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("pipeline") / "pipeline.yaml"
    compile_pipeline(CONFIG, out)
    assert set(read_pipeline(out)) == {"pipeline_spec", "platform_spec"}
    return list(yaml.safe_load_all(out.read_text()))


def executors(documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: found["container"] for name, found in documents[0]["deploymentSpec"]["executors"].items()}


def tasks(documents: list[dict[str, Any]]) -> dict[str, Any]:
    dags = [documents[0]["root"]["dag"]]
    dags += [component["dag"] for component in documents[0]["components"].values() if "dag" in component]
    return {name: task for dag in dags for name, task in dag["tasks"].items()}


def test_two_documents_and_two_parameters(documents: list[dict[str, Any]]) -> None:
    assert len(documents) == 2
    assert set(documents[0]["root"]["inputDefinitions"]["parameters"]) == {"day", "config_json"}


def test_every_component_runs_in_the_image_of_the_settings_and_installs_nothing(
    documents: list[dict[str, Any]],
) -> None:
    assert set(executors(documents)) == ALL_STEPS
    for container in executors(documents).values():
        assert container["image"] == "registry.example/storyrec:1"
        assert "pip install" not in " ".join(container["command"])


def test_the_training_steps_alone_ask_for_a_gpu(documents: list[dict[str, Any]]) -> None:
    asking = {name for name, container in executors(documents).items() if "accelerator" in str(container)}
    assert asking == GPU_STEPS
    for name in GPU_STEPS:
        accelerator = executors(documents)[name]["resources"]["accelerator"]
        assert accelerator["resourceType"] == "nvidia.com/gpu"
        assert accelerator["resourceCount"] == "1"
    placed = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(placed) == GPU_STEPS
    for place in placed.values():
        assert place["nodeSelector"]["labels"] == {"pool": "gpu"}
        assert place["tolerations"] == [{"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"}]


def test_nothing_is_cached_and_every_step_is_tried_again(documents: list[dict[str, Any]]) -> None:
    steps = {name: task for name, task in tasks(documents).items() if not name.startswith("condition")}
    assert {f"exec-{name}" for name in steps} == ALL_STEPS
    for task in steps.values():
        assert not task["cachingOptions"].get("enableCache")
        assert task["retryPolicy"]["maxRetryCount"] == 2


def test_the_branch_hangs_on_a_component_with_one_plain_output_and_has_an_else(
    documents: list[dict[str, Any]],
) -> None:
    """kfp.local takes neither branch, and reports success, where a condition reads one of several outputs."""
    conditions = [
        task["triggerPolicy"]["condition"] for name, task in tasks(documents).items() if "triggerPolicy" in task
    ]
    assert len(conditions) == 2
    plain, negated = sorted(conditions, key=lambda text: text.startswith("!"))
    assert negated == f"!({plain})"
    assert "read-verdict-Output" in plain
    outputs = documents[0]["components"]["comp-read-verdict"]["outputDefinitions"]
    assert outputs == {"parameters": {"Output": {"parameterType": "BOOLEAN"}}}


def test_figures_report_and_verdict_are_artifacts_that_the_ui_shows(documents: list[dict[str, Any]]) -> None:
    def kinds(component: str) -> dict[str, str]:
        artifacts = documents[0]["components"][component]["outputDefinitions"]["artifacts"]
        return {name: artifact["artifactType"]["schemaTitle"] for name, artifact in artifacts.items()}

    shown = kinds("comp-evaluate-model")
    assert (shown["metrics"], shown["report"]) == ("system.Metrics", "system.HTML")
    judged = kinds("comp-bless-model")
    assert (judged["reasons"], judged["report"]) == ("system.Markdown", "system.HTML")


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        compile_pipeline(CONFIG, tmp_path / "file" / "pipeline.yaml")
