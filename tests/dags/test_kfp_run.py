"""The operator of the training pipeline, against a server that speaks Kubeflow's API."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred
from airflow.triggers.base import BaseTrigger

from kfp_run import KfpRunOperator, KfpRunTrigger
from kubeflow_server import KubeflowServer, kubeflow_server
from storyrec.config import Config, Kubeflow, Locations, config_from_json, save_config


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeflowServer]:
    """A cluster that the settings name."""
    package = tmp_path / "pipeline.yaml"
    package.write_text("deploymentSpec: {}\n---\nplatforms: {kubernetes: {}}\n")
    with kubeflow_server() as server:
        kubeflow = Kubeflow(endpoint=server.url, package=str(package), poll_seconds=0.001)
        locations = Locations(work="s3://bucket/work")
        save_config(Config(profile="cluster", kubeflow=kubeflow, locations=locations), tmp_path / "settings.toml")
        monkeypatch.setenv("STORYREC_CONFIG", str(tmp_path / "settings.toml"))
        yield server


def context() -> Any:
    started = datetime.now(UTC) - timedelta(minutes=1)
    return {"dag_run": SimpleNamespace(partition_key="2026-03-09", start_date=started, run_after=started)}


def deferred(operator: KfpRunOperator) -> TaskDeferred:
    with pytest.raises(TaskDeferred) as caught:
        operator.execute(context())
    return caught.value


def events(trigger: BaseTrigger) -> list[dict[str, Any]]:
    async def collect() -> list[dict[str, Any]]:
        return [event.payload async for event in trigger.run()]

    return asyncio.run(collect())


def test_a_run_is_submitted_waited_for_and_finished(server: KubeflowServer, capsys: pytest.CaptureFixture[str]) -> None:
    operator = KfpRunOperator(task_id="train_adapt")
    waiting = deferred(operator)
    (run,) = server.runs
    parameters = run["runtime_config"]["parameters"]
    assert parameters["day"] == "2026-03-09"
    assert config_from_json(parameters["config_json"]).profile == "cluster"
    assert waiting.method_name == "finish"
    server.states = ["RUNNING", "SUCCEEDED"]
    (event,) = events(waiting.trigger)
    report = "s3://bucket/work/runs/dt=2026-03-09/report.html"
    assert operator.finish(context(), event) == report
    assert f"report: {report}" in capsys.readouterr().out.splitlines()[-1]


def test_a_retried_task_does_not_start_a_second_run(server: KubeflowServer) -> None:
    deferred(KfpRunOperator(task_id="train_adapt"))
    server.runs[0]["state"] = "RUNNING"
    again = deferred(KfpRunOperator(task_id="train_adapt"))
    assert len(server.runs) == 1
    assert again.trigger.run_id == "run-0"


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_failed_fails_the_task_with_id_and_error(server: KubeflowServer, state: str) -> None:
    operator = KfpRunOperator(task_id="train_adapt")
    waiting = deferred(operator)
    server.states = [state]
    server.runs[0]["error"] = {"message": "out of memory"}
    (event,) = events(waiting.trigger)
    with pytest.raises(AirflowException, match=f"run-0 is {state}: out of memory"):
        operator.finish(context(), event)


def test_a_run_that_cannot_be_watched_fails_the_task(server: KubeflowServer) -> None:
    operator = KfpRunOperator(task_id="train_adapt")
    trigger = deferred(operator).trigger
    server.errors = 1_000
    (event,) = events(trigger)
    with pytest.raises(AirflowException, match="run-0 is UNKNOWN"):
        operator.finish(context(), event)


def test_a_killed_task_terminates_the_run(server: KubeflowServer) -> None:
    operator = KfpRunOperator(task_id="train_adapt")
    waiting = deferred(operator)
    operator.on_kill()
    assert server.runs[0]["state"] == "CANCELING"
    server.runs[0]["state"] = "RUNNING"
    asyncio.run(waiting.trigger.on_kill())  # killed while it was waiting
    assert server.runs[0]["state"] == "CANCELING"


def test_the_triggerer_can_build_the_trigger_again(server: KubeflowServer) -> None:
    trigger = deferred(KfpRunOperator(task_id="train_adapt")).trigger
    path, arguments = trigger.serialize()
    assert path == f"{KfpRunTrigger.__module__}.{KfpRunTrigger.__name__}"
    assert KfpRunTrigger(**arguments).serialize() == (path, arguments)


def test_wrong_settings_are_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_config(Config(profile="cluster"), tmp_path / "settings.toml")
    monkeypatch.setenv("STORYREC_CONFIG", str(tmp_path / "settings.toml"))
    with pytest.raises(AirflowFailException, match="no Kubeflow Pipelines endpoint"):
        KfpRunOperator(task_id="train_adapt").execute(context())


def test_a_cluster_that_does_not_answer_is_tried_again(server: KubeflowServer) -> None:
    server.errors = 1
    with pytest.raises(AirflowException, match="503") as caught:
        KfpRunOperator(task_id="train_adapt").execute(context())
    assert not isinstance(caught.value, AirflowFailException)


def test_on_one_machine_the_pipeline_is_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "interpreter"
    program.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("STORYREC_PYTHON", str(program))
    monkeypatch.delenv("STORYREC_CONFIG", raising=False)
    report = KfpRunOperator(task_id="train_adapt").execute(context())
    assert report == f"{Locations().work}/runs/dt=2026-03-09/report.html"
    assert (tmp_path / "called").read_text() == "-m storyrec.cli train-adapt --day 2026-03-09\n"
