"""Table V: operations counted by hand, one formula a part of a model."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from experiment_world import small_world

from storyrec.config import update_config
from storyrec.data.batches import Batch, make_batch, user_batches
from storyrec.experiments.fit import open_dataset
from storyrec.experiments.flops import Flops, count_flops, run_table5
from storyrec.experiments.methods import METHODS, TABLE_4
from storyrec.models.extractors import RawItems
from storyrec.schema import COVER_WIDTH
from trained import World

D, HEADS, HIDDEN, BATCH = 16, 4, (16, 8), 64


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def batch(small: World) -> Batch:
    """The instances that operations are counted on: whole users."""
    data = small.data
    index_B = next(user_batches(data.train, batch_size=BATCH, generator=np.random.default_rng(0)))
    return make_batch(
        data,
        data.train,
        index_B,
        sequence_length=small.config.features.sequence_length,
        block_hours=data.windows.block_hours,
        num_time_blocks=small.config.model.num_time_blocks,
    )


def items(small: World) -> tuple[RawItems, RawItems]:
    _, stories, products = open_dataset(small.dataset, max_words=small.config.features.max_title_words)
    return stories, products


def count(small: World, name: str) -> Flops:
    stories, products = items(small)
    return count_flops(
        METHODS[name], config=small.config, data=small.data, stories=stories, products=products, batch_size=BATCH
    )


def of_story(stories: RawItems, rows: np.ndarray) -> int:
    """Extracting stories: the cover, 512 x d, and two d x d products a word of the title (Eq. 2-4)."""
    num_words = int((stories.tokens_NW[rows] != 0).sum())
    return 2 * COVER_WIDTH * D * len(rows) + 2 * 2 * D * D * num_words


def of_product(rows: np.ndarray) -> int:
    """Extracting products: the cover alone, for a title's mean has no product of matrices."""
    return 2 * COVER_WIDTH * D * len(rows)


def of_layers(*widths: int) -> int:
    return 2 * sum(first * second for first, second in pairwise(widths))


def millions(flops: int, batch: Batch) -> float:
    return 1e-6 * flops / len(batch.story_rows_B)


def test_mf_extracts_its_targets_and_no_more(small: World, batch: Batch) -> None:
    stories, _ = items(small)
    found = count(small, "MF")
    once, slots = of_story(stories, np.unique(batch.story_rows_B)), of_story(stories, batch.story_rows_B)
    assert found.inference_all_once == pytest.approx(millions(once, batch))
    assert found.inference_all == pytest.approx(millions(slots, batch))
    assert found.training_sequence == found.inference_sequence == found.dual == 0.0
    # backwards: weights twice, but nothing flows back to covers
    words = 2 * 2 * D * D * int((stories.tokens_NW[np.unique(batch.story_rows_B)] != 0).sum())
    assert found.training_all_once == pytest.approx(millions(2 * once + words, batch))


def test_aden_by_hand(small: World, batch: Batch) -> None:
    stories, _ = items(small)
    found = count(small, "ADAPT w/o DUAL")
    num, head_width = len(batch.story_rows_B), D // HEADS
    attention = 0
    for blocks_BL in (batch.story_blocks_BS, batch.product_blocks_BP):
        length = blocks_BL.shape[1]
        attention += of_layers(D, D)  # the query
        attention += 2 * HEADS * head_width * D + 2 * HEADS * head_width  # folded with the keys and their bias
        attention += 2 * HEADS * D * length * 2  # scores, and the weighted sum
        attention += 2 * HEADS * D * head_width  # the values
    head = of_layers(3 * D, *HIDDEN, 1)
    # padding is among the distinct ones: no words, but its row of zeros goes through the projection
    story_rows = np.unique(np.concatenate([batch.story_rows_B, batch.story_slots_BS.ravel()]))
    product_rows = np.unique(batch.product_slots_BP)
    once = of_story(stories, story_rows) + of_product(product_rows)
    story_slots = np.concatenate([batch.story_rows_B, batch.story_slots_BS[batch.story_slots_BS > 0]])
    slots = of_story(stories, story_slots) + of_product(batch.product_slots_BP[batch.product_slots_BP > 0])

    assert found.inference_sequence == pytest.approx(millions(num * attention, batch))
    assert found.inference_all_once == pytest.approx(millions(num * (attention + head) + once, batch))
    assert found.inference_all == pytest.approx(millions(num * (attention + head) + slots, batch))


def test_a_method_that_reads_one_domain_pays_for_one(small: World, batch: Batch) -> None:
    both, story, product = (count(small, name) for name in ("ADAPT w/o DUAL", "V+T (storytelling)", "V+T (product)"))
    assert both.inference_sequence == pytest.approx(story.inference_sequence + product.inference_sequence)
    titles, covers = count(small, "T (product)"), count(small, "V (product)")
    head = millions(len(batch.story_rows_B) * of_layers(2 * D, *HIDDEN, 1), batch)
    assert titles.inference_sequence == pytest.approx(covers.inference_sequence)
    shared = covers.inference_sequence + head
    assert product.inference_all == pytest.approx(titles.inference_all + covers.inference_all - shared)


@pytest.mark.parametrize("name", [method.name for method in TABLE_4])
def test_items_once_cost_no_more_than_in_every_slot(name: str, small: World) -> None:
    found = count(small, name)
    assert 0 < found.inference_all_once <= found.inference_all
    assert 0 < found.training_all_once <= found.training_all
    assert found.inference_all < found.training_all
    assert found.inference_sequence <= found.inference_all_once
    assert (found.dual > 0) == (name == "ADAPT")
    assert (found.inference_sequence > 0) == (name not in {"MF", "NCF", "CMF"})  # CMF reads clicks, to learn alone
    assert (found.training_sequence > 0) == (name not in {"MF", "NCF", "CMF"})


def test_a_dual_step_by_hand(small: World) -> None:
    """Three times the forward operations, save that nothing flows back to covers; two classifiers an item."""
    stories, _ = items(small)
    pairs_M2 = np.asarray(small.data.pairs_M2[: small.config.dual.batch_size])
    rows = pairs_M2[:, 0]
    num_words = int((stories.tokens_NW[rows] != 0).sum())
    covers, words, classifiers = 2 * COVER_WIDTH * D, 2 * 2 * D * D, 2 * 2 * D
    expected = len(rows) * 2 * (2 * covers + 3 * classifiers) + 3 * words * num_words
    assert count(small, "ADAPT").dual == pytest.approx(1e-6 * expected / len(rows))


def test_table_5_counts_every_method_on_the_same_batch(small: World) -> None:
    config = update_config(small.config, {"aden": {"batch_size": BATCH}})
    methods = [METHODS[name] for name in ("MF", "ADAPT")]
    results = run_table5(methods, config=config, dataset=small.dataset)
    assert [(run.method, run.seed) for run in results.runs] == [("MF", 0), ("ADAPT", 0)]
    assert results.runs[0].metrics == vars(count(small, "MF"))
    assert results.data["digest"] == small.data.digest
    num_words, num_users = small.data.vocabulary.size, len(small.data.training_users_U)
    extractors = num_words * D + small.config.features.max_title_words * D + COVER_WIDTH * D + D * D + D + D * D
    assert results.runs[0].num_parameters == extractors + (num_users + 1) * D
    assert Path(results.data["name"]).name == "logs"
