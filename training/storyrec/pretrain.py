"""The step `pretrain_dual`: extractors that place a story near the product it mounts.

Paper: Sec. III-B. Legend: M pairs, B pairs of a batch, N items.
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
from storyrec.config import Config, Contrast, Training
from storyrec.data.dataset import Dataset
from storyrec.loop import Judgement, Moment, Schedule, Trained, fitted_batch_size, train, training_device
from storyrec.losses import domain_adversarial_loss, dual_domain_loss, info_nce_loss
from storyrec.models.dual import Dual, reversal_strength
from storyrec.models.extractors import Extractors, RawItems
from storyrec.pairs import Mounts, draw_others, split_pairs
from storyrec.schema import Domain
from storyrec.storage import Storage, write_file, write_folder
from storyrec.warmstart import start_from_champion

DUAL_WEIGHTS = "dual.safetensors"
TRAINING_REPORT = "training.json"

Int64s = NDArray[np.int64]
TOO_FEW_PAIRS = "fewer than two stories mount a product: the extractors stay as they started"


def pretrain_dual(config: Config, *, dataset: Path, champion: Path | None, checkpoints: Storage, out: Path) -> None:
    """Pre-train the extractors of both domains on the mounted products of the stories.

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
                stories=stories,
                products=products,
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


class PairStage:
    """DUAL's side of the training loop: batches of pairs, Eq. 5 and 6 in both modalities, all weights 1.

    A pair counts in the visual modality only if both its items have a cover; without any cover the
    visual losses are left out.
    """

    def __init__(
        self,
        model: Dual,
        *,
        stories: RawItems,
        products: RawItems,
        mounts: Mounts,
        training_M2: Int64s,
        validation_M2: Int64s,
        batch_size: int,
        margin: float = 1.0,
        squared: bool = False,
        contrast: Contrast = "hinge",
        adversary: bool = True,
        seed: int,
    ) -> None:
        self.model, self.stories, self.products, self.mounts = model, stories, products, mounts
        self.training_M2, self.validation_M2 = training_M2, validation_M2
        self.batch_size, self.margin, self.squared, self.seed = batch_size, margin, squared, seed
        self.contrast, self.adversary = contrast, adversary

    def batches(self, generator: np.random.Generator) -> Sequence[Int64s]:
        """All training pairs in random order."""
        order_M = generator.permutation(len(self.training_M2))
        return [order_M[start : start + self.batch_size] for start in range(0, len(order_M), self.batch_size)]

    def loss(self, index_B: Int64s, moment: Moment) -> tuple[Tensor, Mapping[str, float]]:
        """Sum of the hinges and of the classifiers' cross-entropies, reversed for the extractors. Paper: Eq. 5-8."""
        parts = self._losses(
            self.training_M2[index_B], strength=reversal_strength(moment.progress), generator=moment.generator
        )
        total = torch.stack([part for name, part in parts.items() if not name.endswith("accuracy")]).sum()
        return total, _shown({name: part.item() for name, part in parts.items()})

    def validate(self) -> Judgement:
        """Judge by the contrast alone: the classifiers' own loss rises as the extractors get better."""
        generator = np.random.default_rng(self.seed)
        totals: dict[str, list[tuple[float, int]]] = {}
        for start in range(0, len(self.validation_M2), self.batch_size):
            pairs_B2 = self.validation_M2[start : start + self.batch_size]
            for name, part in self._losses(pairs_B2, strength=0.0, generator=generator).items():
                totals.setdefault(name, []).append((part.item(), len(pairs_B2)))
        means = {
            name: sum(value * number for value, number in parts) / sum(number for _, number in parts)
            for name, parts in totals.items()
        }
        return Judgement(-sum(value for name, value in means.items() if name.endswith(self.contrast)), _shown(means))

    def _losses(self, pairs_B2: Int64s, *, strength: float, generator: np.random.Generator) -> dict[str, Tensor]:
        """Contrast, adversary and domain accuracy of each modality that the batch has."""
        story = self.model.extractors.extract(self.stories, pairs_B2[:, 0])
        product = self.model.extractors.extract(self.products, pairs_B2[:, 1])
        story_logits = self.model(story, strength=strength)
        product_logits = self.model(product, strength=strength)
        has_cover_B = self.stories.has_cover_N[pairs_B2[:, 0]], self.products.has_cover_N[pairs_B2[:, 1]]
        all_B = np.ones(len(pairs_B2), np.bool_)
        losses: dict[str, Tensor] = {}
        for modality, (story_real_B, product_real_B), features, logits in (
            ("title", (all_B, all_B), (story.textual_ND, product.textual_ND),
             (story_logits.textual_B, product_logits.textual_B)),
            ("cover", has_cover_B, (story.visual_ND, product.visual_ND),
             (story_logits.visual_B, product_logits.visual_B)),
        ):  # fmt: skip
            (real,) = np.nonzero(story_real_B & product_real_B)
            story_BD, product_BD = (part[_index(real, part)] for part in features)
            contrast = self._contrast(pairs_B2[real], story_BD, product_BD, generator=generator)
            if contrast is not None:
                losses[f"{modality}_{self.contrast}"] = contrast
            story_real, product_real = np.flatnonzero(story_real_B), np.flatnonzero(product_real_B)
            if self.adversary and len(story_real) and len(product_real):
                story_B = logits[0][_index(story_real, logits[0])]
                product_B = logits[1][_index(product_real, logits[1])]
                losses[f"{modality}_adversary"] = domain_adversarial_loss(story_B, product_B)
                right = torch.cat([story_B <= 0, product_B > 0])
                losses[f"{modality}_domain_accuracy"] = right.float().mean()
        return losses

    def _contrast(
        self, pairs_B2: Int64s, story_BD: Tensor, product_BD: Tensor, *, generator: np.random.Generator
    ) -> Tensor | None:
        """The contrast of one modality, which has its own negatives; None where the batch holds no negative."""
        if self.contrast == "infonce":
            related_BB = self.mounts.contain_all(pairs_B2[:, 0], pairs_B2[:, 1])
            if related_BB.all():
                return None
            related = torch.from_numpy(related_BB).to(story_BD.device)
            return info_nce_loss(story_BD, product_BD, related)
        others_B = draw_others(pairs_B2, mounts=self.mounts, generator=generator)
        own, other = _index(np.flatnonzero(others_B >= 0), story_BD), _index(others_B[others_B >= 0], story_BD)
        if not len(own):
            return None
        return dual_domain_loss(
            story_BD[own], product_BD[own], story_BD[other], product_BD[other], margin=self.margin, squared=self.squared
        )


def _index(positions: Int64s, like: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(like.device)


def _shown(parts: Mapping[str, float]) -> dict[str, float]:
    """The parts and, per modality, their sum as the authors plot it."""
    sums = {
        f"{modality}_loss": sum(
            value for name, value in parts.items() if name.startswith(modality) and not name.endswith("accuracy")
        )
        for modality in ("title", "cover")
        if any(name.startswith(modality) for name in parts)
    }
    return {**parts, **sums}
