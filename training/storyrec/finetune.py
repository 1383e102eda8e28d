"""The step `finetune_aden`: the click model, on top of pre-trained extractors.

Paper: Sec. III-C. Legend: B instances of a batch.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyrec.checkpoint import CheckpointStore, run_key
from storyrec.config import Config
from storyrec.data.batches import Batch, make_batch, user_batches
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.device import compile_on_gpu, place_items, training_device
from storyrec.distributed import present_team
from storyrec.errors import DataError, ModelError
from storyrec.loop import Judgement, Moment, Trained, fitted_batch_size, train
from storyrec.metrics import per_user_auc
from storyrec.models.aden import Aden
from storyrec.models.click_model import ClickModel
from storyrec.models.extractors import RawItems
from storyrec.pretrain import DUAL_WEIGHTS, TRAINING_REPORT, build_extractors, raw_items, read_schedule
from storyrec.schema import Domain
from storyrec.storage import Storage, write_file, write_folder
from storyrec.warmstart import load_weights, start_from_champion

ADEN_WEIGHTS = "aden.safetensors"
EXTRACTORS = "extractors."
SCORING_BATCH = 512  # sequences of larger batches leave a core's cache: up to 1.7 times slower

Int64s = NDArray[np.int64]
Floats = NDArray[np.float64]


def finetune_aden(
    config: Config, *, dataset: Path, dual: Path, champion: Path | None, checkpoints: Storage, out: Path
) -> None:
    """Train the click model on the training days' impressions.

    Under torchrun all processes train together and the first one writes.

    Args:
        config: sections `model`, `features` and `aden`.
        dataset: the day's dataset folder.
        dual: the folder that `pretrain_dual` wrote; the extractors start from it.
        champion: bundle folder whose weights are the start, save for words it does not know; None or
            one that does not fit: pre-trained extractors and a fresh ranker.
        checkpoints: where a killed run is resumed from.
        out: folder to write: aden.safetensors and training.json.

    Raises:
        DataError: nothing to learn from or to validate on.
        ModelError: the training diverged, or the files of the start are damaged.
    """
    data = Dataset.load(dataset)
    _require_both_classes(data.train, part="training", where=dataset)
    if not len(data.validation):
        raise DataError(
            "the dataset has no validation impressions",
            where=str(dataset),
            remedy="raise windows.training_days or windows.validation_share",
        )
    with training_device() as device:
        model = build_aden(config, num_words=data.vocabulary.size)
        load_extractors(model, dual / DUAL_WEIGHTS)
        start = start_from_champion(
            model,
            champion=champion,
            weights_name=ADEN_WEIGHTS,
            vocabulary=data.vocabulary,
            config=config,
            block_hours=data.windows.block_hours,
        )
        stories, products = raw_items(data, max_words=config.features.max_title_words)
        trained, stage = train_click_model(
            model.to(device),
            name="finetune_aden",
            config=config,
            data=data,
            stories=stories,
            products=products,
            keep_start=start.champion,
            checkpoints=checkpoints,
        )
        if not present_team().leads:
            return
    report = {
        "step": "finetune_aden",
        "start": start.to_json(),
        "stopped_by": stage.stopped_by,
        "num_training_instances": len(data.train),
        "num_validation_instances": len(stage.judged_B),
        **trained.to_json(),
    }
    with write_folder(out) as folder:
        write_file(folder / ADEN_WEIGHTS, safetensors.torch.save(model.cpu().state_dict()))
        write_file(folder / TRAINING_REPORT, json.dumps(report, indent=1).encode())


def train_click_model(
    model: ClickModel,
    *,
    name: str,
    config: Config,
    data: Dataset,
    stories: RawItems,
    products: RawItems,
    keep_start: bool,
    checkpoints: Storage,
) -> tuple[Trained, "ClickStage"]:
    """Train any click model on a dataset; the model ends with the weights of its best epoch.

    Args:
        model: with its initial weights, on its device.
        name: of the step, for progress and checkpoints.
        config: sections `model`, `features` and `aden`.
        data, stories, products: the dataset and what extractors read of its catalogs.
        keep_start: the initial weights may win.
        checkpoints: where a killed run is resumed from.

    Raises:
        ModelError: the training diverged.
    """
    settings = config.aden
    key = run_key(
        name,
        model=model,
        settings={
            "dataset": data.digest,
            "aden": settings.model_dump(mode="json"),
            "model": config.model.model_dump(mode="json"),
            "max_title_words": config.features.max_title_words,
            "sequence_length": config.features.sequence_length,
            "champion": keep_start,
        },
    )
    model.extractors.requires_grad_(not settings.freeze_extractors)
    device = next(model.parameters()).device
    compile_on_gpu(model.ranker, device)
    stage = ClickStage(
        model,
        data=data,
        stories=place_items(stories, device),
        products=place_items(products, device),
        batch_size=fitted_batch_size(len(data.train), largest=settings.batch_size),
        sequence_length=config.features.sequence_length,
        num_time_blocks=config.model.num_time_blocks,
    )
    trained = train(
        model,
        name=name,
        stage=stage,
        schedule=read_schedule(settings, keep_start=keep_start),
        store=CheckpointStore(checkpoints, key=key),
    )
    return trained, stage


def build_aden(config: Config, *, num_words: int) -> ClickModel:
    """A freshly initialised ADEN of the configured shape; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(config.aden.seed)
        ranker = Aden(
            width=config.model.width,
            num_heads=config.model.num_heads,
            num_time_blocks=config.model.num_time_blocks,
            head_widths=config.model.head_widths,
            dropout=config.model.dropout,
            gated=config.aden.gated,
        )
        return ClickModel(build_extractors(config, num_words=num_words), ranker)


