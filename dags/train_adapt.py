"""The DAG that trains, judges and deploys: one task, one run of the Kubeflow pipeline."""

from airflow.sdk import PartitionedAssetTimetable

from kfp_run import KfpRunOperator
from storyrec_tasks import FEATURES, MODEL, one_run_at_a_time

TRIAGE = """
### train_adapt: is there a better model this morning?
Starts when `features` has a new partition; the partition key is the day. A challenger that the gate refuses is *not* a
failure: the task is green, the old champion stays, and `runs/dt=DAY/verdict.json` and `report.html` say why. The task's
link *Report* opens that page; where it lies is the last line of the log, and the XCom `return_value`.

**train_adapt failed.** On one machine the log holds the failed step's message. On a cluster it names the Kubeflow
run: open it in the Pipelines UI. The old champion is still deployed. Mend the cause and clear the task: finished
training stages are resumed from their checkpoints, and a run that is still going is found again, not started twice.
"""

with one_run_at_a_time(
    "train_adapt",
    description="Train, judge and deploy a day's challenger in one Kubeflow run",
    schedule=PartitionedAssetTimetable(assets=FEATURES),
    about="model",
    triage=TRIAGE,
) as dag:
    train_adapt = KfpRunOperator(
        task_id="train_adapt",
        outlets=[MODEL],
        doc_md="Runs the pipeline: dataset, DUAL, ADEN, bundle, evaluation, verdict, and deploy or keep the champion.",
    )
