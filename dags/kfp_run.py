"""The operator that runs a day's training pipeline: in a process on one machine, or on a Kubeflow cluster.

On a cluster the task submits the run, frees its slot while the run goes on (hours), and comes back for the result.
The triggerer imports this module too: its folder must be on PYTHONPATH there.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, BaseOperatorLink, Context
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowException, AirflowFailException
from airflow.triggers.base import BaseTrigger, TriggerEvent

from storyrec.config import Config, load_config
from storyrec.errors import ConfigError, PlatformError
from storyrec.kubeflow import (
    SUCCEEDED,
    KubeflowClient,
    idempotency_key,
    read_pipeline,
    terminate_run,
    wait_for_run,
)
from storyrec_tasks import REPORTS, Step, partition_day, settings_file


class ReportLink(BaseOperatorLink):
    """The task's link to the day's report (`plugins/report_page.py`)."""

    name = "Report"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """The page's address; Airflow hands over the instance that has just ended."""
        day = partition_day(ti_key.get_template_context())
        return f"{conf.get('api', 'base_url', fallback='').rstrip('/')}{REPORTS}/{day}"


class KfpRunOperator(BaseOperator):
    """Runs the training pipeline for the day of the run; `profile` of the settings says where.

    A retried task finds the run that its earlier try started and does not start a second one. The task links to the
    day's report, and returns where it lies: the last line of its log, and its XCom.
    """

    template_fields: Sequence[str] = ()
    operator_extra_links = (ReportLink(),)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._step: Step | None = None
        self._submitted: tuple[Config, str] | None = None

    def execute(self, context: Context) -> str:
        """Run the pipeline in a process, or submit it and wait without holding a slot."""
        day = partition_day(context)
        try:
            config = load_config(settings_file())
            if config.profile == "local":
                self._step = Step("train-adapt", day=day)
                self._step.run()
                return self._report(config, day)
            with KubeflowClient(config.kubeflow.endpoint, namespace=config.kubeflow.namespace) as client:
                run = client.submit_once(
                    idempotency_key(config, day=day),
                    experiment=config.kubeflow.experiment,
                    pipeline=read_pipeline(Path(config.kubeflow.package)),
                    parameters={"day": day.isoformat(), "config_json": config.model_dump_json()},
                    since=context["dag_run"].start_date or context["dag_run"].run_after,
                )
        except ConfigError as error:
            raise AirflowFailException(str(error)) from error
        except PlatformError as error:
            raise AirflowException(str(error)) from error
        self._submitted = (config, run.run_id)
        self.log.info("Kubeflow run %s (%s) is %s", run.run_id, run.name, run.state)
        self.defer(
            trigger=KfpRunTrigger(
                endpoint=config.kubeflow.endpoint,
                run_id=run.run_id,
                poll_seconds=config.kubeflow.poll_seconds,
                timeout_seconds=config.kubeflow.timeout_hours * 3600,
            ),
            method_name="finish",
        )

    def finish(self, context: Context, event: dict[str, str]) -> str:
        """Judge the ended run.

        Returns:
            Where the day's report lies.

        Raises:
            AirflowException: the run failed, was cancelled, or could not be watched to its end.
        """
        if event["state"] != SUCCEEDED:
            raise AirflowException(f"Kubeflow run {event['run_id']} is {event['state']}: {event['error']}")
        self.log.info("Kubeflow run %s is %s", event["run_id"], event["state"])
        return self._report(load_config(settings_file()), partition_day(context))

    def on_kill(self) -> None:
        """End the process, or the run on the cluster."""
        if self._step is not None:
            self._step.end()
        if self._submitted is not None:
            config, run_id = self._submitted
            with KubeflowClient(config.kubeflow.endpoint, namespace=config.kubeflow.namespace) as client:
                client.terminate_run(run_id)

    def _report(self, config: Config, day: date) -> str:
        report = f"{config.locations.work}/runs/dt={day}/report.html"
        self.log.info("report: %s", report)
        return report


class KfpRunTrigger(BaseTrigger):
    """Waits for a Kubeflow run; one event: run_id, state, error."""

    def __init__(self, *, endpoint: str, run_id: str, poll_seconds: float, timeout_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.endpoint, self.run_id = endpoint, run_id
        self.poll_seconds, self.timeout_seconds = poll_seconds, timeout_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer builds this trigger again."""
        return "kfp_run.KfpRunTrigger", {
            "endpoint": self.endpoint,
            "run_id": self.run_id,
            "poll_seconds": self.poll_seconds,
            "timeout_seconds": self.timeout_seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll until the run has ended."""
        try:
            run = await wait_for_run(
                self.endpoint,
                run_id=self.run_id,
                poll_seconds=self.poll_seconds,
                timeout_seconds=self.timeout_seconds,
            )
            ended = {"run_id": run.run_id, "state": run.state, "error": run.error}
        except PlatformError as error:
            ended = {"run_id": self.run_id, "state": "UNKNOWN", "error": str(error)}
        yield TriggerEvent(ended)  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Stop the run when a person stops the waiting task."""
        await terminate_run(self.endpoint, run_id=self.run_id)
