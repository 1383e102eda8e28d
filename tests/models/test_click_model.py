"""Which items of a batch are extracted, once each."""

import numpy as np
import pytest

from storyrec.models.click_model import SORTED_BEYOND, distinct


@pytest.mark.parametrize("num_rows", [9, 5 * SORTED_BEYOND + 1], ids=["small catalog", "large catalog"])
def test_distinct_rows_and_the_place_of_each(num_rows: int) -> None:
    rows_N, places = distinct(np.array([7, 0, 7, 3, 8]), num_rows=num_rows)
    assert rows_N.tolist() == [0, 3, 7, 8]
    assert places.tolist() == [2, 0, 2, 1, 3]
