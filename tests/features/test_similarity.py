"""Eq. 1 against sets of Python."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from storyrec.features.similarity import title_similarity

TITLES = st.lists(st.sampled_from("abcdefg"), max_size=9)


def flat(titles: list[list[str]]) -> tuple[pa.Array, np.ndarray]:
    return pa.array([word for title in titles for word in title], pa.string()), np.cumsum([0, *map(len, titles)])


@given(st.lists(st.tuples(TITLES, TITLES), max_size=8))
def test_title_similarity_is_the_share_of_the_shorter_title(pairs: list[tuple[list[str], list[str]]]) -> None:
    expected = [
        len({*story} & {*product}) / min(len({*story}), len({*product})) if story and product else 0.0
        for story, product in pairs
    ]
    found_M = title_similarity(*flat([story for story, _ in pairs]), *flat([product for _, product in pairs]))
    assert found_M.tolist() == expected


def test_words_may_be_numbers() -> None:
    found_M = title_similarity([1, 2, 3, 4, 1], np.array([0, 4, 5]), [3, 4, 5, 6, 7, 1, 2], np.array([0, 5, 7]))
    assert found_M.tolist() == [0.5, 1.0]
