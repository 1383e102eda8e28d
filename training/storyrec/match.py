"""Stories for products: exact nearest neighbours between matching vectors.

Paper: Sec. IV-G: Euclidean distance on concat(title, cover).

Suffixes: N = stories, M = products, G = groups of stories, K = stories found, D = width.
"""

import numpy as np
import numpy.typing as npt

from storyrec.errors import ModelError

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

GROUP = 64
BLOCK_VALUES = 1 << 24  # distances held at a time: 64 MB


def nearest_stories(product_vectors: Floats, story_vectors: Floats, *, top_k: int) -> tuple[Int64s, Floats]:
    """The nearest stories of every product, nearest first; equal distances in order of row.

    Args:
        product_vectors: [M, D].
        story_vectors: [N, D].
        top_k: how many stories; all where there are fewer.

    Returns:
        rows_MK: int64 rows of `story_vectors`; distances_MK: float32, Euclidean, ascending.

    Raises:
        ModelError: a vector is not finite, or the widths differ.
    """
    products_MD = np.ascontiguousarray(product_vectors, np.float32)
    stories_ND = np.ascontiguousarray(story_vectors, np.float32)
    if products_MD.shape[1] != stories_ND.shape[1] or not (
        np.isfinite(products_MD).all() and np.isfinite(stories_ND).all()
    ):
        raise ModelError(
            "matching vectors cannot be compared",
            expected=f"finite vectors of one width; widths are {products_MD.shape[1]} and {stories_ND.shape[1]}",
            where="the bundle's items",
            remedy="pack the bundle again",
        )
    top_k = min(top_k, len(stories_ND))
    if not top_k or not len(products_MD):
        return np.zeros((len(products_MD), top_k), np.int64), np.zeros((len(products_MD), top_k), np.float32)

    num_groups = -(-len(stories_ND) // GROUP)
    # |p - s|^2 = |p|^2 + |s|^2 - 2 p s; |p|^2 does not change the order of a product's stories
    factors_DN = np.zeros((stories_ND.shape[1], num_groups * GROUP), np.float32)
    factors_DN[:, : len(stories_ND)] = -2 * stories_ND.T
    squares_N = np.full(num_groups * GROUP, np.inf, np.float32)  # padding to whole groups is infinitely far
    squares_N[: len(stories_ND)] = np.einsum("nd,nd->n", stories_ND, stories_ND)
    block = max(1, BLOCK_VALUES // len(squares_N))
    found = []
    for start in range(0, len(products_MD), block):
        block_MD = products_MD[start : start + block]
        distances_MN = block_MD @ factors_DN
        distances_MN += squares_N
        rows_MK = _smallest(distances_MN, top_k=top_k)
        # the short formula cancels the digits of near neighbours: measure the few that remain
        exact_MK = np.sqrt(np.square(block_MD[:, None, :] - stories_ND[rows_MK]).sum(axis=2))
        order_MK = np.lexsort((rows_MK, exact_MK), axis=1)
        found.append((np.take_along_axis(rows_MK, order_MK, axis=1), np.take_along_axis(exact_MK, order_MK, axis=1)))
    return np.concatenate([rows for rows, _ in found]), np.concatenate([distances for _, distances in found])


def _smallest(distances_MN: Floats, *, top_k: int) -> Int64s:
    """The columns of each row's `top_k` smallest values, in any order. N is whole groups."""
    num_rows, num_groups = len(distances_MN), distances_MN.shape[1] // GROUP
    if top_k >= num_groups:
        return np.argpartition(distances_MN, top_k - 1, axis=1)[:, :top_k]
    # The k smallest lie in the k groups with the smallest minima: any other group's minimum has k smaller
    # ones before it. Looking at minima alone spares partitioning rows of N values.
    grouped = distances_MN.reshape(num_rows, num_groups, GROUP)
    groups_MK = np.argpartition(grouped.min(axis=2), top_k - 1, axis=1)[:, :top_k]
    candidates = np.take_along_axis(grouped, groups_MK[:, :, None], axis=1).reshape(num_rows, -1)
    places_MK = np.argpartition(candidates, top_k - 1, axis=1)[:, :top_k]
    return np.take_along_axis(groups_MK, places_MK // GROUP, axis=1) * GROUP + places_MK % GROUP
