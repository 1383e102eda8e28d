"""Non-clicks for logs that only know clicks: what a user was likely shown and did not click.

Non-clicks are drawn in proportion to popularity, so that popularity tells nothing about the label:
an established item by its clicks among the last ones before the day. Clicks of the day and later
have no say in that, or a held-out click would show in the training days as many non-clicks.
That alone would give a new item away, since its first click is always against older ones. So a
share of the non-clicks are items still to come, each as likely as the other: the share of clicks
that lately were an item's first.

Shapes: C = clicks, ordered by day; M = non-clicks; N = items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

POPULARITY_CLICKS = 10_000  # before the day: long enough for counts to be more than chance
NEWNESS_CLICKS = 1_000
UPCOMING_ITEMS = 200
NUM_ROUNDS = 6


def sample_negatives(
    user_C: Ints, item_C: Ints, day_C: Ints, *, per_click: int, rng: np.random.Generator
) -> tuple[Ints, Ints]:
    """Draw distinct items for each click that its user did not click on that day or before.

    An item that the user clicks on a later day may be a non-click.

    Args:
        user_C, item_C, day_C: clicks, ordered by day.
        per_click: how many; a click gets fewer where there are no more items.

    Returns:
        The click of each non-click and its item, [M] and [M], ordered by click.
    """
    if not len(day_C):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    num_items = int(item_C.max()) + 1
    choice = _Choice.of(item_C, day_C)
    history = _History(user_C, item_C, day_C)
    click_M, drawn_M = np.zeros(0, np.int64), np.zeros(0, np.int64)
    short_C = np.arange(len(user_C))
    for _ in range(NUM_ROUNDS):
        again_M = np.repeat(short_C, 2 * per_click)
        item_M = choice.draw(again_M, rng=rng)
        fresh_M = ~history.clicked(again_M, item_M)
        click_M = np.concatenate([click_M, again_M[fresh_M]])
        drawn_M = np.concatenate([drawn_M, item_M[fresh_M]])
        click_M, drawn_M = _first_distinct(click_M, drawn_M, num_items=num_items, limit=per_click)
        short_C = np.flatnonzero(np.bincount(click_M, minlength=len(user_C)) < per_click)
    for click in short_C:  # a few items have nearly all the weight, or there are hardly enough
        weight_N = choice.weights(int(click), num_items=num_items)
        weight_N[drawn_M[click_M == click]] = 0
        weight_N[history.clicked(np.full(num_items, click), np.arange(num_items))] = 0
        left_N = np.flatnonzero(weight_N)
        # the largest of log(weight) + Gumbel noise are a weighted sample without replacement
        keys_N = np.log(weight_N[left_N]) + rng.gumbel(size=len(left_N))
        more = left_N[np.argsort(-keys_N, kind="stable")[: per_click - (click_M == click).sum()]]
        click_M = np.concatenate([click_M, np.full(len(more), click)])
        drawn_M = np.concatenate([drawn_M, more])
    order = np.argsort(click_M, kind="stable")
    return click_M[order], drawn_M[order]


@dataclass(frozen=True)
class _Choice:
    """What may be shown beside each click.

    Attributes:
        item_C: the item of every click.
        low_C, high_C: the clicks whose items are established: [low, high) of `item_C`.
        debut_N: items in the order of their first click.
        next_C, last_C: the items still to come: [next, last) of `debut_N`.
        newness_C: chance that a non-click is one still to come.
    """

    item_C: Ints
    low_C: Ints
    high_C: Ints
    debut_N: Ints
    next_C: Ints
    last_C: Ints
    newness_C: npt.NDArray[np.float64]

    @classmethod
    def of(cls, item_C: Ints, day_C: Ints) -> "_Choice":
        _, first_click_N = np.unique(item_C, return_index=True)
        first_click_N = np.sort(first_click_N)
        high_C = np.searchsorted(day_C, day_C, side="left")
        next_C = np.searchsorted(day_C[first_click_N], day_C, side="left")
        last_C = np.minimum(next_C + UPCOMING_ITEMS, len(first_click_N))
        recent_C = np.maximum(high_C - NEWNESS_CLICKS, 0)
        num_firsts = np.concatenate([[0], np.cumsum(np.bincount(first_click_N, minlength=len(item_C)))])
        newness_C = (num_firsts[high_C] - num_firsts[recent_C] + 1) / (high_C - recent_C + 2)
        newness_C = np.where(high_C == 0, 1.0, np.where(last_C == next_C, 0.0, newness_C))
        low_C = np.maximum(high_C - POPULARITY_CLICKS, 0)
        return cls(item_C, low_C, high_C, item_C[first_click_N], next_C, last_C, newness_C)

    def draw(self, click_M: Ints, *, rng: np.random.Generator) -> Ints:
        """An item for each of the given clicks, [M]."""
        new_M = rng.random(len(click_M)) < self.newness_C[click_M]
        low_M = np.where(new_M, self.next_C[click_M], self.low_C[click_M])
        high_M = np.where(new_M, self.last_C[click_M], self.high_C[click_M])
        place_M = low_M + (rng.random(len(click_M)) * (high_M - low_M)).astype(np.int64)
        item_M = np.empty(len(click_M), np.int64)
        item_M[new_M] = self.debut_N[place_M[new_M]]
        item_M[~new_M] = self.item_C[place_M[~new_M]]
        return item_M

    def weights(self, click: int, *, num_items: int) -> npt.NDArray[np.float64]:
        """The chance of every item to be drawn for a click, [N]."""
        established = self.item_C[self.low_C[click] : self.high_C[click]]
        upcoming = self.debut_N[self.next_C[click] : self.last_C[click]]
        new = self.newness_C[click]
        weight_N: npt.NDArray[np.float64] = (
            np.bincount(established, minlength=num_items) * (1 - new) / max(len(established), 1)
        )
        weight_N[upcoming] += new / max(len(upcoming), 1)
        return weight_N


class _History:
    """Which items a user had clicked by the day of a click."""

    def __init__(self, user_C: Ints, item_C: Ints, day_C: Ints) -> None:
        self._num_items = int(item_C.max()) + 1
        self._user_C, self._day_C = user_C, day_C
        self._pair_P, first_P = np.unique(user_C * self._num_items + item_C, return_index=True)
        self._first_day_P = day_C[first_P]  # clicks are ordered by day

    def clicked(self, click_M: Ints, item_M: Ints) -> npt.NDArray[np.bool_]:
        """Whether the user of a click had clicked an item on that day or before, [M]."""
        pair_M = self._user_C[click_M] * self._num_items + item_M
        place_M = np.minimum(np.searchsorted(self._pair_P, pair_M), len(self._pair_P) - 1)
        there_M: npt.NDArray[np.bool_] = self._pair_P[place_M] == pair_M
        return there_M & (self._first_day_P[place_M] <= self._day_C[click_M])


def _first_distinct(click_M: Ints, item_M: Ints, *, num_items: int, limit: int) -> tuple[Ints, Ints]:
    """Each click's first `limit` distinct items, in the order in which they were drawn."""
    _, first = np.unique(click_M * num_items + item_M, return_index=True)
    first = np.sort(first)
    order = first[np.argsort(click_M[first], kind="stable")]
    click_M, item_M = click_M[order], item_M[order]
    rank_M = np.arange(len(click_M)) - np.searchsorted(click_M, click_M, side="left")
    return click_M[rank_M < limit], item_M[rank_M < limit]
