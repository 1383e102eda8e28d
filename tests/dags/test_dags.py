"""The DAGs: what runs after what, when, and by which policy."""

import ast
import importlib
import json
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from airflow.sdk import DAG

from storyrec_tasks import FEATURES, MODEL, PUBLISHED_FEATURES, VALIDATED_LOGS, alert

DAGS = Path(__file__).parents[2] / "dags"
EDGES = {
    "validate_logs": {"catch_up": {"validate"}, "validate": set()},
    "build_features": {"build": {"materialize"}, "materialize": {"embed"}, "embed": set()},
    "train_adapt": {"train_adapt": set()},
    "publish_features": {"publish": set()},
    "features_slo": {"freshness": set(), "drift": set()},
    "rollout": {"advance": {"publish"}, "publish": set()},
    "reconcile": {"validated_logs": set(), "features": set(), "model": set()},
}


@pytest.fixture(scope="module", params=sorted(EDGES))
def dag(request: pytest.FixtureRequest) -> DAG:
    found = importlib.import_module(request.param).dag
    assert found.dag_id == request.param
    return found


def load(name: str) -> DAG:
    return importlib.import_module(name).dag


def test_every_file_is_a_dag_or_ignored() -> None:
    ignored = {line.replace("\\", "") for line in (DAGS / ".airflowignore").read_text().split()}
    assert {path.name for path in DAGS.glob("*.py")} - ignored == {f"{name}.py" for name in EDGES}


def test_edges(dag: DAG) -> None:
    assert {task.task_id: task.downstream_task_ids for task in dag.tasks} == EDGES[dag.dag_id]


def test_policy(dag: DAG) -> None:
    assert "storyrec" in dag.tags
    assert dag.description
    assert "failed" in dag.doc_md or dag.dag_id == "reconcile"
    assert not dag.catchup
    assert dag.max_active_runs == 1
    for task in dag.tasks:
        assert task.owner == "storyrec"
        assert task.retries >= 2
        assert task.retry_delay >= timedelta(seconds=30)
        assert task.execution_timeout
        assert list(task.on_failure_callback) == [alert]
        assert task.doc_md or getattr(task, "python_callable", None).__doc__


def test_a_day_goes_from_asset_to_asset() -> None:
    produced = {
        "validate_logs": VALIDATED_LOGS,
        "build_features": FEATURES,
        "train_adapt": MODEL,
        "publish_features": PUBLISHED_FEATURES,
    }
    for name, asset in produced.items():
        outlets = [outlet for task in load(name).tasks for outlet in task.outlets]
        assert outlets == [asset]
        last = next(task for task in load(name).tasks if not task.downstream_task_ids)
        assert last.outlets == [asset]
    consumers = {
        "build_features": VALIDATED_LOGS,
        "train_adapt": FEATURES,
        "publish_features": MODEL,
        "features_slo": PUBLISHED_FEATURES,
    }
    for name, asset in consumers.items():
        assert load(name).timetable.asset_condition == asset


def test_the_steps_are_commands_of_the_command_line() -> None:
    import typer

    from storyrec.cli import app

    root = typer.main.get_command(app)
    groups = ("features", "rollout")
    commands = {*root.commands, *(f"{group} {name}" for group in groups for name in root.commands[group].commands)}
    steps = {task.step for name in EDGES for task in load(name).tasks if hasattr(task, "step")}
    logs, features = {"catch-up", "validate-logs"}, {"build-features", "materialize-features", "embed-covers"}
    assert steps == logs | features | {"publish-features", "features freshness", "features drift", "rollout advance"}
    assert steps | {"train-adapt"} <= commands


def test_validate_logs_runs_nightly_for_the_day_before_and_never_by_itself_at_start() -> None:
    timetable = load("validate_logs").timetable
    assert (timetable.expression, timetable.run_offset, timetable.key_format) == ("0 2 * * *", -1, "%Y-%m-%d")
    # a start date, or anything but a zero delta, would start a run for a past day at once
    assert timetable.run_immediately == timedelta(0)
    assert load("validate_logs").start_date is None


def test_importing_the_dags_is_light() -> None:
    code = (
        "import sys, time, importlib, json\n"
        f"sys.path.insert(0, {str(DAGS)!r})\n"
        "import airflow.sdk\n"
        "start = time.process_time()\n"
        f"for name in {sorted(EDGES)!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'feast', 'great_expectations', 'kfp', 'pandas', 'pyarrow', 'numpy', 'boto3', 'duckdb'}\n"
        "print(json.dumps([time.process_time() - start, sorted(heavy & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert seconds < 5


def test_no_dag_file_touches_airflows_database_or_logical_dates() -> None:
    for path in DAGS.glob("*.py"):
        tree = ast.parse(path.read_text())
        modules = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {module for module in modules if module.startswith(("airflow.models", "airflow.settings"))}
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not names & {"logical_date", "data_interval_start", "data_interval_end"}
