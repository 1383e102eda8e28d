"""Pairs of a story and a product it mounts: their split, and which other pair each is pushed from.

Paper: Sec. III-B. Legend: M pairs, B pairs of a batch, 2 = story row, product row.
"""

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]


class Mounts:
    """Which story mounts which product, as a set that is asked for many at once."""

    def __init__(self, pairs_M2: Int64s) -> None:
        self._stride = int(pairs_M2[:, 1].max(initial=0)) + 1
        self._codes = np.unique(self._code(pairs_M2[:, 0], pairs_M2[:, 1]))

    def contain(self, story_rows_B: Int64s, product_rows_B: Int64s) -> NDArray[np.bool_]:
        """Whether each story mounts the product beside it; the rows must come from the pairs."""
        codes_B = self._code(story_rows_B, product_rows_B)
        places_B = np.minimum(np.searchsorted(self._codes, codes_B), len(self._codes) - 1)
        return self._codes[places_B] == codes_B

    def contain_all(self, story_rows_B: Int64s, product_rows_B: Int64s) -> NDArray[np.bool_]:
        """Whether each story mounts each product, [B, B]; the rows must come from the pairs."""
        story_rows_BB, product_rows_BB = np.broadcast_arrays(story_rows_B[:, None], product_rows_B[None, :])
        return self.contain(story_rows_BB.ravel(), product_rows_BB.ravel()).reshape(story_rows_BB.shape)

    def _code(self, story_rows: Int64s, product_rows: Int64s) -> Int64s:
        return story_rows * self._stride + product_rows


def draw_others(pairs_B2: Int64s, *, mounts: Mounts, generator: np.random.Generator) -> Int64s:
    """For each pair another one of the batch, drawn at random.

    Never one whose product the story mounts or whose story mounts the product: so no pair of the
    same story or of the same product is ever a negative.

    Args:
        pairs_B2: story row and product row, [B, 2].
        mounts: all pairs there are.
        generator: of the draw.

    Returns:
        Positions in the batch, [B] int64; -1 where the batch holds no other pair.
    """
    stories_B, products_B = pairs_B2[:, 0], pairs_B2[:, 1]
    others_B = generator.permutation(len(pairs_B2))
    related_B = mounts.contain(stories_B, products_B[others_B]) | mounts.contain(stories_B[others_B], products_B)
    for row in np.flatnonzero(related_B):
        own_story_B, own_product_B = np.full_like(stories_B, stories_B[row]), np.full_like(products_B, products_B[row])
        unrelated_B = ~(mounts.contain(own_story_B, products_B) | mounts.contain(stories_B, own_product_B))
        (allowed,) = np.nonzero(unrelated_B)
        others_B[row] = generator.choice(allowed) if len(allowed) else -1
    return others_B


def split_pairs(pairs_M2: Int64s, *, validation_share: float, generator: np.random.Generator) -> tuple[Int64s, Int64s]:
    """Split into training and validation pairs by story: no story is on both sides.

    Args:
        pairs_M2: of at least 2 stories.
        validation_share: of the stories; at least 2 of them, so that each has another one.
        generator: of the draw.

    Returns:
        Training and validation pairs; with fewer than 4 stories both are all pairs.
    """
    stories, story_M = np.unique(pairs_M2[:, 0], return_inverse=True)
    if len(stories) < 4:
        return pairs_M2, pairs_M2
    num_held_out = max(2, round(validation_share * len(stories)))
    held_out = generator.permutation(len(stories)) < num_held_out
    return pairs_M2[~held_out[story_M]], pairs_M2[held_out[story_M]]
