"""Instances: which impressions train, validate and are held out."""

from dataclasses import replace

import numpy as np
import pytest

from storyrec.data.instances import Instances, balance, split_by_time, split_training
from storyrec.errors import DataError

DAY_US = 86_400_000_000


def impressions(shown_us: np.ndarray, clicked: np.ndarray) -> Instances:
    numbers = np.arange(1, len(shown_us) + 1)
    zeros = np.zeros(len(shown_us), np.int64)
    return Instances(numbers, numbers, shown_us.astype(np.int64), clicked.astype(bool), zeros, zeros, zeros, zeros)


def random_impressions(seed: int = 0, *, num_days: int = 4) -> Instances:
    generator = np.random.default_rng(seed)
    return impressions(generator.integers(num_days * DAY_US, size=900), generator.random(900) < 0.2)


def test_balance_keeps_every_click_and_as_many_others_of_each_day() -> None:
    all_of_them = random_impressions()
    balanced = balance(all_of_them, seed=1)
    assert set(all_of_them.user_ids_B[all_of_them.clicked_B]) <= set(balanced.user_ids_B)
    assert len(set(balanced.user_ids_B)) == len(balanced)
    for day in range(4):
        labels = balanced.clicked_B[balanced.shown_us_B // DAY_US == day]
        assert labels.sum() == (~labels).sum() > 0


def test_balance_draws_anew_for_another_seed_and_the_same_for_the_same() -> None:
    first, again, other = (balance(random_impressions(), seed=seed).user_ids_B.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_draw_of_a_day_does_not_depend_on_the_other_days() -> None:
    all_of_them = random_impressions()
    alone = balance(all_of_them.take(all_of_them.shown_us_B // DAY_US == 2), seed=1)
    together = balance(all_of_them, seed=1)
    assert alone.user_ids_B.tolist() == together.user_ids_B[together.shown_us_B // DAY_US == 2].tolist()


def test_two_days_of_the_same_impressions_have_draws_of_their_own() -> None:
    day = random_impressions(num_days=1)
    first, second = (balance(replace(day, shown_us_B=day.shown_us_B + n * DAY_US), seed=1) for n in (0, 1))
    assert len(first) == len(second)
    assert first.user_ids_B.tolist() != second.user_ids_B.tolist()


def test_a_day_with_more_clicks_than_others_keeps_all_it_has() -> None:
    assert len(balance(impressions(np.arange(5), np.array([1, 1, 1, 0, 0])), seed=0)) == 5


def test_no_impressions_stay_none() -> None:
    assert len(balance(impressions(np.arange(0), np.arange(0)), seed=0)) == 0


def test_split_puts_the_last_share_second() -> None:
    first, second = split_by_time(random_impressions(), last_share=0.1)
    assert len(second) == 90
    assert first.shown_us_B.max() < second.shown_us_B.min()


def test_split_keeps_impressions_of_one_time_together() -> None:
    # 6 + 3 + 1 impressions: a tenth exactly; a third is nearest to 6 | 4
    times = np.repeat([0, DAY_US, 2 * DAY_US], [6, 3, 1])
    some = impressions(times, np.zeros(10))
    assert [len(part) for part in split_by_time(some, last_share=0.1)] == [9, 1]
    assert [len(part) for part in split_by_time(some, last_share=0.33)] == [6, 4]
    assert [len(part) for part in split_by_time(some, last_share=0.001)] == [9, 1], "neither part is ever empty"


def test_impressions_of_a_single_time_cannot_be_split() -> None:
    with pytest.raises(DataError, match=r"windows\.training_days"):
        split_by_time(impressions(np.zeros(5), np.zeros(5)), last_share=0.1)


def test_training_is_balanced_and_validation_is_not() -> None:
    all_of_them = random_impressions()
    train, validation = split_training(all_of_them, validation_share=0.2, seed=0)
    assert train.shown_us_B.max() < validation.shown_us_B.min()
    later = all_of_them.shown_us_B >= validation.shown_us_B.min()
    assert validation.user_ids_B.tolist() == all_of_them.user_ids_B[later].tolist(), "at its natural click rate"
    earlier_clicks = all_of_them.clicked_B & (all_of_them.shown_us_B < validation.shown_us_B.min())
    assert train.user_ids_B[train.clicked_B].tolist() == all_of_them.user_ids_B[earlier_clicks].tolist()
    assert train.clicked_B.mean() == 0.5


@pytest.mark.parametrize("label", [0, 1])
def test_training_needs_both_classes(label: int) -> None:
    some = impressions(np.arange(10) * DAY_US // 4, np.full(10, label))
    with pytest.raises(DataError, match="clicked and non-clicked"):
        split_training(some, validation_share=0.2, seed=0)
