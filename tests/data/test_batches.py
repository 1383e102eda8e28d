"""Batches: padding, time blocks, and which instances go together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import planted_dataset
from storyrec.data.batches import HOUR_US, make_batch, time_blocks, user_batches
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return planted_dataset(3, num_users=30)


@pytest.mark.parametrize(
    ("age_us", "block"),
    [
        (1, 1),
        (HOUR_US - 1, 1),
        (HOUR_US, 1),
        (HOUR_US + 1, 2),
        (168 * HOUR_US, 168),
        (168 * HOUR_US + 1, 169),
        (10_000 * HOUR_US, 169),
    ],
)
def test_time_blocks_at_their_edges(age_us: int, block: int) -> None:
    assert time_blocks(np.array([age_us]), block_hours=1, num_time_blocks=168).tolist() == [block]


def test_time_blocks_of_a_day() -> None:
    age_us = np.array([1, 24, 25, 48, 49]) * HOUR_US
    assert time_blocks(age_us, block_hours=24, num_time_blocks=2).tolist() == [1, 1, 2, 2, 3]


def test_batch_equals_a_loop_over_the_click_logs(dataset: Dataset) -> None:
    index = np.random.default_rng(0).choice(len(dataset.holdout), 60, replace=False)
    batch = make_batch(dataset, dataset.holdout, index, sequence_length=6, block_hours=2, num_time_blocks=5)
    for row, instance in enumerate(index):
        assert batch.story_rows_B[row] == dataset.holdout.story_rows_B[instance]
        assert batch.clicked_B[row] == float(dataset.holdout.clicked_B[instance])
        shown_us = dataset.holdout.shown_us_B[instance]
        for slots, blocks, log, catalog in (
            (batch.story_slots_BS, batch.story_blocks_BS, dataset.story_clicks, dataset.stories),
            (batch.product_slots_BP, batch.product_blocks_BP, dataset.product_clicks, dataset.products),
        ):
            clicks = [
                (int(t), int(item))
                for u, item, t in zip(log.user_ids_C, log.item_ids_C, log.clicked_us_C, strict=True)
                if u == dataset.holdout.user_ids_B[instance] and t < shown_us
            ][-6:]
            padding = [0] * (6 - len(clicks))
            expected_blocks = [min(-(-int(shown_us - t) // (2 * HOUR_US)), 6) for t, _ in clicks]
            assert catalog.item_ids_N[slots[row]].tolist() == [item for _, item in clicks] + padding
            assert blocks[row].tolist() == expected_blocks + padding


def test_slots_and_blocks_are_padding_together(dataset: Dataset) -> None:
    batch = make_batch(
        dataset, dataset.train, np.arange(len(dataset.train)), sequence_length=30, block_hours=1, num_time_blocks=168
    )
    assert ((batch.story_slots_BS == 0) == (batch.story_blocks_BS == 0)).all()
    assert ((batch.product_slots_BP == 0) == (batch.product_blocks_BP == 0)).all()
    lengths = dataset.train.product_stop_B - dataset.train.product_start_B
    assert ((batch.product_blocks_BP > 0).sum(axis=1) == lengths).all()
    assert batch.story_blocks_BS.max() <= 169


def test_a_user_without_clicks_has_only_padding(dataset: Dataset) -> None:
    nobody = replace(dataset.train.take(np.arange(2)), user_ids_B=np.array([10**9, 10**9]))
    nobody = dataset.instances_for(nobody, history_days=7)
    batch = make_batch(dataset, nobody, np.arange(2), sequence_length=4, block_hours=1, num_time_blocks=168)
    assert not batch.story_slots_BS.any()
    assert not batch.product_blocks_BP.any()
    assert batch.story_slots_BS.shape == (2, 4)


def instances_of(user_ids: list[int]) -> Instances:
    users = np.array(user_ids, np.int64)
    zeros = np.zeros(len(users), np.int64)
    return Instances(users, zeros + 1, zeros, zeros.astype(bool), zeros, zeros, zeros, zeros)


@settings(deadline=None)
@given(user_ids=st.lists(st.integers(1, 8), max_size=60), batch_size=st.integers(1, 12), seed=st.integers(0, 5))
def test_user_batches_hold_every_instance_once_and_users_whole(user_ids: list[int], batch_size: int, seed: int) -> None:
    instances = instances_of(user_ids)
    batches = list(user_batches(instances, batch_size=batch_size, generator=np.random.default_rng(seed)))

    assert sorted(np.concatenate([np.empty(0, int), *batches]).tolist()) == list(range(len(user_ids)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    for user in set(user_ids):
        touched = [number for number, batch in enumerate(batches) if user in instances.user_ids_B[batch]]
        if user_ids.count(user) <= batch_size:
            assert len(touched) == 1
        else:
            assert touched == list(range(touched[0], touched[-1] + 1))


def test_user_batches_are_filled_and_depend_on_the_generator_alone() -> None:
    instances = instances_of([user for user in range(1, 101) for _ in range(7)])

    def epoch(seed: int) -> list[list[int]]:
        return [b.tolist() for b in user_batches(instances, batch_size=64, generator=np.random.default_rng(seed))]

    assert epoch(1) == epoch(1)
    assert epoch(1) != epoch(2)
    assert [len(batch) for batch in epoch(1)[:-1]] == [63] * 11  # nine users of seven
    generator = np.random.default_rng(1)
    first, second = (list(user_batches(instances, batch_size=64, generator=generator)) for _ in range(2))
    assert [b.tolist() for b in first] != [b.tolist() for b in second]


def test_the_parts_of_a_long_user_are_drawn_anew_each_epoch() -> None:
    instances = instances_of([1] * 50)
    generator = np.random.default_rng(1)
    first, second = (list(user_batches(instances, batch_size=10, generator=generator)) for _ in range(2))
    assert [len(batch) for batch in first] == [10] * 5
    assert set(first[0].tolist()) != set(second[0].tolist())
    assert set(first[0].tolist()) != set(range(10))
