"""The DAG that walks a canary through its shares of the users to champion, or withdraws it."""

from datetime import timedelta

from airflow.sdk import CronTriggerTimetable

from storyrec_tasks import StepOperator, one_run_at_a_time

TRIAGE = """
### rollout: does the canary serve as well as the champion does?
Every ten minutes, one step: wait, give the canary the next share of the users, make it the champion, or withdraw it.
What it decided and why is in the task's log, and in the registry's pointer (`storyrec registry show`). Then what other
teams read follows the champion, if somebody promoted or rolled back one since the day's `publish_features`.

**advance failed.** Read the task's log. Either the canary was withdrawn, for errors, latency or the spread of its
scores: the champion serves everybody again, nothing is to be done at night; a rerun of its day does not try it again,
`storyrec rollout start` does, when somebody says why. Or the registry or the answer log could not be used, as the
message says; the canary keeps its share, and every server still withdraws it by itself if it fails.

**publish failed.** The champion serves already; only what other teams read is still the one before. Mend the store
named in the log; the next run tries again.
"""

with one_run_at_a_time(
    "rollout",
    description="Widen the canary's share of the users, make it the champion, or withdraw it",
    schedule=CronTriggerTimetable("*/10 * * * *", timezone="UTC"),
    about="serving",
    triage=TRIAGE,
) as dag:
    advance = StepOperator(
        task_id="advance",
        step="rollout advance",
        of_day=False,
        execution_timeout=timedelta(minutes=9),
        doc_md="Looks at what the canary answered since it has its share, and takes one step.",
    )
    publish = StepOperator(
        task_id="publish",
        step="publish-features",
        of_day=False,
        doc_md="Publishes the champion if other teams still read another one.",
    )
    advance >> publish
