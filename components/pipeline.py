"""The training pipeline: how a day's challenger is trained, judged, and deployed or not.

    python -m components.pipeline OUT.yaml     compile it for a cluster

Parameters: `day` (partition key), `config_json` (all settings). Retries and GPU requests are of the cluster; the
local runner ignores them.
"""

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import TextIO

from kfp import compiler, dsl, kubernetes, local

from components.bless_model import bless_model
from components.build_dataset import build_dataset
from components.deploy_model import deploy_model
from components.evaluate_model import evaluate_model
from components.fetch_champion import fetch_champion
from components.finetune_aden import finetune_aden
from components.keep_champion import keep_champion
from components.pack_bundle import pack_bundle
from components.pretrain_dual import pretrain_dual
from components.read_verdict import read_verdict
from storyrec.component import ERROR_FILE, run_storage
from storyrec.config import Config, load_config
from storyrec.errors import PlatformError, StorageError, StoryrecError
from storyrec.kubeflow import PIPELINE_NAME
from storyrec.storage import write_file

SCRATCH = "scratch"
OUTCOME = "outcome.json"
EXECUTOR_INDENT = "    "
NUM_RETRIES = 2


def make_pipeline(config: Config, *, num_retries: int) -> dsl.base_component.BaseComponent:
    """The pipeline with the image, the retries and the GPU requests that the settings ask for."""

    def ready(task: dsl.PipelineTask) -> dsl.PipelineTask:
        """What holds for every task: its image, no caching, retries."""
        task.set_container_image(config.kubeflow.image)
        task.set_caching_options(enable_caching=False)
        if num_retries:
            task.set_retry(num_retries=num_retries, backoff_duration="60s", backoff_factor=2.0)
        return task

    @dsl.pipeline(name=PIPELINE_NAME, description="Train, judge and deploy a day's challenger")
    def adapt(day: str, config_json: str) -> None:
        data = ready(build_dataset(day=day, config_json=config_json)).output
        champion = ready(fetch_champion(day=day, config_json=config_json)).output
        dual = gpu_profile(
            ready(pretrain_dual(day=day, config_json=config_json, dataset=data, champion=champion)), config
        ).output
        aden = gpu_profile(
            ready(finetune_aden(day=day, config_json=config_json, dataset=data, dual=dual, champion=champion)), config
        ).output
        bundle = ready(pack_bundle(config_json=config_json, dataset=data, dual=dual, aden=aden)).output
        judged = ready(evaluate_model(config_json=config_json, dataset=data, bundle=bundle, champion=champion))
        evaluation = judged.outputs["evaluation"]
        verdict = ready(bless_model(config_json=config_json, evaluation=evaluation)).outputs["verdict"]
        deploy_or_keep(ready, config_json=config_json, bundle=bundle, evaluation=evaluation, verdict=verdict)

    return adapt


def deploy_or_keep(
    ready: Callable[[dsl.PipelineTask], dsl.PipelineTask],
    *,
    config_json: str,
    bundle: dsl.pipeline_channel.PipelineArtifactChannel,
    evaluation: dsl.pipeline_channel.PipelineArtifactChannel,
    verdict: dsl.pipeline_channel.PipelineArtifactChannel,
) -> None:
    """The end of the graph: exactly one of two tasks, by the one plain value of `read_verdict`."""
    blessed = ready(read_verdict(verdict=verdict))
    with dsl.If(blessed.output == True, name="blessed"):  # noqa: E712
        ready(deploy_model(config_json=config_json, bundle=bundle, evaluation=evaluation, verdict=verdict))
    with dsl.Else(name="not-blessed"):
        ready(keep_champion(config_json=config_json, bundle=bundle, evaluation=evaluation, verdict=verdict))


def gpu_profile(task: dsl.PipelineTask, config: Config) -> dsl.PipelineTask:
    """Ask for one NVIDIA GPU, on the nodes that have them."""
    task.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1)
    for key, value in config.kubeflow.gpu_node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in config.kubeflow.gpu_tolerations:
        kubernetes.add_toleration(
            task,
            key=toleration.key,
            operator=toleration.operator,
            value=toleration.value or None,
            effect=toleration.effect,
        )
    return task


def compile_pipeline(config: Config, out: Path) -> None:
    """Write the pipeline as YAML: the pipeline spec, and the platform spec with the GPU nodes.

    Raises:
        StorageError: the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(make_pipeline(config, num_retries=NUM_RETRIES), package_path=str(compiled))
        write_file(out, compiled.read_bytes())


def run_local(config: Config, day: date) -> None:
    """Run the pipeline of a day on this machine, each component in a process of its own.

    Raises:
        StoryrecError: the one that a component ended with.
        RuntimeError: a component broke; its output says how.
    """
    root = Path(tempfile.gettempdir()) if "://" in config.locations.work else Path(config.locations.work)
    scratch = root / SCRATCH / f"dt={day.isoformat()}"
    try:
        shutil.rmtree(scratch.parent, ignore_errors=True)  # of killed runs, and of other days
        scratch.mkdir(parents=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the pipeline's folder: {error.strerror}",
            where=str(scratch),
            remedy="free space on the disk or correct the folder's permissions",
        ) from error
    storage, prefix = run_storage(config, day=day)
    storage.delete(f"{prefix}/{OUTCOME}")  # a day that is run again has no outcome until it has one again
    failure = scratch / "error.json"
    os.environ[ERROR_FILE] = str(failure)
    warnings.filterwarnings("ignore", message="You may be attemping to run a task that uses custom")
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(scratch), raise_on_error=True)
    try:
        with contextlib.redirect_stdout(_WithoutPlumbing(sys.stdout)):
            # the caller tries again: the local runner would wait between its own tries
            make_pipeline(config, num_retries=0)(day=day.isoformat(), config_json=config.model_dump_json())
    except RuntimeError as error:
        if failure.exists():
            raise StoryrecError(**json.loads(failure.read_bytes())) from error
        raise
    finally:
        del os.environ[ERROR_FILE]
    _check_outcome(config, day)
    with contextlib.suppress(OSError):
        shutil.rmtree(scratch.parent)


class _WithoutPlumbing(io.TextIOBase):
    """Passes on what components print, without the pages that Kubeflow's executor says about its inputs."""

    def __init__(self, target: TextIO) -> None:
        self._target = target
        self._in_dump = False

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            if "[KFP Executor " in line:
                self._in_dump = "Got executor_input" in line
            elif not self._in_dump:
                self._target.write(line)
            elif line.strip() == "}" and line.index("}") <= len(EXECUTOR_INDENT):
                self._in_dump = False
        return len(text)

    def flush(self) -> None:
        self._target.flush()


def _check_outcome(config: Config, day: date) -> None:
    """A pipeline that took neither branch reports success: only the outcome on the disk counts."""
    storage, prefix = run_storage(config, day=day)
    if not storage.exists(f"{prefix}/{OUTCOME}"):
        raise PlatformError(
            "the pipeline ended without an outcome: neither deploy_model nor keep_champion ran",
            where=f"{storage.url}/{prefix}",
            remedy="run the day again; the deployed champion is unchanged",
        )


if __name__ == "__main__":
    compile_pipeline(load_config(None), Path(sys.argv[1]))
