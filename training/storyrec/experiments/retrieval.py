"""How well the stories that mount a product are found by their distance to it.

Paper: Sec. IV-G, Table VII. Suffixes: Q = queries (products), N = stories of the gallery, K = stories retrieved,
M = pairs, D = width.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

from storyrec.errors import ModelError
from storyrec.metrics import per_user_auc
from storyrec.pairs import Mounts

Floats = NDArray[np.float64]
Vectors = NDArray[np.float32]
Int64s = NDArray[np.int64]
Booleans = NDArray[np.bool_]

TOP = 5
AUC_DEPTH = 500
BLOCK = 1_024  # queries whose retrieved stories are held at a time
CELLS_PER_ROOT = 4  # cells of the approximate index: 4 sqrt(N), as its authors advise
MIN_STORIES_PER_CELL = 39  # fewer make poor cells
PROBED_CELLS = 16


@dataclass(frozen=True)
class Retrieval:
    """What was found for each query.

    Attributes:
        hit_Q: whether a relevant story is among the nearest 5.
        recall_Q: the share of the query's relevant stories that is among the nearest 5.
        ndcg_Q: discounted gain of the relevant ones among the nearest 5, over that of the best possible order.
        auc_Q: chance that a relevant one of the nearest 500 is nearer than another of them, ties one half; NaN
            where these 500 hold no relevant story, or nothing else.
        is_missing_Q: whether no relevant story is among the nearest 500.
    """

    hit_Q: Booleans
    recall_Q: Floats
    ndcg_Q: Floats
    auc_Q: Floats
    is_missing_Q: Booleans

    def metrics(self, kept_Q: Booleans | None = None) -> dict[str, float]:
        """Means over the queries, or over some of them; NaN without any.

        Returns:
            hit_at_5, recall_at_5, ndcg_at_5; auc_top_500 over the queries that have one;
            auc_top_500_missing_as_zero, where a query without a relevant story among the 500 counts 0 and is not
            left out, so that all models are judged on the same queries; num_queries, and num_queries_without_auc.
        """
        kept_Q = np.ones(len(self.hit_Q), np.bool_) if kept_Q is None else kept_Q
        auc_Q = self.auc_Q[kept_Q]
        with_zeros_Q = np.where(self.is_missing_Q[kept_Q], 0.0, auc_Q)
        return {
            "hit_at_5": _mean(self.hit_Q[kept_Q]),
            "recall_at_5": _mean(self.recall_Q[kept_Q]),
            "ndcg_at_5": _mean(self.ndcg_Q[kept_Q]),
            "auc_top_500": _mean(auc_Q[~np.isnan(auc_Q)]),
            "auc_top_500_missing_as_zero": _mean(with_zeros_Q[~np.isnan(with_zeros_Q)]),
            "num_queries": float(kept_Q.sum()),
            "num_queries_without_auc": float(np.isnan(auc_Q).sum()),
        }


class Gallery:
    """All stories, searched exactly.

    Args:
        stories_ND: a vector per catalog row; row 0, the padding, is no story.
        pairs_M2: distinct (story row, product row): which stories are relevant to a product.

    Raises:
        ModelError: a vector is not finite.
    """

    def __init__(self, stories_ND: Vectors, *, pairs_M2: Int64s) -> None:
        faiss.omp_set_num_threads(1)
        self.stories_ND, self.pairs_M2 = _finite(stories_ND)[1:], pairs_M2
        self.mounts = Mounts(pairs_M2)
        self.index = faiss.IndexFlatL2(self.stories_ND.shape[1])
        self.index.add(self.stories_ND)

    def retrieve(self, products_QD: Vectors, *, product_rows_Q: Int64s) -> Retrieval:
        """Find the nearest stories of every query and judge them.

        Args:
            products_QD: the queries' vectors.
            product_rows_Q: their catalog rows; each is in a pair.
        """
        parts = list(self._judge(_finite(products_QD), product_rows_Q))
        if not parts:
            nothing_Q = np.empty(0)
            return Retrieval(nothing_Q > 0, nothing_Q, nothing_Q, nothing_Q, nothing_Q > 0)
        return Retrieval(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def compare_approximate(self, products_QD: Vectors, *, product_rows_Q: Int64s) -> dict[str, float]:
        """Search the nearest 5 in an inverted file as well (FAISS IVF), on the same queries and one thread.

        Returns:
            approximate_hit_at_5; approximate_found_at_5, the share of the exact nearest 5 that it finds;
            approximate_speedup_at_5, exact over approximate time per query, without the time to build either.
        """
        num_stories = len(self.stories_ND)
        num_cells = max(1, min(round(CELLS_PER_ROOT * num_stories**0.5), num_stories // MIN_STORIES_PER_CELL))
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(self.index.d), self.index.d, num_cells)
        index.train(self.stories_ND)
        index.add(self.stories_ND)
        index.nprobe = PROBED_CELLS
        products_QD, top = _finite(products_QD), min(TOP, num_stories)
        start = time.perf_counter()
        _, exact_QK = self.index.search(products_QD, top)
        middle = time.perf_counter()
        _, found_QK = index.search(products_QD, top)
        end = time.perf_counter()
        is_found_QK = (exact_QK[:, :, None] == found_QK[:, None, :]).any(axis=2)
        hit_Q = self._relevant(found_QK + 1, product_rows_Q).max(axis=1)
        return {
            "approximate_hit_at_5": _mean(hit_Q),
            "approximate_found_at_5": _mean(is_found_QK),
            "approximate_speedup_at_5": (middle - start) / (end - middle),
        }

    def _judge(self, products_QD: Vectors, product_rows_Q: Int64s) -> Iterator[tuple[NDArray[np.generic], ...]]:
        """The columns of `Retrieval`, one block of queries after the other."""
        depth = min(AUC_DEPTH, len(self.stories_ND))
        discounts_K = 1 / np.log2(np.arange(2, TOP + 2))
        best_gains = np.concatenate([[0.0], np.cumsum(discounts_K)])  # by the number of relevant stories
        num_relevant_N = np.bincount(self.pairs_M2[:, 1])
        for start in range(0, len(product_rows_Q), BLOCK):
            rows_Q = product_rows_Q[start : start + BLOCK]
            distances_QK, places_QK = self.index.search(products_QD[start : start + BLOCK], depth)
            relevant_QK = self._relevant(places_QK + 1, rows_Q)
            top_QK = relevant_QK[:, :TOP]
            num_relevant_Q = num_relevant_N[rows_Q]
            gain_Q = (top_QK * discounts_K[: top_QK.shape[1]]).sum(axis=1)
            by_query = per_user_auc(
                np.repeat(np.arange(len(rows_Q)), depth),
                relevant_QK.ravel(),
                -distances_QK.ravel().astype(np.float64),
            )
            auc_Q = np.full(len(rows_Q), np.nan)
            auc_Q[by_query.users_U] = by_query.values_U
            yield (
                top_QK.max(axis=1),
                top_QK.sum(axis=1) / num_relevant_Q,
                gain_Q / best_gains[np.minimum(num_relevant_Q, TOP)],
                auc_Q,
                ~relevant_QK.max(axis=1),
            )

    def _relevant(self, story_rows_QK: Int64s, product_rows_Q: Int64s) -> Booleans:
        """Whether each story found mounts its query; row 0, nothing found, mounts none."""
        product_rows_QK = np.broadcast_to(product_rows_Q[:, None], story_rows_QK.shape)
        return self.mounts.contain(story_rows_QK.ravel(), product_rows_QK.ravel()).reshape(story_rows_QK.shape)


def _finite(vectors_ND: Vectors) -> Vectors:
    if not np.isfinite(vectors_ND).all():
        raise ModelError(
            "matching vectors are not finite",
            expected="extractors whose training did not diverge, and covers without NaN",
            where="the vectors of titles and covers",
            remedy="train the extractors again, or validate the logs again",
        )
    return np.ascontiguousarray(vectors_ND, np.float32)


def _mean(values: NDArray[np.generic]) -> float:
    return float(values.mean()) if values.size else float("nan")
