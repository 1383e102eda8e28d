"""The DAG that publishes what the deployed model knows about items."""

from airflow.sdk import PartitionedAssetTimetable

from storyrec_tasks import MODEL, PUBLISHED_FEATURES, StepOperator, one_run_at_a_time

TRIAGE = """
### publish_features: what do other teams see of the champion?
Starts when `model` has a new partition, whether the challenger was deployed or the champion kept.

**publish failed.** The champion serves already; only what other teams read is a day old. Mend the store named in the
log and clear the task: publishing a day twice changes nothing.
"""

with one_run_at_a_time(
    "publish_features",
    description="Publish the champion's item embeddings and the stories near products and stories",
    schedule=PartitionedAssetTimetable(assets=MODEL),
    about="features",
    triage=TRIAGE,
) as dag:
    publish = StepOperator(
        task_id="publish",
        step="publish-features",
        outlets=[PUBLISHED_FEATURES],
        doc_md="Writes the champion's item embeddings and the stories near products and stories to the feature store.",
    )
