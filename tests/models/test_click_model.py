"""Which items of a batch are extracted, and which sequences are read, once each."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from drawn_features import drawn_features
from storyrec.data.batches import Batch
from storyrec.models.click_model import BOTH_DOMAINS, SORTED_BEYOND, Features, distinct, first_with_same_sequences
from storyrec.schema import Domain


@pytest.mark.parametrize("num_rows", [9, 5 * SORTED_BEYOND + 1], ids=["small catalog", "large catalog"])
def test_distinct_rows_and_the_place_of_each(num_rows: int) -> None:
    rows_N, places = distinct(np.array([7, 0, 7, 3, 8]), num_rows=num_rows)
    assert rows_N.tolist() == [0, 3, 7, 8]
    assert places.tolist() == [2, 0, 2, 1, 3]


@pytest.mark.parametrize(
    ("reads", "expected"),
    [
        (BOTH_DOMAINS, [0, 1, 2, 3, 0]),
        (frozenset({Domain.STORY}), [0, 0, 2, 3, 0]),
        (frozenset({Domain.PRODUCT}), [0, 1, 0, 0, 0]),
    ],
)
def test_sequences_are_the_same_if_clicks_and_time_blocks_are(reads: frozenset[Domain], expected: list[int]) -> None:
    zeros_B = np.zeros(5, np.int64)
    batch = Batch(
        story_rows_B=np.arange(5),
        story_slots_BS=np.array([[4, 0], [4, 0], [5, 0], [4, 0], [4, 0]]),
        story_blocks_BS=np.array([[1, 0], [1, 0], [1, 0], [2, 0], [1, 0]]),
        product_slots_BP=np.array([[7, 8], [7, 9], [7, 8], [7, 8], [7, 8]]),
        product_blocks_BP=np.array([[3, 1], [3, 1], [3, 1], [3, 1], [3, 1]]),
        clicked_B=zeros_B.astype(np.float32),
        user_rows_B=zeros_B,
    )
    assert first_with_same_sequences(batch, reads).tolist() == expected


def test_a_part_reads_each_distinct_sequence_once() -> None:
    features = replace(drawn_features(), first_B=torch.tensor([0, 1, 0, 3, 1, 0]))
    seen = []

    def part(sequences: Features) -> torch.Tensor:
        seen.append(sequences)
        return sequences.story_BSD[:, 0]

    assert torch.equal(features.per_sequence(part), features.story_BSD[[0, 1, 0, 3, 1, 0], 0])
    assert [len(sequences.product_blocks_BP) for sequences in seen] == [3]
