"""Runs a training step in a process of its own that kills itself: `python killed_step.py STEP ROOT WRITES`.

ROOT holds what `train_world` of this file lays out; the process dies by SIGKILL right after so many
writes of its checkpoint, which is saved after every step.
"""

import sys
from pathlib import Path

from builders import planted_config, write_validated
from deadly_storage import DeadlyStorage
from storyrec import loop
from storyrec.config import Config
from storyrec.data.build import build_dataset
from storyrec.finetune import finetune_aden
from storyrec.pretrain import pretrain_dual
from storyrec.storage import Storage

STEPS = {"pretrain_dual": "dual", "finetune_aden": "aden"}


def train_config(root: Path) -> Config:
    """Settings small enough to train in a second."""
    config = planted_config(root / "work")
    small = {"max_epochs": 2, "batch_size": 64}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"width": 16, "head_widths": (16, 8)}),
            "dual": config.dual.model_copy(update=small),
            "aden": config.aden.model_copy(update=small),
        }
    )


def write_dataset(root: Path) -> None:
    """A tiny dataset at ROOT/dataset."""
    day = write_validated(root / "work", num_users=30, num_days=4, items_per_day=30)
    build_dataset(train_config(root), day=day, out=root / "dataset")


def run_step(step: str, root: Path, *, checkpoints: Storage, out: Path) -> None:
    """One training step on ROOT/dataset (and ROOT/dual), checkpoints after every batch."""
    loop.CHECKPOINT_SECONDS = 0.0
    inputs = {"dataset": root / "dataset", "champion": None, "checkpoints": checkpoints, "out": out}
    if step == "pretrain_dual":
        pretrain_dual(train_config(root), **inputs)
    else:
        finetune_aden(train_config(root), dual=root / "dual", **inputs)


if __name__ == "__main__":
    name, folder, writes = sys.argv[1:]
    storage = DeadlyStorage(Path(folder) / "checkpoints", num_writes=int(writes))
    run_step(name, Path(folder), checkpoints=storage, out=Path(folder) / "never")
