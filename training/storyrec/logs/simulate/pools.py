"""Items that may be drawn on a day, by weight, from all or from a subtopic.

Shapes: N = items of a pool, T = subtopics, I = draws.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.world import Ints, Items

NUM_STEPS = 4  # from a place's guide; the few draws that need more are searched for


@dataclass(frozen=True)
class Pool:
    """The items that were born up to a day, ordered by subtopic.

    Attributes:
        rows_N: item rows, [N] int32.
        sums_N: cumulative weights with a leading zero, [N + 1].
        low_T, high_T: the sums where each subtopic begins and ends, [T + 1]; of one without items, and of -1, those
            of all items.
        guide_N: for N even parts of the sums' range, an item at or a little before the one where the part begins.
    """

    rows_N: npt.NDArray[np.int32]
    sums_N: npt.NDArray[np.float64]
    low_T: npt.NDArray[np.float64]
    high_T: npt.NDArray[np.float64]
    guide_N: npt.NDArray[np.int32]

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
        sums_N = np.concatenate([[0.0], np.cumsum(weight_N[order])])
        edges_T = sums_N[np.searchsorted(items.topic_N[rows_N], np.arange(num_topics + 1))]
        low_T, high_T = np.append(edges_T[:-1], 0.0), np.append(edges_T[1:], sums_N[-1])
        empty_T = high_T <= low_T
        low_T[empty_T], high_T[empty_T] = 0.0, sums_N[-1]
        # a little below, so that rounding never leads past the item
        places_N = np.arange(len(rows_N) + 1) * (sums_N[-1] / len(rows_N)) * (1 - 1e-9)
        guide_N = np.searchsorted(sums_N[:-1], places_N, side="right") - 1
        return cls(rows_N.astype(np.int32), sums_N, low_T, high_T, guide_N.astype(np.int32))

    def draw(self, topic_I: Ints, *, rng: np.random.Generator) -> Ints:
        """An item row for each topic, [I]; topic -1, or one without items: from all."""
        low_I = self.low_T[topic_I]
        place_I = low_I + rng.random(len(topic_I)) * (self.high_T[topic_I] - low_I)
        np.minimum(place_I, np.nextafter(self.sums_N[-1], 0), out=place_I)
        index_I = self.guide_N[(place_I * (len(self.rows_N) / self.sums_N[-1])).astype(np.int64)]
        behind_I = np.flatnonzero(self.sums_N[index_I + 1] <= place_I)
        for _ in range(NUM_STEPS):
            index_I[behind_I] += 1
            behind_I = behind_I[self.sums_N[index_I[behind_I] + 1] <= place_I[behind_I]]
        index_I[behind_I] = np.searchsorted(self.sums_N, place_I[behind_I], side="right") - 1
        return self.rows_N[index_I].astype(np.int64)


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
    early_I = np.flatnonzero(published_us_N[item_I] > time_us_I)
    for _ in range(3):
        item_I[early_I] = pool.draw(topic_I[early_I], rng=rng)
        early_I = early_I[published_us_N[item_I[early_I]] > time_us_I[early_I]]
    item_I[early_I] = older.draw(topic_I[early_I], rng=rng)
    return item_I
