"""The step `pretrain_dual`: extractors that place a story near the product it mounts.

Paper: Sec. III-B. Legend: M pairs.
"""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from storyrec.checkpoint import CheckpointStore, run_key
from storyrec.config import Config, Training
from storyrec.data.dataset import Dataset
from storyrec.device import place_items, training_device
from storyrec.distributed import present_team
from storyrec.loop import Schedule, Trained, fitted_batch_size, train
from storyrec.models.dual import Dual
from storyrec.models.extractors import Extractors, RawItems
from storyrec.pair_stage import PairStage
from storyrec.pairs import Mounts, split_pairs
from storyrec.schema import Domain
from storyrec.storage import Storage, write_file, write_folder
from storyrec.warmstart import start_from_champion

DUAL_WEIGHTS = "dual.safetensors"
TRAINING_REPORT = "training.json"

Int64s = NDArray[np.int64]
TOO_FEW_PAIRS = "fewer than two stories mount a product: the extractors stay as they started"


def pretrain_dual(config: Config, *, dataset: Path, champion: Path | None, checkpoints: Storage, out: Path) -> None:
    """Pre-train the extractors of both domains on the mounted products of the stories.

    Under torchrun all processes train together and the first one writes.

    Where fewer than two stories mount a product there is nothing to contrast: the extractors stay as
    they started, and training.json says so.

    Args:
        config: sections `model`, `features` and `dual`.
        dataset: the day's dataset folder.
        champion: bundle folder whose weights are the start; None or one that does not fit: from scratch.
        checkpoints: where a killed run is resumed from.
        out: folder to write: dual.safetensors and training.json.

    Raises:
        ModelError: the training diverged, or the champion's files are damaged.
    """
    data = Dataset.load(dataset)
    pairs_M2 = np.asarray(data.pairs_M2, np.int64)
    settings = config.dual
    with training_device() as device:
        model = build_dual(config, num_words=data.vocabulary.size)
        start = start_from_champion(
            model, champion=champion, weights_name=DUAL_WEIGHTS, vocabulary=data.vocabulary, config=config
        )
        stories, products = raw_items(data, max_words=config.features.max_title_words)
        training_M2 = validation_M2 = np.empty((0, 2), np.int64)
        if len(np.unique(pairs_M2[:, 0])) < 2:
            trained = Trained(curves=[], best_epoch=0, best_value=0.0, num_steps=0, seconds=0.0, notes=[TOO_FEW_PAIRS])
        else:
            training_M2, validation_M2 = split_pairs(
                pairs_M2, validation_share=settings.validation_share, generator=np.random.default_rng(settings.seed)
            )
            key = run_key(
                "pretrain_dual",
                model=model,
                settings={
                    "dataset": data.digest,
                    "dual": settings.model_dump(mode="json"),
                    "model": config.model.model_dump(mode="json"),
                    "max_title_words": config.features.max_title_words,
                    "champion": start.champion,
                },
            )
            model.to(device)
            stage = PairStage(
                model,
                stories=place_items(stories, device),
                products=place_items(products, device),
                mounts=Mounts(pairs_M2),
                training_M2=training_M2,
                validation_M2=validation_M2,
                batch_size=fitted_batch_size(len(training_M2), largest=settings.batch_size),
                margin=settings.margin,
                squared=settings.squared_distance,
                contrast=settings.contrast,
                adversary=settings.adversary,
                seed=settings.seed,
            )
            trained = train(
                model,
                name="pretrain_dual",
                stage=stage,
                schedule=read_schedule(settings, keep_start=start.champion),
                store=CheckpointStore(checkpoints, key=key),
            )
        if not present_team().leads:
            return
    report = {
        "step": "pretrain_dual",
        "start": start.to_json(),
        "num_pairs": len(pairs_M2),
        "num_training_pairs": len(training_M2),
        "num_validation_pairs": len(validation_M2),
        **trained.to_json(),
    }
    with write_folder(out) as folder:
        write_file(folder / DUAL_WEIGHTS, safetensors.torch.save(model.cpu().state_dict()))
        write_file(folder / TRAINING_REPORT, json.dumps(report, indent=1).encode())


def build_dual(config: Config, *, num_words: int) -> Dual:
    """A freshly initialised DUAL of the configured shape; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.dual.seed)
        return Dual(build_extractors(config, num_words=num_words))


def read_schedule(settings: Training, *, keep_start: bool) -> Schedule:
    """The schedule that the settings of either stage ask for."""
    return Schedule(
        seed=settings.seed,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        clip_norm=settings.clip_norm,
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        patience=settings.patience,
        warmup_share=settings.warmup_share,
        keep_start=keep_start,
    )


def build_extractors(config: Config, *, num_words: int) -> Extractors:
    """Extractors of the configured shape, initialised from torch's present random state."""
    return Extractors(
        num_words=num_words,
        width=config.model.width,
        max_words=config.features.max_title_words,
        word_positions=config.model.word_positions,
        dropout=config.model.dropout,
        initial_scale=config.model.initial_scale,
    )


def raw_items(data: Dataset, *, max_words: int) -> tuple[RawItems, RawItems]:
    """What the extractors read of the dataset's stories and of its products."""
    category_ids = np.unique(np.concatenate([[0], data.products.category_ids_N]))
    stories, products = (
        RawItems.of(
            data.vocabulary.encode(catalog.titles, max_words=max_words),
            catalog.visual_raw_NV,
            domain=domain,
            categories_N=np.searchsorted(category_ids, catalog.category_ids_N),
        )
        for catalog, domain in ((data.stories, Domain.STORY), (data.products, Domain.PRODUCT))
    )
    return stories, products
