"""What the driver asks of Airflow, over its REST API: start a day, see how far it is, why it failed."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from storyrec.errors import PlatformError

TIMEOUT_SECONDS = 60.0  # a loaded machine answers late


@dataclass(frozen=True)
class DagRun:
    """One run of a DAG for one partition key."""

    dag_id: str
    run_id: str
    key: str | None
    state: str

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to the run."""
        return self.state in ("success", "failed")


@dataclass(frozen=True)
class TaskRun:
    """One task of a run; `state` is None before it is scheduled."""

    task_id: str
    state: str | None
    try_number: int
    seconds: float | None


class AirflowApi:
    """A logged-in client.

    Args:
        url: address of the API server.
    """

    def __init__(self, url: str, *, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS)
        self._token = ""

    def __enter__(self) -> "AirflowApi":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def answers(self) -> bool:
        """Whether the API server and the scheduler are up."""
        try:
            health = self._http.get("/api/v2/monitor/health", timeout=5.0)
        except httpx.HTTPError:
            return False
        return health.status_code == httpx.codes.OK and health.json()["scheduler"]["status"] == "healthy"

    def dag_ids(self) -> set[str]:
        """The DAGs that have been read so far."""
        return {dag["dag_id"] for dag in self._call("GET", "/api/v2/dags")["dags"]}

    def import_errors(self) -> list[str]:
        """Why DAG files could not be read."""
        return [error["stack_trace"] for error in self._call("GET", "/api/v2/importErrors")["import_errors"]]

    def trigger(self, dag_id: str, *, key: str) -> DagRun:
        """Start a run for a partition key."""
        body = {"logical_date": None, "partition_key": key}
        return _dag_run(self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", json=body))

    def dag_runs(self, dag_id: str, *, key: str) -> list[DagRun]:
        """The runs of a DAG for a partition key, newest first."""
        query = {"order_by": "-run_after", "limit": 100}
        runs = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns", params=query)["dag_runs"]
        return [run for run in map(_dag_run, runs) if run.key == key]

    def any_running(self) -> bool:
        """Whether any run of any DAG is going on."""
        return bool(self._call("GET", "/api/v2/dags/~/dagRuns", params={"state": "running", "limit": 1})["dag_runs"])

    def task_runs(self, run: DagRun) -> list[TaskRun]:
        """The tasks of a run."""
        found = self._call("GET", f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances")
        return [
            TaskRun(
                task_id=task["task_id"],
                state=task["state"],
                try_number=max(task["try_number"], 1),
                seconds=task["duration"],
            )
            for task in found["task_instances"]
        ]

    def log_lines(self, run: DagRun, task: TaskRun) -> list[str]:
        """What the step of a task printed in its last try."""
        path = f"/api/v2/dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances/{task.task_id}/logs/{task.try_number}"
        content = self._call("GET", path, headers={"Accept": "application/json"})["content"]
        return [entry["event"] for entry in content if entry.get("logger") == "storyrec_tasks"]

    def _call(self, method: str, path: str, *, headers: dict[str, str] | None = None, **request: Any) -> dict[str, Any]:
        try:
            for attempt in range(5):
                if not self._token:
                    self._token = (
                        self._http.post("/auth/token", json=self._login).raise_for_status().json()["access_token"]
                    )
                headers = {**(headers or {}), "Authorization": f"Bearer {self._token}"}
                answer = self._http.request(method, path, headers=headers, **request)
                if answer.status_code == httpx.codes.UNAUTHORIZED:
                    self._token = ""
                elif method == "GET" and answer.is_server_error and attempt < 4:
                    time.sleep(1.0)  # SQLite was busy
                else:
                    break
            content: dict[str, Any] = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            detail = f": {error.response.text[:300]}" if isinstance(error, httpx.HTTPStatusError) else ""
            raise PlatformError(
                f"Airflow did not do what was asked ({error}){detail}",
                where=f"{self.url}{path}",
                remedy="look at the logs in var/airflow, then run the same command again",
            ) from error
        return content


def _dag_run(run: dict[str, Any]) -> DagRun:
    return DagRun(dag_id=run["dag_id"], run_id=run["dag_run_id"], key=run["partition_key"], state=run["state"])
