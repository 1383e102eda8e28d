"""The DAG that turns a validated day into features."""

from airflow.sdk import DAG, PartitionedAssetTimetable

from storyrec_tasks import DEFAULT_ARGS, FEATURES, VALIDATED_LOGS, StepOperator

TRIAGE = """
### build_features: what did every user click last?
Starts when `validated_logs` has a new partition; the partition key is the day.

**build failed.** It reads validated logs only: if they are gone, run `validate_logs` for the day again.
**materialize failed.** The online store does not answer or refuses. The offline features are whole; serving goes on
with yesterday's sequences. Mend the store and clear the task: writing a day twice changes nothing.
"""

with DAG(
    "build_features",
    description="Turn a validated day into offline and online features",
    schedule=PartitionedAssetTimetable(assets=VALIDATED_LOGS),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["storyrec", "features"],
    doc_md=TRIAGE,
) as dag:
    build = StepOperator(
        task_id="build",
        step="build-features",
        doc_md="Writes the day's click sequences as the offline source of the feature store.",
    )
    materialize = StepOperator(
        task_id="materialize",
        step="materialize-features",
        outlets=[FEATURES],
        doc_md="Puts the sequences as they stand at the end of the day into the online store.",
    )

    build >> materialize
