"""Runs on a cluster, against a server that speaks the API."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from kubeflow_server import KubeflowServer, kubeflow_server
from storyrec.config import Config, Gate
from storyrec.errors import ConfigError, PlatformError
from storyrec.kubeflow import (
    TOKEN_PATH,
    KubeflowClient,
    PipelineRun,
    idempotency_key,
    read_pipeline,
    terminate_run,
    wait_for_run,
)

DAY = date(2026, 3, 9)
KEY = "adapt:2026-03-09:abc"
PIPELINE = {"pipeline_spec": {"deploymentSpec": {}}, "platform_spec": {"platforms": {}}}


@pytest.fixture
def server() -> Iterator[KubeflowServer]:
    with kubeflow_server() as server:
        yield server


def submit(server: KubeflowServer, *, key: str = KEY, since: datetime | None = None) -> PipelineRun:
    with KubeflowClient(server.url, namespace="team") as client:
        return client.submit_once(
            key,
            experiment="storyrec",
            pipeline=PIPELINE,
            parameters={"day": "2026-03-09"},
            since=since or datetime.now(UTC) - timedelta(minutes=1),
        )


def wait(server: KubeflowServer, run_id: str, *, timeout_seconds: float = 60.0, max_failures: int = 20) -> PipelineRun:
    return asyncio.run(
        wait_for_run(
            server.url,
            run_id=run_id,
            poll_seconds=0.0,
            timeout_seconds=timeout_seconds,
            max_failures=max_failures,
        )
    )


def test_a_run_carries_the_key_both_specs_and_the_parameters(server: KubeflowServer) -> None:
    run = submit(server)
    (sent,) = server.runs
    assert (run.run_id, run.name, run.state) == ("run-0", KEY, "PENDING")
    assert sent["pipeline_spec"] == PIPELINE
    assert sent["runtime_config"] == {"parameters": {"day": "2026-03-09"}}
    assert server.experiments == [{"display_name": "storyrec", "experiment_id": "experiment-0"}]


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "CANCELING", "PAUSED", "", None])
def test_a_run_that_goes_on_is_found_again(server: KubeflowServer, state: str | None) -> None:
    first = submit(server)
    server.runs[0]["state"] = state
    assert submit(server).run_id == first.run_id
    assert len(server.runs) == len(server.experiments) == 1


@pytest.mark.parametrize("state", ["FAILED", "CANCELED", "SKIPPED"])
def test_a_run_that_failed_is_started_anew(server: KubeflowServer, state: str) -> None:
    first = submit(server)
    server.runs[0]["state"] = state
    assert submit(server).run_id != first.run_id


def test_a_success_counts_for_the_request_that_it_was_made_for(server: KubeflowServer) -> None:
    first = submit(server)
    server.runs[0]["state"] = "SUCCEEDED"
    assert submit(server).run_id == first.run_id
    later = datetime.now(UTC) + timedelta(minutes=1)
    assert submit(server, since=later).run_id != first.run_id


def test_another_key_is_other_work(server: KubeflowServer) -> None:
    assert submit(server, key="adapt:2026-03-10:abc").run_id != submit(server).run_id


def test_only_a_multi_user_installation_is_told_the_namespace(server: KubeflowServer) -> None:
    server.multi_user = True
    submit(server)
    assert server.experiments[0]["namespace"] == "team"


def test_the_key_follows_day_and_settings() -> None:
    key = idempotency_key(Config(), day=DAY)
    assert key.startswith("adapt:2026-03-09:")
    assert key == idempotency_key(Config(), day=DAY)
    assert key != idempotency_key(Config(), day=date(2026, 3, 10))
    assert key != idempotency_key(Config(gate=Gate(min_users=300)), day=DAY)


def test_waiting_ends_with_the_run(server: KubeflowServer) -> None:
    run = submit(server)
    server.states = ["PENDING", "RUNNING", "RUNNING", "SUCCEEDED"]
    ended = wait(server, run.run_id)
    assert (ended.state, ended.error) == ("SUCCEEDED", "")
    assert not server.states


def test_a_failed_run_names_the_failed_tasks(server: KubeflowServer) -> None:
    run = submit(server)
    server.states = ["FAILED"]
    server.runs[0]["error"] = {"message": "the run failed"}
    server.runs[0]["run_details"] = {
        "task_details": [
            {"display_name": "build-dataset", "state": "SUCCEEDED"},
            {"display_name": "pretrain-dual", "state": "FAILED", "error": {"message": "exit code 2"}},
        ]
    }
    assert wait(server, run.run_id).error == "the run failed; pretrain-dual failed: exit code 2"


def test_passing_trouble_is_waited_out(server: KubeflowServer) -> None:
    run = submit(server)
    server.errors, server.states = 3, ["SUCCEEDED"]
    assert wait(server, run.run_id).state == "SUCCEEDED"


def test_lasting_trouble_is_an_error(server: KubeflowServer) -> None:
    run = submit(server)
    server.errors = 100
    with pytest.raises(PlatformError, match="503"):
        wait(server, run.run_id, max_failures=2)
    assert server.errors == 97


def test_a_run_that_does_not_end_is_given_up(server: KubeflowServer) -> None:
    run = submit(server)
    with pytest.raises(PlatformError, match="did not end"):
        wait(server, run.run_id, timeout_seconds=-1.0)


def test_terminate(server: KubeflowServer) -> None:
    with KubeflowClient(server.url) as client:
        client.terminate_run(submit(server).run_id)
    assert server.runs[0]["state"] == "CANCELING"
    server.runs[0]["state"] = "RUNNING"
    asyncio.run(terminate_run(server.url, run_id="run-0"))
    assert server.runs[0]["state"] == "CANCELING"


def test_the_service_accounts_token_is_sent(
    server: KubeflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("secret\n")
    monkeypatch.setenv(TOKEN_PATH, str(tmp_path / "token"))
    submit(server)
    assert server.tokens == {"Bearer secret"}


def test_no_endpoint_and_a_dead_one_say_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"kubeflow\.endpoint"):
        KubeflowClient("")
    with KubeflowClient("http://127.0.0.1:1") as client, pytest.raises(PlatformError, match="what to do"):
        client.read_run("run-0")


def test_both_documents_of_a_compiled_pipeline_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text("deploymentSpec: {a: 1}\n---\nplatforms: {kubernetes: {}}\n")
    assert read_pipeline(file) == {
        "pipeline_spec": {"deploymentSpec": {"a": 1}},
        "platform_spec": {"platforms": {"kubernetes": {}}},
    }


@pytest.mark.parametrize("content", [None, "", "a: [", "a: 1"])
def test_what_is_no_pipeline_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "pipeline.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match="storyrec pipeline"):
        read_pipeline(file)
