"""Runs of the training pipeline on a Kubeflow cluster, over the v2beta1 REST API.

Needs httpx only, so that Airflow can submit and watch runs without the Kubeflow SDK. A run carries
its idempotency key as display name: whoever asks twice for the same work gets the same run.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx

from storyrec.config import Config
from storyrec.errors import ConfigError, PlatformError

PIPELINE_NAME = "adapt"
TOKEN_PATH = "KF_PIPELINES_SA_TOKEN_PATH"  # Kubeflow's own name for the file of a service account's token
TIMEOUT_SECONDS = 30.0
SUCCEEDED = "SUCCEEDED"
ENDED = frozenset({SUCCEEDED, "SKIPPED", "FAILED", "CANCELED"})


@dataclass(frozen=True)
class PipelineRun:
    """What the API says about a run; `error` names the failed tasks and is empty otherwise."""

    run_id: str
    name: str
    state: str
    created_at: datetime
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self.state in ENDED


class KubeflowClient:
    """The part of the v2beta1 API that one pipeline needs.

    Args:
        endpoint: address of the API server, without `/apis`.
        namespace: profile namespace; sent only to a multi-user installation, others refuse it.
    """

    def __init__(self, endpoint: str, *, namespace: str = "") -> None:
        if not endpoint:
            raise ConfigError(
                "no Kubeflow Pipelines endpoint is set",
                expected="an address such as http://ml-pipeline.kubeflow:8888",
                where="kubeflow.endpoint of the settings",
                remedy='set it, or use profile = "local"',
            )
        self.endpoint = endpoint.rstrip("/")
        self._namespace = namespace
        self._http = httpx.Client(base_url=self.endpoint, timeout=TIMEOUT_SECONDS, headers=_headers())

    def __enter__(self) -> "KubeflowClient":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def submit_once(
        self,
        key: str,
        *,
        experiment: str,
        pipeline: Mapping[str, Any],
        parameters: Mapping[str, Any],
        since: datetime,
    ) -> PipelineRun:
        """Start a run, or find the one that was started for the same key.

        A run that still goes on is always found. One that succeeded is found if it was created after `since`: an
        earlier one did its work for an earlier request. One that failed or was cancelled is never found.

        Args:
            key: idempotency key; becomes the run's display name.
            pipeline: what `read_pipeline` returned.
            parameters: the pipeline's parameters.
            since: when the request for this work began, aware.
        """
        experiment_id = self._experiment_id(experiment)
        for run in self._runs_named(key, experiment_id=experiment_id):
            if not run.ended or (run.state == SUCCEEDED and run.created_at >= since):
                return run
        body = {
            "display_name": key,
            "experiment_id": experiment_id,
            "pipeline_spec": pipeline,
            "runtime_config": {"parameters": parameters},
        }
        return _parse_run(self._call("POST", "/apis/v2beta1/runs", json=body))

    def read_run(self, run_id: str) -> PipelineRun:
        """How a run stands now."""
        return _parse_run(self._call("GET", f"/apis/v2beta1/runs/{run_id}"))

    def terminate_run(self, run_id: str) -> None:
        """Ask the cluster to stop a run; a run that has ended stays as it is."""
        self._call("POST", f"/apis/v2beta1/runs/{run_id}:terminate")

    def _experiment_id(self, name: str) -> str:
        scope = {"namespace": self._namespace} if self._multi_user() else {}
        found = self._call(
            "GET", "/apis/v2beta1/experiments", params={**scope, "filter": _named(name), "page_size": "10"}
        )
        for experiment in found.get("experiments") or ():
            if experiment["display_name"] == name:
                return str(experiment["experiment_id"])
        created = self._call("POST", "/apis/v2beta1/experiments", json={"display_name": name, **scope})
        return str(created["experiment_id"])

    def _multi_user(self) -> bool:
        return bool(self._call("GET", "/apis/v2beta1/healthz").get("multi_user"))

    def _runs_named(self, name: str, *, experiment_id: str) -> list[PipelineRun]:
        """Runs with this display name, newest first."""
        query = {
            "experiment_id": experiment_id,
            "filter": _named(name),
            "sort_by": "created_at desc",
            "page_size": "50",
        }
        found = self._call("GET", "/apis/v2beta1/runs", params=query)
        runs = [_parse_run(run) for run in found.get("runs") or ()]
        return [run for run in runs if run.name == name]

    def _call(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, **request)
            return _content(answer)
        except httpx.HTTPError as error:
            raise _refused(self.endpoint, error) from error


async def wait_for_run(
    endpoint: str, *, run_id: str, poll_seconds: float, timeout_seconds: float, max_failures: int = 20
) -> PipelineRun:
    """Poll a run until it has ended, without holding a thread.

    Args:
        endpoint: address of the API server.
        timeout_seconds: give up after this long.
        max_failures: failed polls in a row that are taken for a passing trouble.

    Raises:
        PlatformError: the run did not end in time, or the API does not answer any more.
    """
    give_up_at = time.monotonic() + timeout_seconds
    failures = 0
    async with httpx.AsyncClient(base_url=endpoint, timeout=TIMEOUT_SECONDS, headers=_headers()) as http:
        while True:
            try:
                run = _parse_run(_content(await http.get(f"/apis/v2beta1/runs/{run_id}")))
                failures = 0
                if run.ended:
                    return run
            except httpx.HTTPError as error:
                failures += 1
                if failures > max_failures:
                    raise _refused(endpoint, error) from error
            if time.monotonic() > give_up_at:
                raise PlatformError(
                    f"the Kubeflow run {run_id} did not end within {timeout_seconds / 3600:.1f} hours",
                    where=endpoint,
                    remedy="look at the run in the Pipelines UI; kubeflow.timeout_hours is the limit",
                )
            await asyncio.sleep(poll_seconds)


async def terminate_run(endpoint: str, *, run_id: str) -> None:
    """`KubeflowClient.terminate_run` for an event loop; an API that does not answer is left alone."""
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(base_url=endpoint, timeout=TIMEOUT_SECONDS, headers=_headers()) as http:
            await http.post(f"/apis/v2beta1/runs/{run_id}:terminate")


def idempotency_key(config: Config, *, day: date) -> str:
    """The name of the work of a day with these settings: pipeline, day, digest of the settings."""
    digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]
    return f"{PIPELINE_NAME}:{day.isoformat()}:{digest}"


def read_pipeline(path: Path) -> dict[str, Any]:
    """A compiled pipeline as the API wants it: pipeline spec and platform spec, both documents of the YAML.

    Raises:
        ConfigError: there is no such file, or it is no compiled pipeline.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        documents = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(
            f"the compiled pipeline cannot be read ({error.strerror})",
            where=f"{path} (kubeflow.package of the settings)",
            remedy=f"write it with: storyrec pipeline {path}",
        ) from error
    except yaml.YAMLError as error:
        raise _no_pipeline(path) from error
    if not documents or not isinstance(documents[0], dict) or "deploymentSpec" not in documents[0]:
        raise _no_pipeline(path)
    platform = documents[1] if len(documents) > 1 else {}
    return {"pipeline_spec": documents[0], "platform_spec": platform}


