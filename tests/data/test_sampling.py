"""Sampled users: the share that was asked for, and the same ones at every larger share."""

import numpy as np
import pytest

from storyrec.data.sampling import is_sampled

USERS = np.arange(1, 20_001)


@pytest.mark.parametrize("share", [0.01, 0.25, 0.9])
def test_about_that_share_of_the_users_is_sampled(share: float) -> None:
    assert is_sampled(USERS, share=share).mean() == pytest.approx(share, abs=0.01)


def test_a_larger_share_holds_the_smaller_one() -> None:
    assert not (is_sampled(USERS, share=0.2) & ~is_sampled(USERS, share=0.3)).any()
    assert is_sampled(USERS, share=1).all()


def test_all_rows_of_a_user_go_together() -> None:
    rows_B = np.repeat(USERS, 3)
    assert (is_sampled(rows_B, share=0.5).reshape(-1, 3) == is_sampled(USERS, share=0.5)[:, None]).all()


def test_neighbouring_ids_are_drawn_apart() -> None:
    sampled = is_sampled(USERS, share=0.5)
    assert np.mean(sampled[1:] == sampled[:-1]) == pytest.approx(0.5, abs=0.02)
