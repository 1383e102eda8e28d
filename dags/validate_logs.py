"""The DAG that judges a day's raw logs."""

from datetime import timedelta

from airflow.sdk import CronPartitionTimetable

from storyrec_tasks import VALIDATED_LOGS, StepOperator, one_run_at_a_time

TRIAGE = """
### validate_logs: is this day's data fit to learn from?
Runs at 02:00 UTC for the day before; the partition key is that day.

**A task failed.** Its log ends with what was found, what was expected, where, and what to do.
* *MissingPartition*: the export is late. Put the partition in place and clear the task.
* *DayStopped*: the day broke a rule. Nothing of it goes on; yesterday's model stays deployed. Look at the data docs
  and at `storyrec quarantine list --day DAY`, mend the export, clear the task.
* *StorageError*: disk or S3. Mend it and clear the task.

**Rows were quarantined but the task is green.** They are kept: `storyrec quarantine list`, then `replay`.
"""

with one_run_at_a_time(
    "validate_logs",
    description="Judge a day's raw logs against the log contract",
    # no start date and nothing immediately: a new installation waits for the next 02:00, it starts no run for
    # a day that may never have had logs (False would still start one until 04:24)
    schedule=CronPartitionTimetable(
        "0 2 * * *", timezone="UTC", run_offset=-1, run_immediately=timedelta(0), key_format="%Y-%m-%d"
    ),
    about="logs",
    triage=TRIAGE,
) as dag:
    catch_up = StepOperator(
        task_id="catch_up",
        step="catch-up",
        doc_md="Validates the days before this one that have not been validated yet: they are its history.",
    )
    validate = StepOperator(
        task_id="validate",
        step="validate-logs",
        outlets=[VALIDATED_LOGS],
        doc_md="Judges the day: good rows go on, bad rows to quarantine with the rule they broke, a bad day stops.",
    )

    catch_up >> validate
