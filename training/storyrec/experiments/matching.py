"""How well stories are recommended to products by one set of vectors.

Queries are products that a story mounts, the gallery is all stories, the distance Euclidean on title and cover
side by side. Relevant are all stories that mount the product. Paper: Sec. IV-G, Table VII.

Suffixes: Q = queries, M = pairs.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from storyrec.data.dataset import Dataset
from storyrec.errors import DataError
from storyrec.experiments.retrieval import Gallery, Int64s, Vectors
from storyrec.export import item_vectors
from storyrec.models.extractors import Extractors, RawItems

MAX_QUERIES = 10_000  # of the in-sample and of the held-out products each; of more, so many are sampled

Embed = Callable[[RawItems], Vectors]
"""From N items of one domain to a matching vector each."""


def evaluate_matching(
    embed: Embed, *, stories: RawItems, products: RawItems, data: Dataset, seed: int
) -> dict[str, float]:
    """How well the stories that mount a product are found by their distance to it.

    Args:
        embed: `raw_covers`, or `title_and_cover` of some extractors.
        stories, products: what is embedded of the dataset's catalogs.
        data: which story mounts which product.
        seed: of the sample of queries; the same for whatever is to be compared.

    Returns:
        `Retrieval.metrics`, each under one of three prefixes: `in_sample_` for the products of pairs published
        before the held-out days, `held_out_` for the products of pairs published in them, and `unseen_` for those
        of the latter that no earlier story mounts: training saw none of what is relevant to them. The figures of
        `Gallery.compare_approximate` for the held-out queries, or in-sample ones where there are none. The counts
        num_gallery_stories, in_sample_num_products and held_out_num_products, before sampling.

    Raises:
        DataError: no story mounts a product.
        ModelError: a vector is not finite.
    """
    parts = {"in_sample": np.asarray(data.pairs_M2, np.int64), "held_out": np.asarray(data.holdout_pairs_M2, np.int64)}
    pairs_M2 = np.unique(np.concatenate(list(parts.values())), axis=0)
    if not len(pairs_M2):
        raise DataError(
            "no story of the dataset mounts a product",
            expected="mounted products: they are the queries, and their stories the answers",
            where=f"the dataset of {data.day}",
            remedy="log mounted_product_ids with the stories",
        )
    gallery = Gallery(embed(stories), pairs_M2=pairs_M2)
    figures: dict[str, float] = {"num_gallery_stories": len(stories) - 1}
    for part, part_M2 in parts.items():
        rows = np.unique(part_M2[:, 1])
        rows_Q = _sample(rows, seed=seed)
        products_QD = embed(_take(products, rows_Q))
        found = gallery.retrieve(products_QD, product_rows_Q=rows_Q)
        figures[f"{part}_num_products"] = len(rows)
        figures |= _prefixed(part, found.metrics())
        if part == "held_out":
            figures |= _prefixed("unseen", found.metrics(~np.isin(rows_Q, parts["in_sample"][:, 1])))
        if len(rows_Q):
            compared_QD, compared_Q = products_QD, rows_Q
    return figures | gallery.compare_approximate(compared_QD, product_rows_Q=compared_Q)


def raw_covers(items: RawItems) -> Vectors:
    """The covers themselves, [N, V]; zeros where there is none."""
    return items.visual_raw_NV.astype(np.float32)


def title_and_cover(extractors: Extractors) -> Embed:
    """Title and cover as some extractors, in evaluation mode, see them, side by side, [N, 2 D]."""
    return lambda items: item_vectors(extractors, items, pick=lambda features: features.match_NM)


def _sample(rows: Int64s, *, seed: int) -> Int64s:
    """At most so many queries, ascending."""
    if len(rows) <= MAX_QUERIES:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, MAX_QUERIES, replace=False))


def _take(items: RawItems, rows_Q: Int64s) -> RawItems:
    return replace(
        items,
        tokens_NW=items.tokens_NW[rows_Q],
        visual_raw_NV=items.visual_raw_NV[rows_Q],
        has_cover_N=items.has_cover_N[rows_Q],
        categories_N=items.categories_N[rows_Q],
    )


def _prefixed(part: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{part}_{name}": value for name, value in metrics.items()}
