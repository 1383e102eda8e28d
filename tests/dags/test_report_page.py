"""The page of a day's report in Airflow's server, and the task's link to it."""

import importlib.util
from datetime import date
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowFailException
from fastapi import HTTPException
from starlette.testclient import TestClient

from kfp_run import KfpRunOperator
from storyrec.config import Config, Locations, save_config

FILE = Path(__file__).parents[2] / "dags" / "plugins" / "report_page.py"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin's module, over a working storage in which 2026-03-09 has a report."""
    save_config(Config(locations=Locations(work=str(tmp_path / "work"))), tmp_path / "settings.toml")
    monkeypatch.setenv("STORYREC_CONFIG", str(tmp_path / "settings.toml"))
    folder = tmp_path / "work" / "runs" / "dt=2026-03-09"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>day nine</p>")
    spec = importlib.util.spec_from_file_location("report_page", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_report_is_shown_without_its_scripts(page: ModuleType) -> None:
    answer = page.report(date(2026, 3, 9))
    assert answer.body == b"<p>day nine</p>"
    assert answer.headers["content-security-policy"] == "sandbox"


def test_a_day_without_a_report_is_not_found(page: ModuleType) -> None:
    with pytest.raises(HTTPException, match="404: 2026-03-10 has no report"):
        page.report(date(2026, 3, 10))


def test_settings_that_cannot_be_read_are_said(page: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYREC_CONFIG", "/nowhere.toml")
    with pytest.raises(HTTPException, match=r"503: (.|\n)*nowhere\.toml"):
        page.report(date(2026, 3, 9))


@pytest.mark.parametrize("day", ["2026-03-09", "2026-03-10", "..%2F..%2Fetc", "x"])
def test_nobody_sees_it_without_a_login(page: ModuleType, day: str) -> None:
    answer = TestClient(page.app).get(f"/{day}")
    assert answer.status_code in (401, 404)
    assert "day" not in answer.text


def instance(key: str | None) -> SimpleNamespace:
    return SimpleNamespace(get_template_context=lambda: {"dag_run": SimpleNamespace(partition_key=key)})


def test_the_task_links_to_its_day(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://shop.example/airflow/")
    operator = KfpRunOperator(task_id="train_adapt")
    (link,) = operator.operator_extra_links
    address = link.get_link(operator, ti_key=instance("2026-03-09"))
    assert (link.name, address) == ("Report", "https://shop.example/airflow/storyrec/reports/2026-03-09")
    with pytest.raises(AirflowFailException, match="partition key"):
        link.get_link(operator, ti_key=instance(None))