def _no_pipeline(path: Path) -> ConfigError:
    return ConfigError(
        "the file is no compiled pipeline", where=str(path), remedy=f"write it with: storyrec pipeline {path}"
    )


def _parse_run(run: Mapping[str, Any]) -> PipelineRun:
    state = run.get("state") or "RUNTIME_STATE_UNSPECIFIED"
    created = str(run.get("created_at") or "").replace("Z", "+00:00")
    return PipelineRun(
        run_id=str(run["run_id"]),
        name=str(run.get("display_name", "")),
        state=state,
        created_at=datetime.fromisoformat(created) if created else datetime.min.replace(tzinfo=UTC),
        error=_error_text(run) if state in ENDED - {SUCCEEDED} else "",
    )


def _error_text(run: Mapping[str, Any]) -> str:
    """The messages of the run and of its failed tasks."""
    texts = [str((run.get("error") or {}).get("message", ""))]
    for task in (run.get("run_details") or {}).get("task_details") or ():
        if task.get("state") == "FAILED":
            message = (task.get("error") or {}).get("message", "")
            texts.append(f"{task.get('display_name', task.get('task_id', 'a task'))} failed: {message}".rstrip(": "))
    return "; ".join(text for text in texts if text)


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def _content(answer: httpx.Response) -> dict[str, Any]:
    answer.raise_for_status()
    try:
        content = answer.json() if answer.content else {}
    except ValueError as error:
        raise httpx.DecodingError("the answer is not JSON", request=answer.request) from error
    return content if isinstance(content, dict) else {}


def _headers() -> dict[str, str]:
    path = os.environ.get(TOKEN_PATH)
    return {"Authorization": f"Bearer {Path(path).read_text().strip()}"} if path else {}


def _refused(endpoint: str, error: httpx.HTTPError) -> PlatformError:
    detail = f": {error.response.text[:500]}" if isinstance(error, httpx.HTTPStatusError) else ""
    return PlatformError(
        f"Kubeflow Pipelines did not do what was asked ({error}){detail}",
        expected="an API server that answers /apis/v2beta1",
        where=endpoint,
        remedy="check kubeflow.endpoint, the network and the service account's token",
    )