def load_extractors(model: ClickModel, path: Path) -> None:
    """Take the pre-trained extractors out of dual.safetensors.

    Raises:
        ModelError: the file is missing, damaged, or of another shape.
    """
    weights = load_weights(path)
    extractors = {name.removeprefix(EXTRACTORS): w for name, w in weights.items() if name.startswith(EXTRACTORS)}
    try:
        model.extractors.load_state_dict(extractors)
    except RuntimeError as error:
        raise ModelError(
            f"the pre-trained extractors do not fit: {error}",
            expected="extractors pre-trained on this dataset with these settings",
            where=str(path),
            remedy="run pretrain_dual again with the same settings",
        ) from error


class ClickStage:
    """A click model's side of the training loop: batches grouped by user, judged by per-user AUC.

    Where no user has both a clicked and a non-clicked validation impression, log loss judges instead.
    """

    def __init__(
        self,
        model: ClickModel,
        *,
        data: Dataset,
        stories: RawItems,
        products: RawItems,
        batch_size: int,
        sequence_length: int,
        num_time_blocks: int,
    ) -> None:
        self.model, self.data, self.stories, self.products = model, data, stories, products
        self.batch_size, self.sequence_length, self.num_time_blocks = batch_size, sequence_length, num_time_blocks
        self.judged_B = scorable_impressions(data.validation)
        self.stopped_by = "per_user_auc" if len(self.judged_B) else "log_loss"
        if not len(self.judged_B):
            self.judged_B = np.arange(len(data.validation))

    def batches(self, generator: np.random.Generator) -> Sequence[Int64s]:
        """All training instances, users in random order."""
        return list(user_batches(self.data.train, batch_size=self.batch_size, generator=generator))

    def loss(self, index_B: Int64s, moment: Moment) -> tuple[Tensor, Mapping[str, float]]:
        """The method's loss of the share, by its part of the batch; cross-entropy unless it has more terms.

        Paper: Eq. 11.
        """
        share_B = index_B[moment.team.share(len(index_B))]
        if not len(share_B):
            return torch.zeros(()), {}
        loss = self.model.loss(self._batch(self.data.train, share_B), stories=self.stories, products=self.products)
        return loss * (len(share_B) / len(index_B)), {}

    def validate(self) -> Judgement:
        """Per-user AUC and log loss of the impressions that the AUC depends on."""
        validation = self.data.validation
        logits_B = self.score(validation, self.judged_B)
        clicked_B = validation.clicked_B[self.judged_B]
        log_loss = float(np.mean(np.logaddexp(0.0, np.where(clicked_B, -logits_B, logits_B))))
        if self.stopped_by == "log_loss":
            return Judgement(-log_loss, {"log_loss": log_loss})
        auc = per_user_auc(validation.user_ids_B[self.judged_B], clicked_B, logits_B).mean
        return Judgement(auc, {"per_user_auc": auc, "log_loss": log_loss})

    def score(self, instances: Instances, index_B: Int64s) -> Floats:
        """Logits of some instances, [B] float64; every item is extracted once for all of them.

        The model must be in evaluation mode, gradients off.
        """
        story_ND, product_ND = self._item_tables(instances, index_B)
        logits_B = np.empty(len(index_B), np.float64)
        for start in range(0, len(index_B), SCORING_BATCH):
            batch = self._batch(instances, index_B[start : start + SCORING_BATCH])
            features = self.model.features_from_tables(
                batch, story_ND=story_ND, product_ND=product_ND, stories=self.stories
            )
            logits_B[start : start + SCORING_BATCH] = self.model.ranker(features).cpu().numpy()
        return logits_B

    def _item_tables(self, instances: Instances, index_B: Int64s) -> tuple[Tensor, Tensor]:
        """The vectors of the items that these instances need, in tables with a row per catalog row."""
        data, reads = self.data, self.model.ranker.reads
        story_clicks = covered(instances.story_start_B[index_B], instances.story_stop_B[index_B])
        product_clicks = covered(instances.product_start_B[index_B], instances.product_stop_B[index_B])
        story_rows = [instances.story_rows_B[index_B]]
        if Domain.STORY in reads:
            story_rows.append(data.story_click_rows_C[story_clicks])
        product_rows = [data.product_click_rows_C[product_clicks]] if Domain.PRODUCT in reads else []
        return (
            self._item_table(self.stories, np.unique(np.concatenate(story_rows))),
            self._item_table(self.products, np.unique(np.concatenate([*product_rows, [0]]).astype(np.int64))),
        )

    def _item_table(self, items: RawItems, rows_N: Int64s) -> Tensor:
        parts = [
            self.model.item_vectors(items, rows_N[start : start + SCORING_BATCH])
            for start in range(0, len(rows_N), SCORING_BATCH)
        ]
        table_ND = parts[0].new_zeros(len(items), parts[0].shape[1])
        table_ND[torch.from_numpy(rows_N).to(table_ND.device)] = torch.cat(parts)
        return table_ND

    def _batch(self, instances: Instances, index_B: Int64s) -> Batch:
        return make_batch(
            self.data,
            instances,
            index_B,
            sequence_length=self.sequence_length,
            block_hours=self.data.windows.block_hours,
            num_time_blocks=self.num_time_blocks,
        )


