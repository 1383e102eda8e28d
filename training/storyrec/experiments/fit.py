"""One method, one seed: train it on a dataset, score the held-out impressions, write what came of it.

Paper: Sec. IV-B, IV-C.
"""

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from scipy.special import expit

from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.device import training_device
from storyrec.errors import DataError
from storyrec.experiments.methods import METHODS, PRETRAININGS, Method, Sizes
from storyrec.finetune import ClickStage, load_extractors, scorable_impressions, train_click_model
from storyrec.loop import Trained
from storyrec.metrics import summarize
from storyrec.models.click_model import ClickModel
from storyrec.models.extractors import Modality, RawItems
from storyrec.pack import calibration_offset
from storyrec.pretrain import DUAL_WEIGHTS, build_extractors, pretrain_dual, raw_items
from storyrec.storage import FolderStorage, write_file, write_folder

RESULT, SCORES, WEIGHTS = "result.json", "scores.npy", "model.safetensors"


def slug(name: str) -> str:
    """A name as a folder: lower case, whatever is no letter or digit as a hyphen."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def pretrained_folder(root: Path, name: str, *, seed: int) -> Path:
    """Where the extractors of a pre-training are kept."""
    return root / "pretrained" / slug(name) / f"seed-{seed}"


def run_folder(root: Path, name: str, *, seed: int) -> Path:
    """Where a method's run is kept."""
    return root / "runs" / slug(name) / f"seed-{seed}"


def pretrain(name: str, *, root: Path, config: Config, dataset: Path, seed: int) -> None:
    """Pre-train extractors in one of the ways of `PRETRAININGS`.

    Raises:
        ModelError: the training diverged.
    """
    settings = update_config(config, PRETRAININGS[name])
    pretrain_dual(
        update_config(settings, {"dual": {"seed": seed}}),
        dataset=dataset,
        champion=None,
        checkpoints=FolderStorage(root / "checkpoints"),
        out=pretrained_folder(root, name, seed=seed),
    )


def fit(name: str, *, root: Path, config: Config, dataset: Path, seed: int) -> None:
    """Train a method and write result.json, its click probabilities of the held-out impressions and its weights.

    Args:
        name: of the method, a key of `METHODS`.
        root: folder of the experiments; see `run_folder` and `pretrained_folder`.
        config: sections `model`, `features`, `aden` and `evaluation`, the method's tuned numbers among them.
        dataset: folder that `build_dataset` wrote.
        seed: of the initial weights, the order of the users, and dropout.

    Raises:
        DataError: the dataset has nothing that this method could learn from or be judged by.
        ModelError: the training diverged, or the pre-trained extractors are missing.
    """
    method = METHODS[name]
    with training_device() as device:
        trained, stage = train_method(method, root=root, config=config, dataset=dataset, seed=seed, device=device)
        model, data = stage.model.eval(), stage.data
        with torch.inference_mode():
            validation_B, holdout_B = (
                stage.score(part, np.arange(len(part))) for part in (data.validation, data.holdout)
            )
    # training keeps as many non-clicks as clicks; only the log loss is touched by this
    offset = calibration_offset(validation_B, data.validation.clicked_B)
    scores_B = expit(holdout_B + offset).astype(np.float32)
    evaluation = config.evaluation
    result = {
        "method": method.name,
        "group": method.group,
        "seed": seed,
        "dataset": data.digest,
        "metrics": summarize(
            data.holdout.user_ids_B,
            data.holdout.clicked_B,
            scores_B.astype(np.float64),
            num_candidates=evaluation.num_candidates,
            top_k=evaluation.top_k,
            seed=evaluation.seed,
        ),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "settings": {**tuned_numbers(update_config(config, method.settings)), "batch_size": stage.batch_size},
        "training": trained.to_json(),
    }
    with write_folder(run_folder(root, method.name, seed=seed)) as folder:
        np.save(folder / SCORES, scores_B, allow_pickle=False)
        write_file(folder / WEIGHTS, safetensors.torch.save(model.cpu().state_dict()))
        write_file(folder / RESULT, json.dumps(result, indent=1).encode())


