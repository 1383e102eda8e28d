"""The DAG that holds the feature store to its promises once a day is published."""

from airflow.sdk import PartitionedAssetTimetable

from storyrec_tasks import PUBLISHED_FEATURES, StepOperator, one_run_at_a_time

TRIAGE = """
### features_slo: are the served features as fresh as promised, and distributed as before?
Starts when `published_features` has a new partition. Nothing waits for it: it changes nothing but its report and the
metrics below `work/metrics`.

A failed task is posted to `STORYREC_ALERT_URL`, for whoever is on call. `deploy/alerts.yaml` alerts on the metrics,
also when this DAG does not run at all.

**freshness failed** (`FeaturesOlderThanPromised`). The log names the views that are older than their promise. Look for
the day's red or missing run: `build_features` brings the sequences, `publish_features` the items. Then clear the task.

**drift failed** (`FeaturesDrifted`). The log names what differs from the week before: lengths of sequences, norms of
embeddings; the numbers are in `features/drift/dt=D.json`. A new kind of model may do that by itself; a change of
lengths without one points at lost or doubled clicks.
"""

with one_run_at_a_time(
    "features_slo",
    description="Check the freshness promises of the feature store, and the drift of what it holds",
    schedule=PartitionedAssetTimetable(assets=PUBLISHED_FEATURES),
    about="features",
    triage=TRIAGE,
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
