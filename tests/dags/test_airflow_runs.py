"""A real Airflow: what starts by itself, what is lost and found, what a backfill does."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from storyrec.airflow_api import AirflowApi, DagRun
from storyrec.airflow_local import AirflowLocal
from storyrec.config import Airflow, Config, Locations
from storyrec.drive import CHAIN, DAGS

FILES = Path(__file__).parents[2] / "dags"
DEADLINE_SECONDS = 240

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_500)]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AirflowLocal, AirflowApi]]:
    """An Airflow whose steps do nothing and whose `reconcile` waits for nothing."""
    root = tmp_path_factory.mktemp("airflow")
    shutil.copytree(FILES, root / "dags")
    reconcile = root / "dags" / "reconcile.py"
    reconcile.write_text(reconcile.read_text().replace("GRACE = timedelta(hours=1)", "GRACE = timedelta(0)"))
    steps = root / "steps"
    steps.write_text("#!/bin/sh\nexit 0\n")
    steps.chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    local = AirflowLocal(root / "home", dags=root / "dags")
    config = Config(airflow=Airflow(port=port), locations=Locations(work=str(root / "work")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYREC_PYTHON", str(steps))
        login = local.start(config, watched=True, keep_history=False)
    try:
        with AirflowApi(login.url, user=login.user, password=login.password) as api:
            until(lambda: api.answers() and api.dag_ids() >= DAGS)
            yield local, api
    finally:
        local.stop(clean=False)


def until(done: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + DEADLINE_SECONDS
    while not done():
        assert time.monotonic() < give_up_at
        time.sleep(0.5)


def pause(api: AirflowApi, dag_id: str, *, paused: bool) -> None:
    api._call("PATCH", f"/api/v2/dags/{dag_id}", json={"is_paused": paused})


def finished(api: AirflowApi, dag_id: str, key: str) -> list[DagRun]:
    return [run for run in api.dag_runs(dag_id, key=key) if run.ended]


def reconcile(api: AirflowApi) -> dict[str, str | None]:
    started = api._call("POST", "/api/v2/dags/reconcile/dagRuns", json={"logical_date": None})
    run = DagRun("reconcile", started["dag_run_id"], None, "queued")
    path = f"/api/v2/dags/reconcile/dagRuns/{run.run_id}"
    until(lambda: api._call("GET", path)["state"] in ("success", "failed"))
    return {task.task_id: task.state for task in api.task_runs(run)}


def test_nothing_starts_by_itself(airflow: tuple[AirflowLocal, AirflowApi]) -> None:
    _, api = airflow
    for dag_id in DAGS - {"rollout"}:  # which looks for a canary every ten minutes
        assert api._call("GET", f"/api/v2/dags/{dag_id}/dagRuns")["dag_runs"] == []


def test_a_partition_whose_event_was_lost_is_found_and_started(airflow: tuple[AirflowLocal, AirflowApi]) -> None:
    _, api = airflow
    key = "2026-03-20"
    pause(api, "build_features", paused=True)  # a paused DAG does not get the events of that time
    api.trigger("validate_logs", key=key)
    until(lambda: bool(finished(api, "validate_logs", key)))
    pause(api, "build_features", paused=False)
    assert api.dag_runs("build_features", key=key) == []

    assert reconcile(api) == {"validated_logs": "success", "features": "skipped", "model": "skipped"}
    until(lambda: bool(finished(api, "publish_features", key)))
    assert set(reconcile(api).values()) == {"skipped"}
    for dag_id in CHAIN:
        assert [run.state for run in api.dag_runs(dag_id, key=key)] == ["success"]


def test_the_report_of_a_day_is_a_link_of_its_task_for_who_is_logged_in(
    airflow: tuple[AirflowLocal, AirflowApi],
) -> None:
    local, api = airflow
    run = api.trigger("train_adapt", key="2026-03-25")
    until(lambda: bool(finished(api, "train_adapt", "2026-03-25")))
    links = api._call("GET", f"/api/v2/dags/train_adapt/dagRuns/{run.run_id}/taskInstances/train_adapt/links")
    address = f"{api.url}/storyrec/reports/2026-03-25"
    assert links["extra_links"] == {"Report": address}

    def status(token: str) -> int:
        return httpx.get(address, headers={"Authorization": f"Bearer {token}"}).status_code

    assert (httpx.get(address).status_code, status("none"), status(api._token)) == (401, 403, 404)
    folder = Path(local.running_config().locations.work) / "runs" / "dt=2026-03-25"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>a report</p>")
    assert status(api._token) == 200
    assert (httpx.get(address).status_code, status("none")) == (401, 403)


def test_a_backfill_takes_its_days_through_all_dags(airflow: tuple[AirflowLocal, AirflowApi]) -> None:
    local, api = airflow
    days = ["2026-03-02", "2026-03-03"]
    command = [sys.executable, "-m", "airflow", "backfill", "create", "--dag-id", "validate_logs"]
    command += ["--from-date", days[0], "--to-date", f"{days[1]}T23:59", "--max-active-runs", "1"]
    environment = {**os.environ, "AIRFLOW_HOME": str(local.home), "PYTHONPATH": str(local.dags)}
    environment |= {"AIRFLOW__CORE__DAGS_FOLDER": str(local.dags), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    for _ in range(2):  # the second time finds that the days are done
        # Airflow refuses a second backfill until its scheduler has closed the first
        until(lambda: subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0)
        until(lambda: all(finished(api, "publish_features", day) for day in days))
    for dag_id in CHAIN:
        for day in ["2026-03-01", *days, "2026-03-04"]:
            assert [run.state for run in api.dag_runs(dag_id, key=day)] == (["success"] if day in days else [])
