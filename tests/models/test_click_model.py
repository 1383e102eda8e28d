"""Extractors and a ranker together: which modalities and domains count, and who a user is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from storyrec.data.batches import Batch
from storyrec.models.click_model import ClickModel, Features, Ranker
from storyrec.models.extractors import BOTH_MODALITIES, Extractors, Modality, RawItems
from storyrec.schema import Domain

WIDTH, NUM_ITEMS, LENGTH, NUM_ROWS = 6, 9, 4, 5


class Everything(Ranker):
    """The sum of all that a ranker may read of items, in the domains that it reads."""

    def __init__(self, *, reads: frozenset[Domain]) -> None:
        super().__init__()
        self.reads = reads
        self.seen: list[Features] = []

    def forward(self, features: Features) -> torch.Tensor:
        self.seen.append(features)
        return features.target_BD.sum(-1) + features.story_BSD.sum((1, 2)) + features.product_BPD.sum((1, 2))


def raw_items(domain: Domain, seed: int) -> RawItems:
    generator = np.random.default_rng(seed)
    tokens_NW = generator.integers(1, 20, size=(NUM_ITEMS, 3)).astype(np.int32)
    visual_NV = generator.normal(size=(NUM_ITEMS, 7)).astype(np.float16)
    tokens_NW[0], visual_NV[0] = 0, 0
    return RawItems.of(tokens_NW, visual_NV, domain=domain, categories_N=generator.integers(1, 5, size=NUM_ITEMS))


@pytest.fixture
def batch() -> Batch:
    generator = np.random.default_rng(0)
    rows = [generator.integers(1, NUM_ITEMS, size=(NUM_ROWS, LENGTH)) for _ in range(2)]
    blocks = [np.ones((NUM_ROWS, LENGTH), np.int64) for _ in range(2)]
    for slots_BL, blocks_BL in zip(rows, blocks, strict=True):
        slots_BL[:, 3] = blocks_BL[:, 3] = 0
    return Batch(
        story_rows_B=generator.integers(1, NUM_ITEMS, size=NUM_ROWS),
        story_slots_BS=rows[0],
        story_blocks_BS=blocks[0],
        product_slots_BP=rows[1],
        product_blocks_BP=blocks[1],
        clicked_B=np.array([1, 0, 0, 1, 0], np.float32),
        user_rows_B=np.array([3, 0, 1, 2, 2]),
    )


def model(
    *, modalities: frozenset[Modality] = BOTH_MODALITIES, reads: frozenset[Domain] = frozenset(Domain)
) -> ClickModel:
    torch.manual_seed(0)
    extractors = Extractors(num_words=20, width=WIDTH, max_words=3, visual_width=7)
    return ClickModel(extractors, Everything(reads=reads), modalities=modalities).eval()


def with_other_titles(items: RawItems) -> RawItems:
    return replace(items, tokens_NW=np.where(items.tokens_NW > 0, 20 - items.tokens_NW, 0).astype(np.int32))


def with_other_covers(items: RawItems) -> RawItems:
    return RawItems.of(items.tokens_NW, -items.visual_raw_NV, domain=items.domain, categories_N=items.categories_N)


@pytest.mark.parametrize("modality", Modality)
def test_one_modality_ignores_the_other(modality: Modality, batch: Batch) -> None:
    catalogs = {"stories": raw_items(Domain.STORY, 1), "products": raw_items(Domain.PRODUCT, 2)}
    alone, both = model(modalities=frozenset({modality})), model()
    change_own, change_other = with_other_titles, with_other_covers
    if modality == Modality.VISUAL:
        change_own, change_other = change_other, change_own
    for name, items in catalogs.items():
        others = catalogs | {name: change_other(items)}
        assert torch.equal(alone(batch, **others), alone(batch, **catalogs))
        assert not torch.allclose(both(batch, **others), both(batch, **catalogs))
        assert not torch.allclose(alone(batch, **catalogs | {name: change_own(items)}), alone(batch, **catalogs))


def test_modalities_add_up(batch: Batch) -> None:
    catalogs = {"stories": raw_items(Domain.STORY, 1), "products": raw_items(Domain.PRODUCT, 2)}
    visual_B, textual_B = (model(modalities=frozenset({modality}))(batch, **catalogs) for modality in Modality)
    torch.testing.assert_close(visual_B + textual_B, model()(batch, **catalogs))


def test_weights_of_another_modality_are_not_learned(batch: Batch) -> None:
    catalogs = {"stories": raw_items(Domain.STORY, 1), "products": raw_items(Domain.PRODUCT, 2)}
    for modality, learned in ((Modality.VISUAL, "visual_projection"), (Modality.TEXTUAL, "words")):
        alone = model(modalities=frozenset({modality}))
        alone.loss(batch, **catalogs).backward()
        touched = {name for name, part in alone.extractors.named_parameters() if part.grad is not None}
        assert f"{learned}.weight" in touched
        assert ("visual_projection.weight" in touched) == (modality == Modality.VISUAL)
        assert ("words.weight" in touched) == (modality == Modality.TEXTUAL)


@pytest.mark.parametrize("reads", [frozenset(), frozenset({Domain.STORY}), frozenset({Domain.PRODUCT})])
def test_a_domain_that_is_not_read_is_zero(reads: frozenset[Domain], batch: Batch) -> None:
    stories, products = raw_items(Domain.STORY, 1), raw_items(Domain.PRODUCT, 2)
    both, some = model(), model(reads=reads)
    all_features = both.features(batch, stories=stories, products=products)
    features = some.features(batch, stories=stories, products=products)
    torch.testing.assert_close(features.target_BD, all_features.target_BD)
    for domain, name in ((Domain.STORY, "story_BSD"), (Domain.PRODUCT, "product_BPD")):
        expected = getattr(all_features, name)
        torch.testing.assert_close(getattr(features, name), expected if domain in reads else torch.zeros_like(expected))


def test_features_name_users_and_categories(batch: Batch) -> None:
    stories, products = raw_items(Domain.STORY, 1), raw_items(Domain.PRODUCT, 2)
    features = model().features(batch, stories=stories, products=products)
    assert features.user_rows_B.tolist() == [3, 0, 1, 2, 2]
    assert features.target_categories_B.tolist() == [stories.categories_N[row] for row in batch.story_rows_B]
    assert features.story_categories_BS.tolist() == [
        [stories.categories_N[row] for row in rows] for rows in batch.story_slots_BS
    ]
