"""What a person wants to see of a challenger: how it ranks for a few users, which stories it finds for products.

Suffixes: B held-out impressions, C clicks.
"""

from collections.abc import Iterator

import numpy as np

from storyrec.bundle import Bundle
from storyrec.data.catalog import Catalog
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.match import nearest_stories
from storyrec.metrics import Floats

NUM_EXAMPLES = 3
NUM_STORIES = 5


def rank_examples(data: Dataset, scores_B: Floats) -> list[dict[str, object]]:
    """For a few users with long sequences: what they clicked and how their impressions were ranked."""
    holdout = data.holdout
    examples: list[dict[str, object]] = []
    for row in _example_rows(data):
        rows = np.flatnonzero(holdout.user_ids_B == holdout.user_ids_B[row])
        best = rows[np.argsort(-scores_B[rows], kind="stable")][:NUM_STORIES]
        examples.append(
            {
                "user_id": int(holdout.user_ids_B[row]),
                "story_clicks": _titles(data.stories, data.story_click_rows_C, holdout, row, "story"),
                "product_clicks": _titles(data.products, data.product_click_rows_C, holdout, row, "product"),
                "ranking": [
                    {
                        "story_id": int(data.stories.item_ids_N[holdout.story_rows_B[r]]),
                        "title": str(data.stories.titles[holdout.story_rows_B[r]]),
                        "score": float(scores_B[r]),
                        "clicked": bool(holdout.clicked_B[r]),
                    }
                    for r in best
                ],
            }
        )
    return examples


def match_examples(bundle: Bundle, data: Dataset) -> list[dict[str, object]]:
    """For the product that each of these users clicked last: the nearest stories that the bundle knows, nearest first.

    Paper: Sec. IV-G.
    """
    holdout = data.holdout
    last = [
        int(data.products.item_ids_N[data.product_click_rows_C[holdout.product_stop_B[row] - 1]])
        for row in _example_rows(data)
        if holdout.product_stop_B[row] > holdout.product_start_B[row]
    ]
    product_ids = [product_id for product_id in dict.fromkeys(last) if bundle.products.rows(product_id)]
    rows_MK, distances_MK = nearest_stories(
        bundle.products.match_NM[bundle.products.rows(product_ids)], bundle.stories.match_NM[1:], top_k=NUM_STORIES
    )
    return [
        {
            "product_id": product_id,
            "title": _title(data.products, product_id),
            "stories": [
                {"story_id": int(story_id), "title": _title(data.stories, story_id), "distance": float(distance)}
                for story_id, distance in zip(bundle.stories.ids_N[rows_K + 1], distances_K, strict=True)
            ],
        }
        for product_id, rows_K, distances_K in zip(product_ids, rows_MK, distances_MK, strict=True)
    ]


def _example_rows(data: Dataset) -> Iterator[int]:
    """One impression of each of the users with the longest sequences who clicked a story on the held-out days."""
    holdout = data.holdout
    length_B = (holdout.story_stop_B - holdout.story_start_B) + (holdout.product_stop_B - holdout.product_start_B)
    clickers = np.unique(holdout.user_ids_B[holdout.clicked_B])
    order = np.argsort(-length_B, kind="stable")
    order = order[np.isin(holdout.user_ids_B[order], clickers)]
    _, first = np.unique(holdout.user_ids_B[order], return_index=True)
    yield from order[np.sort(first)[:NUM_EXAMPLES]].tolist()


def _titles(catalog: Catalog, rows_C: np.ndarray, holdout: Instances, row: int, domain: str) -> list[str]:
    start, stop = getattr(holdout, f"{domain}_start_B")[row], getattr(holdout, f"{domain}_stop_B")[row]
    return [str(catalog.titles[r]) for r in rows_C[max(start, stop - NUM_STORIES) : stop][::-1]]


def _title(catalog: Catalog, item_id: int) -> str:
    return str(catalog.titles[int(catalog.rows(np.array([item_id]))[0])])
