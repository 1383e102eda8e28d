"""Ranking candidates for one user: what the server, the command line and the replay test share.

History is cut exactly as for training: clicks strictly before the request and not before midnight
UTC of (its day - history_days), the most recent ones, oldest first.
Suffixes: B candidates, L sequence, C clicks, D width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.bundle import Bundle, ItemTable
from storyrec.data.batches import time_blocks
from storyrec.features.sequences import history_start_us

Int64s = npt.NDArray[np.int64]


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


def rank(
    bundle: Bundle, *, story_clicks: Clicks, product_clicks: Clicks, now_us: int, candidate_ids: npt.ArrayLike
) -> npt.NDArray[np.float32]:
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
    target_rows_B = bundle.stories.rows(candidate_ids)
    story_slots_L, story_blocks_L = _sequence(bundle, bundle.stories, story_clicks, now_us)
    product_slots_L, product_blocks_L = _sequence(bundle, bundle.products, product_clicks, now_us)
    return bundle.rank_candidates(
        target_BD=bundle.stories.vectors_ND[target_rows_B],
        story_LD=bundle.stories.vectors_ND[story_slots_L],
        story_blocks_L=story_blocks_L,
        product_LD=bundle.products.vectors_ND[product_slots_L],
        product_blocks_L=product_blocks_L,
    )


def _sequence(bundle: Bundle, table: ItemTable, clicks: Clicks, now_us: int) -> tuple[Int64s, Int64s]:
    """Table rows and time blocks of the clicks that count, oldest first, padded on the right, [L]."""
    windows, length = bundle.config.windows, bundle.config.features.sequence_length
    item_ids_C, clicked_us_C = np.asarray(clicks.item_ids_C, np.int64), np.asarray(clicks.clicked_us_C, np.int64)
    since_us = history_start_us(np.array([now_us]), history_days=int(windows.history_days))
    counts_C = (since_us <= clicked_us_C) & (clicked_us_C < now_us)
    item_ids_C, clicked_us_C = item_ids_C[counts_C], clicked_us_C[counts_C]
    latest = np.lexsort((item_ids_C, clicked_us_C))[-length:]
    slots_L, blocks_L = np.zeros(length, np.int64), np.zeros(length, np.int64)
    slots_L[: len(latest)] = table.rows(item_ids_C[latest])
    blocks_L[: len(latest)] = time_blocks(
        now_us - clicked_us_C[latest],
        block_hours=int(windows.block_hours),
        num_time_blocks=bundle.config.model.num_time_blocks,
    )
    return slots_L, blocks_L
