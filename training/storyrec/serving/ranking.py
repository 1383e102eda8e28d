"""Ranking candidates for one user: what the server, the command line and the replay test share.

History is cut exactly as for training: clicks strictly before the request and not before midnight
UTC of (its day - history_days), the most recent ones, oldest first.
Suffixes: B candidates, L sequence, C clicks, D width.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from storyrec.bundle import Bundle
from storyrec.data.batches import time_blocks
from storyrec.features.sequences import history_start_us

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Clicks:
    """Clicks of one user in one domain, in any order.

    Attributes:
        item_ids_C: [C] int64.
        clicked_us_C: [C] int64, epoch microseconds UTC.
    """

    item_ids_C: npt.ArrayLike
    clicked_us_C: npt.ArrayLike


NO_CLICKS = Clicks((), ())


@dataclass(frozen=True, eq=False)
class History:
    """What the ranker reads of one user at one moment: the clicks that count, oldest first.

    Attributes:
        story_ids_C, story_clicked_us_C, product_ids_C, product_clicked_us_C: [C <= sequence length] int64.
        now_us: the moment of the request, epoch microseconds UTC.
    """

    story_ids_C: Int64s
    story_clicked_us_C: Int64s
    product_ids_C: Int64s
    product_clicked_us_C: Int64s
    now_us: int


class Items(Protocol):
    """Whatever has vectors of items by id."""

    def vectors(self, item_ids: npt.ArrayLike) -> Floats:
        """What the ranker reads, one row an id."""


def rank(
    bundle: Bundle, *, story_clicks: Clicks, product_clicks: Clicks, now_us: int, candidate_ids: npt.ArrayLike
) -> Floats:
    """Click probabilities of candidate stories for one user at one moment.

    Args:
        bundle: the model, with its own item table and windows.
        story_clicks, product_clicks: of the user; what lies outside of the bundle's windows is left out.
        now_us: the moment of the request, epoch microseconds UTC.
        candidate_ids: story ids, [B]; one that the bundle does not know is scored as a story without
            title and cover.

    Returns:
        [B] float32.
    """
    history = cut_history(bundle, story_clicks=story_clicks, product_clicks=product_clicks, now_us=now_us)
    return bundle.rank_candidates(**ranker_inputs(bundle, history, candidate_ids=candidate_ids, stories=bundle.stories))


def cut_history(bundle: Bundle, *, story_clicks: Clicks, product_clicks: Clicks, now_us: int) -> History:
    """The clicks that count at one moment by the bundle's windows; arguments as for `rank`."""
    return History(*_cut(bundle, story_clicks, now_us), *_cut(bundle, product_clicks, now_us), now_us=now_us)


def ranker_inputs(
    bundle: Bundle, history: History, *, candidate_ids: npt.ArrayLike, stories: Items
) -> dict[str, npt.NDArray[np.generic]]:
    """The inputs of `Bundle.rank_candidates`: sequences padded on the right.

    Args:
        bundle: the model.
        history: of the user.
        candidate_ids: story ids, [B].
        stories: the bundle's, or these and younger ones.
    """
    story_ids_L, story_blocks_L = _padded(bundle, history.story_ids_C, history.story_clicked_us_C, history.now_us)
    product_ids_L, product_blocks_L = _padded(
        bundle, history.product_ids_C, history.product_clicked_us_C, history.now_us
    )
    return {
        "target_BD": stories.vectors(candidate_ids),
        "story_LD": stories.vectors(story_ids_L),
        "story_blocks_L": story_blocks_L,
        "product_LD": bundle.products.vectors(product_ids_L),
        "product_blocks_L": product_blocks_L,
    }


def _cut(bundle: Bundle, clicks: Clicks, now_us: int) -> tuple[Int64s, Int64s]:
    item_ids_C, clicked_us_C = np.asarray(clicks.item_ids_C, np.int64), np.asarray(clicks.clicked_us_C, np.int64)
    since_us = history_start_us(np.array([now_us]), history_days=int(bundle.config.windows.history_days))
    (counting,) = np.nonzero((since_us <= clicked_us_C) & (clicked_us_C < now_us))
    order = np.lexsort((item_ids_C[counting], clicked_us_C[counting]))
    latest = counting[order[-bundle.config.features.sequence_length :]]
    return item_ids_C[latest], clicked_us_C[latest]


def _padded(bundle: Bundle, item_ids_C: Int64s, clicked_us_C: Int64s, now_us: int) -> tuple[Int64s, Int64s]:
    """Ids and time blocks of clicks, [L]; 0 at padding."""
    length = bundle.config.features.sequence_length
    ids_L, blocks_L = np.zeros(length, np.int64), np.zeros(length, np.int64)
    ids_L[: len(item_ids_C)] = item_ids_C
    blocks_L[: len(item_ids_C)] = time_blocks(
        now_us - clicked_us_C,
        block_hours=int(bundle.config.windows.block_hours),
        num_time_blocks=bundle.config.model.num_time_blocks,
    )
    return ids_L, blocks_L
