"""Airflow's plugin: a day's run report at `/storyrec/reports/2026-03-09`, for whoever may see `train_adapt`."""

from datetime import date

from airflow.api_fastapi.core_api.security import requires_access_dag
from airflow.plugins_manager import AirflowPlugin
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import HTMLResponse

from storyrec.config import load_config
from storyrec.errors import StoryrecError
from storyrec.storage import open_storage
from storyrec_tasks import REPORTS, settings_file

NO_SCRIPTS = {"Content-Security-Policy": "sandbox"}  # titles come from outside, and the page has Airflow's address

app = FastAPI(title="storyrec's reports", docs_url=None, redoc_url=None, openapi_url=None)


@app.get("/{day}", dependencies=[Depends(requires_access_dag("GET", param_dag_id="train_adapt"))])
def report(day: date) -> HTMLResponse:
    """The report of a day, from the working storage."""
    try:
        locations = load_config(settings_file()).locations
        work, key = open_storage(locations.work, s3_endpoint=locations.s3_endpoint), f"runs/dt={day}/report.html"
        if not work.exists(key):
            raise HTTPException(404, f"{day} has no report: its training has not ended, or failed before it")
        return HTMLResponse(work.read(key), headers=NO_SCRIPTS)
    except StoryrecError as error:
        raise HTTPException(503, str(error)) from error


class ReportPage(AirflowPlugin):
    """Adds the page to Airflow's server."""

    name = "storyrec_reports"
    fastapi_apps = [{"app": app, "url_prefix": REPORTS, "name": "storyrec's reports"}]  # noqa: RUF012 (Airflow's own form)
