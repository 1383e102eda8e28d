"""Processes that train one model together: the same model as from one, and resumed to the same bits."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from builders import planted_config, planted_dataset
from killed_step import STEPS, run_step, train_config, write_dataset
from storyrec.config import Config, save_config
from storyrec.data.dataset import Dataset
from storyrec.distributed import ALONE, Team, present_team
from storyrec.finetune import ClickStage, build_aden, finetune_aden
from storyrec.loop import Moment, Stage
from storyrec.pair_stage import PairStage
from storyrec.pairs import Mounts
from storyrec.pretrain import build_dual, pretrain_dual, raw_items
from storyrec.storage import FolderStorage

NEVER = 1_000_000
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return planted_dataset(0, num_users=30, num_days=4)


def torchrun(*command: str) -> None:
    """Run a module in two processes, as a user does."""
    done = subprocess.run([*TORCHRUN, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def together(step: str, root: Path, *, num_writes: int) -> list[int]:
    """Run a step in two processes, told what torchrun would tell them; their exit codes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    team = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    script = str(Path(__file__).parent / "killed_step.py")
    processes = [
        subprocess.Popen(
            [sys.executable, script, step, str(root), str(num_writes)],
            env={**os.environ, **team, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    return [process.wait() for process in processes]


def without_dropout(root: Path, **dual: object) -> Config:
    config = train_config(root)
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"dropout": 0.0}),
            "dual": config.dual.model_copy(update=dual),
        }
    )


def assert_same_model(folder: Path, expected: Path, *, name: str) -> None:
    weights, expected_weights = (
        safetensors.torch.load_file(place / f"{name}.safetensors") for place in (folder, expected)
    )
    assert weights.keys() == expected_weights.keys()
    for key, tensor in expected_weights.items():
        torch.testing.assert_close(weights[key], tensor, atol=2e-4, rtol=1e-3, msg=lambda text: f"{key}: {text}")  # noqa: B023


def test_shares_are_all_of_a_batch_and_about_equal() -> None:
    for num in (0, 1, 2, 7, 64):
        for size in (1, 2, 3):
            shares = [np.arange(num)[Team(rank, size).share(num)] for rank in range(size)]
            assert np.concatenate(shares).tolist() == list(range(num))
            assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert present_team() == ALONE
    assert [Team(rank, 2).leads for rank in range(2)] == [True, False]


def test_two_processes_train_the_same_models_as_one(tmp_path: Path) -> None:
    """Through the command line, without dropout; odd batches give the two shares different numbers of instances."""
    write_dataset(tmp_path)
    config = without_dropout(tmp_path)
    save_config(config, tmp_path / "config.toml")
    places = {"dataset": tmp_path / "dataset", "champion": None, "checkpoints": FolderStorage(tmp_path / "one")}
    pretrain_dual(config, **places, out=tmp_path / "dual")
    finetune_aden(config, **places, dual=tmp_path / "dual", out=tmp_path / "aden")

    common = ["--dataset", str(tmp_path / "dataset"), "--config", str(tmp_path / "config.toml")]
    torchrun("-m", "storyrec.cli", "pretrain-dual", *common, "--out", str(tmp_path / "dual2"))
    assert_same_model(tmp_path / "dual2", tmp_path / "dual", name="dual")
    start = ["--dual", str(tmp_path / "dual")]
    torchrun("-m", "storyrec.cli", "finetune-aden", *common, *start, "--out", str(tmp_path / "aden2"))
    assert_same_model(tmp_path / "aden2", tmp_path / "aden", name="aden")


@pytest.mark.slow
@pytest.mark.parametrize(("step", "num_writes"), [("finetune_aden", 12), ("pretrain_dual", 5)])
def test_killed_processes_end_with_the_same_bits(step: str, num_writes: int, tmp_path: Path) -> None:
    """The first process is killed in its checkpoint; both go on from it. Dropout differs between the two."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write_dataset(whole)
    if step == "finetune_aden":
        run_step("pretrain_dual", whole, checkpoints=FolderStorage(whole / "others"), out=whole / "dual")
    shutil.copytree(whole, killed)

    assert together(step, whole, num_writes=NEVER) == [0, 0]
    first, second = together(step, killed, num_writes=num_writes)
    assert first == -9
    assert second != 0  # it does not go on alone
    assert not (killed / "never").exists()
    (state,) = (killed / "checkpoints").glob("*/state.json")
    assert '"finished": false' in state.read_text()
    assert together(step, killed, num_writes=NEVER) == [0, 0]

    name = f"{STEPS[step]}.safetensors"
    assert (killed / "never" / name).read_bytes() == (whole / "never" / name).read_bytes()


def test_parts_of_a_batch_add_up_to_the_whole(data: Dataset) -> None:
    """Loss, curves and gradients of both stages, with shares of 1 and 2, 2 and 3, 0 and 1 examples."""
    config = planted_config(Path("unused"))
    stories, products = raw_items(data, max_words=32)
    items = {"stories": stories, "products": products}
    aden = build_aden(config, num_words=data.vocabulary.size).eval()
    stages: list[tuple[torch.nn.Module, Stage]] = [
        (aden, ClickStage(aden, data=data, **items, batch_size=8, sequence_length=20, num_time_blocks=168))
    ]
    for contrast in ("hinge", "infonce"):
        dual = build_dual(config, num_words=data.vocabulary.size).eval()
        pairs = {"training_M2": data.pairs_M2, "validation_M2": data.pairs_M2, "mounts": Mounts(data.pairs_M2)}
        stages.append((dual, PairStage(dual, **items, **pairs, batch_size=8, contrast=contrast, seed=0)))
    for model, stage in stages:
        for num in (3, 5, 1):
            whole, *parts = (
                run_part(model, stage, np.arange(num), team=team) for team in (ALONE, Team(0, 2), Team(1, 2))
            )
            for value, *shares in zip(whole, *parts, strict=True):
                torch.testing.assert_close(sum(shares), value, atol=1e-5, rtol=1e-4)


def run_part(model: torch.nn.Module, stage: Stage, index_B: np.ndarray, *, team: Team) -> tuple[torch.Tensor, ...]:
    """Loss, what the curves show, and all gradients of one process's part of a batch."""
    model.zero_grad()
    loss, shown = stage.loss(index_B, Moment(0, 0.3, np.random.default_rng(1), team))
    if loss.requires_grad:
        loss.backward()
    gradients = [(torch.zeros_like(part) if part.grad is None else part.grad).flatten() for part in model.parameters()]
    return loss.detach(), torch.tensor(list(shown.values())), torch.cat(gradients)
