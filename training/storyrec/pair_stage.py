"""DUAL's side of the training loop: which pairs are contrasted, and what a batch of them costs.

Paper: Sec. III-B, Eq. 5-8. Legend: M pairs, B pairs of a batch, N items of one modality, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from storyrec.config import Contrast
from storyrec.distributed import ALONE, Team
from storyrec.loop import Judgement, Moment
from storyrec.losses import domain_adversarial_loss, dual_domain_loss, info_nce_loss
from storyrec.models.dual import Dual, reversal_strength
from storyrec.models.extractors import RawItems
from storyrec.pairs import Mounts, draw_others

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
            self.training_M2[index_B],
            strength=reversal_strength(moment.progress),
            generator=moment.generator,
            team=moment.team,
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

    def _losses(
        self, pairs_B2: Int64s, *, strength: float, generator: np.random.Generator, team: Team = ALONE
    ) -> dict[str, Tensor]:
        """Contrast, adversary and domain accuracy of each modality that the batch has.

        They are means over the batch; in a team, what this process's share of the pairs adds to them.
        """
        mine_B = np.zeros(len(pairs_B2), np.bool_)
        mine_B[team.share(len(pairs_B2))] = True
        all_B = np.ones(len(pairs_B2), np.bool_)
        titles = all_B, all_B
        covers = self.stories.has_cover_N[pairs_B2[:, 0]], self.products.has_cover_N[pairs_B2[:, 1]]
        # drawn for the whole batch, and so the same in every process
        contrasted = [self._contrasted(pairs_B2, *real, generator=generator) for real in (titles, covers)]
        read_B = mine_B.copy()
        for pairs in contrasted:
            read_B[pairs.read(mine_B, whole=self.contrast == "infonce")] = True
        read_B[0] = True  # one at least, where a share is empty

        story = self.model.extractors.extract(self.stories, pairs_B2[read_B, 0])
        product = self.model.extractors.extract(self.products, pairs_B2[read_B, 1])
        story_logits = self.model(story, strength=strength)
        product_logits = self.model(product, strength=strength)
        losses: dict[str, Tensor] = {}
        for modality, real, pairs, features, logits in (
            ("title", titles, contrasted[0], (story.textual_ND, product.textual_ND),
             (story_logits.textual_B, product_logits.textual_B)),
            ("cover", covers, contrasted[1], (story.visual_ND, product.visual_ND),
             (story_logits.visual_B, product_logits.visual_B)),
        ):  # fmt: skip
            if len(pairs.own):
                losses[f"{modality}_{self.contrast}"] = self._contrast(
                    pairs, pairs_B2, features, mine_B=mine_B, read_B=read_B, team=team
                )
            if self.adversary and real[0].any() and real[1].any():
                loss, accuracy = _adversary(real, logits, mine_B=mine_B, read_B=read_B)
                losses |= {f"{modality}_adversary": loss, f"{modality}_domain_accuracy": accuracy}
        return losses

    def _contrasted(
        self, pairs_B2: Int64s, story_real_B: Bools, product_real_B: Bools, *, generator: np.random.Generator
    ) -> "_Contrasted":
        """Which pairs of a batch are contrasted in one modality, which has its own negatives."""
        (real,) = np.nonzero(story_real_B & product_real_B)
        if self.contrast == "infonce":
            alone = self.mounts.contain_all(pairs_B2[real, 0], pairs_B2[real, 1]).all()
            own = np.arange(0 if alone else len(real))
            return _Contrasted(real, own, own)
        others = draw_others(pairs_B2[real], mounts=self.mounts, generator=generator)
        return _Contrasted(real, np.flatnonzero(others >= 0), others[others >= 0])

    def _contrast(
        self,
        pairs: "_Contrasted",
        pairs_B2: Int64s,
        features: tuple[Tensor, Tensor],
        *,
        mine_B: Bools,
        read_B: Bools,
        team: Team,
    ) -> Tensor:
        """What the share adds to the mean contrast of one modality."""
        place_B = np.cumsum(read_B) - 1
        read = pairs.real[read_B[pairs.real]]
        story_BD, product_BD = (part[_index(place_B[read], part)] for part in features)
        if self.contrast == "infonce":  # needs all similarities at once: every process computes the whole
            related_BB = self.mounts.contain_all(pairs_B2[read, 0], pairs_B2[read, 1])
            return info_nce_loss(story_BD, product_BD, _index(related_BB, story_BD)) / team.size
        is_mine = mine_B[pairs.real[pairs.own]]
        if not is_mine.any():
            return story_BD.new_zeros(())
        place = np.cumsum(read_B[pairs.real]) - 1
        own, other = (_index(place[side[is_mine]], story_BD) for side in (pairs.own, pairs.other))
        loss = dual_domain_loss(
            story_BD[own], product_BD[own], story_BD[other], product_BD[other], margin=self.margin, squared=self.squared
        )
        return loss * (len(own) / len(is_mine))


@dataclass(frozen=True)
class _Contrasted:
    """Pairs of a batch that are contrasted in one modality.

    Attributes:
        real: positions in the batch of the pairs that have the modality on both sides.
        own, other: positions among `real` of the pairs that have a negative, and of their negatives; with
            InfoNCE, where all are each other's negatives, all twice.
    """

    real: Int64s
    own: Int64s
    other: Int64s

    def read(self, mine_B: Bools, *, whole: bool) -> Int64s:
        """Positions in the batch of all items that the contrast of a share reads."""
        is_mine = mine_B[self.real[self.own]] | whole
        return self.real[np.concatenate([self.own[is_mine], self.other[is_mine]])]


def _adversary(
    real: tuple[Bools, Bools], logits: tuple[Tensor, Tensor], *, mine_B: Bools, read_B: Bools
) -> tuple[Tensor, Tensor]:
    """What the share adds to the mean cross-entropy of a classifier and to its accuracy. Paper: Eq. 6."""
    parts = [
        logits_B[_index(np.flatnonzero((real_B & mine_B)[read_B]), logits_B)]
        for logits_B, real_B in zip(logits, real, strict=True)
    ]
    num_mine, num_all = sum(map(len, parts)), int(real[0].sum() + real[1].sum())
    if not num_mine:
        return logits[0].new_zeros(()), logits[0].new_zeros(())
    share = num_mine / num_all
    right = torch.cat([parts[0] <= 0, parts[1] > 0])
    return domain_adversarial_loss(*parts) * share, right.float().mean() * share


def _index(positions: NDArray[np.generic], like: Tensor) -> Tensor:
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
