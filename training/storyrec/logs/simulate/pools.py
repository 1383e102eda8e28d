"""Items that may be drawn on a day, by weight, from all or from a subtopic.

Shapes: N = items of a pool, T = subtopics, I = draws.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.world import Ints, Items


@dataclass(frozen=True)
class Pool:
    """The items that were born up to a day, ordered by subtopic.

    Attributes:
        rows_N: item rows, [N] int32.
        sums_N: cumulative weights with a leading zero, [N + 1].
        bounds_T: where each subtopic begins, [T + 1].
    """

    rows_N: npt.NDArray[np.int32]
    sums_N: npt.NDArray[np.float64]
    bounds_T: Ints

    @classmethod
    def of_day(cls, items: Items, *, day: int, num_topics: int, freshness_days: float | None) -> "Pool":
        """The pool of a day.

        Args:
            day: days since the first; -1: what was there from the start.
            freshness_days: days in which an item's weight falls to 1/e; None: it never does.
        """
        rows_N = np.flatnonzero(items.born_N <= day)
        weight_N = items.weight_N[rows_N]
        if freshness_days is not None:
            weight_N = weight_N * np.exp(-(day - items.born_N[rows_N]) / freshness_days)
        order = np.argsort(items.topic_N[rows_N], kind="stable")
        rows_N = rows_N[order]
        return cls(
            rows_N=rows_N.astype(np.int32),
            sums_N=np.concatenate([[0.0], np.cumsum(weight_N[order])]),
            bounds_T=np.searchsorted(items.topic_N[rows_N], np.arange(num_topics + 1)),
        )

    def draw(self, topic_I: Ints, *, rng: np.random.Generator) -> Ints:
        """An item row for each topic, [I]; topic -1, or one without items: from all."""
        low_I, high_I = self.sums_N[self.bounds_T[topic_I]], self.sums_N[self.bounds_T[topic_I + 1]]
        anywhere_I = (topic_I < 0) | (high_I <= low_I)
        low_I = np.where(anywhere_I, 0.0, low_I)
        high_I = np.where(anywhere_I, self.sums_N[-1], high_I)
        place_I = low_I + rng.random(len(topic_I)) * (high_I - low_I)
        index_I = np.searchsorted(self.sums_N, place_I, side="right") - 1
        return self.rows_N[np.clip(index_I, 0, len(self.rows_N) - 1)].astype(np.int64)


@dataclass(frozen=True)
class Pools:
    """Both pools of a day and of the day before it."""

    stories: Pool
    products: Pool
    older_stories: Pool
    older_products: Pool


def draw_published(
    pool: Pool, older: Pool, topic_I: Ints, time_us_I: Ints, *, published_us_N: Ints, rng: np.random.Generator
) -> Ints:
    """Draw items, [I]; those not yet published at the time are drawn again, at last among yesterday's.

    Args:
        pool, older: of the day and of the day before it.
        topic_I: as `Pool.draw` takes them.
        time_us_I: epoch microseconds of each draw.
        published_us_N: epoch microseconds of every item of the domain.
    """
    item_I = pool.draw(topic_I, rng=rng)
    for _ in range(3):
        early_I = np.flatnonzero(published_us_N[item_I] > time_us_I)
        item_I[early_I] = pool.draw(topic_I[early_I], rng=rng)
    early_I = np.flatnonzero(published_us_N[item_I] > time_us_I)
    item_I[early_I] = older.draw(topic_I[early_I], rng=rng)
    return item_I
