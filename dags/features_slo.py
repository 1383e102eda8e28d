"""The DAG that holds the feature store to its promises once a day is published."""

from airflow.sdk import DAG, PartitionedAssetTimetable

from storyrec_tasks import DEFAULT_ARGS, PUBLISHED_FEATURES, StepOperator

TRIAGE = """
### features_slo: are the served features as fresh as promised, and distributed as before?
Starts when `published_features` has a new partition. Nothing waits for it: it changes nothing but its report and the
metrics below `work/metrics`.

**freshness failed.** The log names the views that are older than their promise. Look for the day's red or missing run:
`build_features` brings the sequences, `publish_features` the items. Then clear the task.

**drift failed.** Sequence lengths or embedding norms differ from the week before: `features/drift/dt=D.json`.
A new kind of model may do that by itself; a change of lengths without one points at lost or doubled clicks.
"""

with DAG(
    "features_slo",
    description="Check the freshness promises of the feature store, and the drift of what it holds",
    schedule=PartitionedAssetTimetable(assets=PUBLISHED_FEATURES),
    catchup=False,
    max_active_runs=1,
    default_args=DEFAULT_ARGS,
    tags=["storyrec", "features"],
    doc_md=TRIAGE,
) as dag:
    freshness = StepOperator(
        task_id="freshness",
        step="features freshness",
        doc_md="Compares the age of what is online with each view's promise, and writes it for Prometheus.",
    )
    drift = StepOperator(
        task_id="drift",
        step="features drift",
        doc_md="Compares sequence lengths and embedding norms with the trailing days.",
    )