def covered(start_B: Int64s, stop_B: Int64s) -> Int64s:
    """All positions that lie in at least one of the slices, ascending."""
    edges = np.zeros(int(stop_B.max(initial=0)) + 1, np.int64)
    np.add.at(edges, start_B, 1)
    np.add.at(edges, stop_B, -1)
    return np.flatnonzero(np.cumsum(edges) > 0)


def scorable_impressions(instances: Instances) -> Int64s:
    """Indices of the impressions of users with both classes, user by user: only these have a per-user AUC."""
    users_U, user_B = np.unique(instances.user_ids_B, return_inverse=True)
    num_shown_U = np.bincount(user_B, minlength=len(users_U))
    num_clicked_U = np.bincount(user_B, weights=instances.clicked_B, minlength=len(users_U))
    scorable_U = (num_clicked_U > 0) & (num_clicked_U < num_shown_U)
    order_B = np.argsort(user_B, kind="stable")
    return order_B[scorable_U[user_B[order_B]]]


def _require_both_classes(instances: Instances, *, part: str, where: Path) -> None:
    num_clicked = int(np.count_nonzero(instances.clicked_B))
    if not 0 < num_clicked < len(instances):
        raise DataError(
            f"{num_clicked} clicked of {len(instances)} {part} impressions",
            expected="some that were clicked and some that were not",
            where=str(where),
            remedy="check the impressions of the training days, or raise windows.training_days",
        )
