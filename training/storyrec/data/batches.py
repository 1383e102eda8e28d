"""Batches of instances: sequences cut out of the click logs, and which instances go together.

Suffixes: B = batch, S = story sequence, P = product sequence (both of the same length).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances

Int64s = npt.NDArray[np.int64]
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Batch:
    """What the ranker needs for B impressions; sequences oldest first, padded on the right.

    Attributes:
        story_rows_B: the target's catalog row, [B] int64.
        story_slots_BS, product_slots_BP: catalog rows of the clicked items, int64, 0 = padding.
        story_blocks_BS, product_blocks_BP: time blocks of these clicks, int64, 0 = padding.
        clicked_B: the label, [B] float32.
        user_rows_B: the user's row in a table of users, [B] int64; 0 for one without training instances.
    """

    story_rows_B: Int64s
    story_slots_BS: Int64s
    story_blocks_BS: Int64s
    product_slots_BP: Int64s
    product_blocks_BP: Int64s
    clicked_B: npt.NDArray[np.float32]
    user_rows_B: Int64s


def make_batch(
    dataset: Dataset,
    instances: Instances,
    index_B: Int64s,
    *,
    sequence_length: int,
    block_hours: int,
    num_time_blocks: int,
) -> Batch:
    """Cut the sequences of some instances out of the click logs.

    Args:
        dataset: holds the click logs that `instances` points into.
        instances: of this dataset.
        index_B: which instances, [B] int64.
        sequence_length: S and P; of longer sequences the most recent clicks stay.
        block_hours: width of a time block, hours.
        num_time_blocks: blocks before everything counts as older.
    """
    shown_us_B = instances.shown_us_B[index_B]

    def cut(start_B: Int64s, stop_B: Int64s, rows_C: Int64s, clicked_us_C: Int64s) -> tuple[Int64s, Int64s]:
        start_B = np.maximum(start_B, stop_B - sequence_length)
        positions_BL = start_B[:, None] + np.arange(sequence_length)
        mask_BL = positions_BL < stop_B[:, None]
        slots_BL = np.zeros(positions_BL.shape, np.int64)
        blocks_BL = np.zeros(positions_BL.shape, np.int64)
        positions = positions_BL[mask_BL]
        slots_BL[mask_BL] = rows_C[positions]
        age_us = np.broadcast_to(shown_us_B[:, None], mask_BL.shape)[mask_BL] - clicked_us_C[positions]
        blocks_BL[mask_BL] = time_blocks(age_us, block_hours=block_hours, num_time_blocks=num_time_blocks)
        return slots_BL, blocks_BL

    story_slots_BS, story_blocks_BS = cut(
        instances.story_start_B[index_B],
        instances.story_stop_B[index_B],
        dataset.story_click_rows_C,
        dataset.story_clicks.clicked_us_C,
    )
    product_slots_BP, product_blocks_BP = cut(
        instances.product_start_B[index_B],
        instances.product_stop_B[index_B],
        dataset.product_click_rows_C,
        dataset.product_clicks.clicked_us_C,
    )
    return Batch(
        story_rows_B=instances.story_rows_B[index_B],
        story_slots_BS=story_slots_BS,
        story_blocks_BS=story_blocks_BS,
        product_slots_BP=product_slots_BP,
        product_blocks_BP=product_blocks_BP,
        clicked_B=instances.clicked_B[index_B].astype(np.float32),
        user_rows_B=dataset.user_rows(instances.user_ids_B[index_B]),
    )


def time_blocks(age_us: Int64s, *, block_hours: int, num_time_blocks: int) -> Int64s:
    """In which block back from the impression a click lies. Paper: Sec. III-A, T.

    Block b holds ages in ((b - 1) * block_hours, b * block_hours]; what is older than the last
    block gets num_time_blocks + 1.

    Args:
        age_us: impression minus click, microseconds, > 0.
        block_hours: width of a block, hours.
        num_time_blocks: the number of blocks.
    """
    width_us = block_hours * HOUR_US
    return np.minimum(-(-age_us // width_us), num_time_blocks + 1)


def user_batches(instances: Instances, *, batch_size: int, generator: np.random.Generator) -> Iterator[Int64s]:
    """One epoch of batches that keep a user's instances together, so that they share items.

    Users come in random order, as many whole ones as fit; a user with more than `batch_size`
    instances is split. Every instance comes once.

    Args:
        instances: B instances in any order.
        batch_size: the most instances of a batch.
        generator: decides the order of users and of the instances of a user.

    Yields:
        Indices into `instances`, [at most batch_size] int64.
    """
    if not len(instances):
        return
    _, user_B = np.unique(instances.user_ids_B, return_inverse=True)
    num_users = int(user_B.max()) + 1
    place_B = generator.permutation(num_users)[user_B]
    order_B = np.lexsort((generator.random(len(user_B)), place_B))
    stops_U = np.cumsum(np.bincount(place_B, minlength=num_users))
    start = 0
    while start < len(order_B):
        # whole users up to here; where not one fits, a part of the next
        whole = int(np.searchsorted(stops_U, start + batch_size, side="right"))
        stop = int(stops_U[whole - 1]) if whole and stops_U[whole - 1] > start else start + batch_size
        yield order_B[start:stop]
        start = stop
