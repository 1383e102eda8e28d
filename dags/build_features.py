"""The DAG that turns a validated day into features."""

from airflow.sdk import PartitionedAssetTimetable

from storyrec_tasks import FEATURES, VALIDATED_LOGS, StepOperator, one_run_at_a_time

TRIAGE = """
### build_features: what did every user click last?
Starts when `validated_logs` has a new partition; the partition key is the day.

**build failed.** It reads validated logs only: if they are gone, run `validate_logs` for the day again.
**materialize failed.** The online store does not answer or refuses. The offline features are whole; serving goes on
with yesterday's sequences. Mend the store and clear the task: writing a day twice changes nothing.
**embed failed.** The model of `covers.model` does not fit, or disk or S3 failed midway: what is embedded is kept, and
the cleared task goes on from there. A broken picture fails nothing: `storyrec quarantine list`. Training waits for it.
"""

with one_run_at_a_time(
    "build_features",
    description="Turn a validated day into offline and online features",
    schedule=PartitionedAssetTimetable(assets=VALIDATED_LOGS),
    about="features",
    triage=TRIAGE,
) as dag:
    build = StepOperator(
        task_id="build",
        step="build-features",
        doc_md="Writes the day's click sequences as the offline source of the feature store.",
    )
    materialize = StepOperator(
        task_id="materialize",
        step="materialize-features",
        doc_md="Puts the sequences as they stand at the end of the day into the online store.",
    )
    embed = StepOperator(
        task_id="embed",
        step="embed-covers",
        outlets=[FEATURES],
        doc_md="Turns pictures of items without a cover vector into vectors; nothing, where no model is set for it.",
    )

    build >> materialize >> embed  # serving does not wait for pictures, training does