def train_method(
    method: Method, *, root: Path, config: Config, dataset: Path, seed: int, device: torch.device
) -> tuple[Trained, ClickStage]:
    """Train a method from its start; the stage's model ends with the weights of its best epoch.

    Args:
        method: which; its own settings win over `config`.
        root, config, dataset, seed: as of `fit`.
        device: to train on.

    Raises:
        DataError: the dataset has nothing that this method could learn from or be judged by.
        ModelError: the training diverged, or the pre-trained extractors are missing.
    """
    config = update_config(update_config(config, method.settings), {"aden": {"seed": seed}})
    data, stories, products = open_dataset(dataset, max_words=config.features.max_title_words)
    check_dataset(data, stories=stories, products=products, method=method, config=config, where=dataset)
    return train_click_model(
        start_model(method, root=root, config=config, data=data, products=products, seed=seed).to(device),
        name=slug(method.name),
        config=config,
        data=data,
        stories=stories,
        products=products,
        keep_start=False,
        checkpoints=FolderStorage(root / "checkpoints"),
    )


def tuned_numbers(config: Config) -> dict[str, float]:
    """The settings that are searched for each method, as a run records them."""
    settings = config.aden
    return {
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "max_epochs": settings.max_epochs,
        "initial_scale": config.model.initial_scale,
    }


def start_model(
    method: Method, *, root: Path, config: Config, data: Dataset, products: RawItems, seed: int
) -> ClickModel:
    """A method's model before its training; the same seed gives the same weights.

    Raises:
        ModelError: the pre-trained extractors that it starts from are missing or do not fit.
    """
    model = build_model(method, config=config, data=data, products=products, seed=seed)
    if method.pretraining:
        load_extractors(model, pretrained_folder(root, method.pretraining, seed=seed) / DUAL_WEIGHTS)
    return model


def build_model(method: Method, *, config: Config, data: Dataset, products: RawItems, seed: int) -> ClickModel:
    """A freshly initialised model of a method."""
    sizes = Sizes(
        width=config.model.width,
        num_heads=config.model.num_heads,
        num_time_blocks=config.model.num_time_blocks,
        sequence_length=config.features.sequence_length,
        head_widths=config.model.head_widths,
        dropout=config.model.dropout,
        num_users=len(data.training_users_U),
        num_categories=int(products.categories_N.max(initial=0)),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        extractors = build_extractors(config, num_words=data.vocabulary.size)
        return ClickModel(extractors, method.build(sizes), modalities=method.modalities)


@lru_cache(maxsize=1)
def open_dataset(folder: Path, *, max_words: int) -> tuple[Dataset, RawItems, RawItems]:
    """A dataset with what the extractors read of it; kept for the next run of this process."""
    data = Dataset.load(folder)
    return data, *raw_items(data, max_words=max_words)


def check_dataset(
    data: Dataset, *, stories: RawItems, products: RawItems, method: Method, config: Config, where: Path
) -> None:
    """Refuse what a method cannot learn from or be judged by.

    Raises:
        DataError: training has one class only, no validation or held-out user has both, the vocabulary is
            larger than configured, or no item has what the method reads.
    """
    num_clicked = int(np.count_nonzero(data.train.clicked_B))
    problems: Mapping[str, tuple[bool, Any, str]] = {
        f"{num_clicked} clicked of {len(data.train)} training impressions": (
            not 0 < num_clicked < len(data.train),
            "some that were clicked and some that were not",
            "raise windows.training_days, and build the dataset again",
        ),
        "no validation user has both a clicked and a non-clicked impression": (
            len(scorable_impressions(data.validation)) == 0,
            "some users with both: early stopping goes by their AUC",
            "raise windows.training_days or windows.validation_share, and build the dataset again",
        ),
        "no held-out user has both a clicked and a non-clicked impression": (
            len(scorable_impressions(data.holdout)) == 0,
            "some users with both: they alone have a per-user AUC",
            "raise windows.holdout_days, and build the dataset again",
        ),
        f"the vocabulary has {data.vocabulary.size} words": (
            data.vocabulary.size > config.features.vocabulary_size,
            f"{config.features.vocabulary_size} at most, as features.vocabulary_size says",
            "raise the setting to the dataset's, or build the dataset again",
        ),
        f"no item has a cover, and '{method.name}' reads nothing else": (
            method.modalities == {Modality.VISUAL} and not (stories.has_cover_N.any() or products.has_cover_N.any()),
            "covers among the stories or the products",
            "leave this method out, or log covers",
        ),
    }
    for found, (is_so, expected, remedy) in problems.items():
        if is_so:
            raise DataError(found, expected=expected, where=str(where), remedy=remedy)
