"""A planted dataset on disk, and model folders as the training steps write them, in a second.

The weights are drawn, not trained: what becomes of them after training does not depend on how good
they are.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from builders import planted_config, write_validated
from storyrec.config import Config
from storyrec.data.build import build_dataset
from storyrec.data.dataset import Dataset
from storyrec.finetune import build_aden
from storyrec.models.dual import Dual
from storyrec.pack import pack_bundle
from storyrec.pretrain import build_extractors


@dataclass(frozen=True)
class World:
    """A dataset folder with the settings that made it."""

    config: Config
    dataset: Path

    @property
    def data(self) -> Dataset:
        """The dataset, opened."""
        return Dataset.load(self.dataset)


def make_world(root: Path, *, seed: int = 0, covers: bool = True, num_days: int = 4) -> World:
    """Write a small marketplace below `root` and build its last day's dataset."""
    config = planted_config(root / "work")
    config = config.model_copy(
        update={
            "locations": config.locations.model_copy(update={"registry": str(root / "registry")}),
            "model": config.model.model_copy(update={"width": 16, "head_widths": (16, 8)}),
        }
    )
    day = write_validated(root / "work", seed=seed, covers=covers, num_days=num_days, num_users=60, items_per_day=20)
    build_dataset(config, day=day, out=root / "dataset")
    return World(config, root / "dataset")


def write_models(world: World, folder: Path, *, seed: int = 1) -> tuple[Path, Path]:
    """Write dual/ and aden/ folders with drawn weights; larger than initial ones, so that scores spread."""
    num_words = world.data.vocabulary.size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        models = {
            "dual": Dual(build_extractors(world.config, num_words=num_words)),
            "aden": build_aden(world.config, num_words=num_words),
        }
        for name, model in models.items():
            weights = {
                key: weight if weight.ndim < 2 else weight + 0.3 * torch.randn_like(weight) * (weight != 0)
                for key, weight in model.state_dict().items()
            }
            (folder / name).mkdir(parents=True)
            (folder / name / f"{name}.safetensors").write_bytes(safetensors.torch.save(weights))
            (folder / name / "training.json").write_text(json.dumps({"step": name, "curves": [], "notes": []}))
    return folder / "dual", folder / "aden"


def make_bundle(world: World, folder: Path, *, seed: int = 1) -> Path:
    """Pack a bundle with drawn weights into `folder`/bundle."""
    dual, aden = write_models(world, folder, seed=seed)
    pack_bundle(world.config, dataset=world.dataset, dual=dual, aden=aden, out=folder / "bundle")
    return folder / "bundle"
