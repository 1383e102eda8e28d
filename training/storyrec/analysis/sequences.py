"""What stands in the sequences of a split: lengths, categories, time gaps. Paper: Tables I and III, Figs. 3 and 4.

A *sequence* is the pair of a story and a product sequence; impressions of a user between two clicks share it.

Suffixes: B = instances, C = clicks, D = domains, H = hours, K = categories, L = clicks of a sequence,
N = items with the padding row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.analysis.sums import Sums
from storyrec.data.instances import Instances
from storyrec.features.sequences import ClickLog
from storyrec.schema import Domain

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

HOUR_US = 3_600_000_000
ROWS_AT_A_TIME = 1 << 17


@dataclass(frozen=True)
class SplitSums(Sums):
    """What is to be known of some users' instances.

    Attributes:
        num_instances, num_clicked, num_users, num_sequences: counts.
        lengths_D: clicks in the distinct sequences, [2].
        categories_D: distinct categories in each of them, summed, [2].
        overlap: categories that both domains of a sequence have, summed.
        gaps_DH: clicks in the instances' sequences by whole hours before the impression, [2, H].
        shown_LL, clicked_LL: instances by length of story and product sequence, [L + 1, L + 1].
        story_marks_N, product_marks_N: items that are shown or stand in a sequence, bool.
        clicks_DK: clicks that stand in a sequence, each once, by category; 0 = none, [2, K].
    """

    num_instances: int
    num_clicked: int
    num_users: int
    num_sequences: int
    lengths_D: Int64s
    categories_D: Int64s
    overlap: int
    gaps_DH: Int64s
    shown_LL: Int64s
    clicked_LL: Int64s
    story_marks_N: Bools
    product_marks_N: Bools
    clicks_DK: Int64s


def sum_split(
    instances: Instances,
    *,
    clicks: Mapping[Domain, ClickLog],
    categories: Mapping[Domain, Int64s],
    num_categories: int,
    history_days: int,
    length: int,
) -> SplitSums:
    """Go through the sequences of instances.

    Args:
        instances: sorted by user and time; their sequences are found here.
        clicks: of each domain, with catalog rows in place of item ids.
        categories: the category of each catalog row, 1 to `num_categories`; 0 = none, [N].
        num_categories: how many there are.
        history_days, length: what a sequence may hold; see `Instances.with_sequences`.
    """
    instances = instances.with_sequences(
        story_clicks=clicks[Domain.STORY],
        product_clicks=clicks[Domain.PRODUCT],
        history_days=history_days,
        length=length,
    )
    slices = {
        Domain.STORY: (instances.story_start_B, instances.story_stop_B),
        Domain.PRODUCT: (instances.product_start_B, instances.product_stop_B),
    }
    is_first_B = _changes(instances.user_ids_B, *slices[Domain.STORY], *slices[Domain.PRODUCT])
    lengths_DB = np.stack([stop_B - start_B for start_B, stop_B in slices.values()])
    covered = {domain: _covered(*slices[domain], num_clicks=len(clicks[domain])) for domain in Domain}
    marks = {domain: np.zeros(len(categories[domain]), bool) for domain in Domain}
    for domain in Domain:
        marks[domain][clicks[domain].item_ids_C[covered[domain]]] = True
    marks[Domain.STORY][instances.story_rows_B] = True

    num_hours = (history_days + 1) * 24
    gaps_DH = np.zeros((2, num_hours), np.int64)
    categories_D, overlap = np.zeros(2, np.int64), 0
    # a slot without a click points at one more entry
    times = {domain: np.append(clicks[domain].clicked_us_C, 0) for domain in Domain}
    clicked_categories = {domain: np.append(categories[domain][clicks[domain].item_ids_C], 0) for domain in Domain}
    for first in range(0, len(instances), ROWS_AT_A_TIME):
        block = slice(first, first + ROWS_AT_A_TIME)
        kinds_DL = []
        for domain in Domain:
            start_B, stop_B = (bound_B[block] for bound_B in slices[domain])
            slots_BL = start_B[:, None] + np.arange(length)
            mask_BL = slots_BL < stop_B[:, None]
            slots_BL[~mask_BL] = len(clicks[domain])
            gaps_BL = (instances.shown_us_B[block, None] - times[domain][slots_BL]) // HOUR_US
            gaps_DH[domain] += np.bincount(gaps_BL[mask_BL], minlength=num_hours)
            kinds_DL.append(clicked_categories[domain][slots_BL[is_first_B[block]]].astype(np.int32))
        both = _num_distinct(np.concatenate(kinds_DL, axis=1))
        single_D = [_num_distinct(kinds_BL) for kinds_BL in kinds_DL]
        categories_D += [counts.sum() for counts in single_D]
        overlap += int((single_D[0] + single_D[1] - both).sum())

    joint_B = lengths_DB[Domain.STORY] * (length + 1) + lengths_DB[Domain.PRODUCT]
    shown_LL, clicked_LL = (
        np.bincount(chosen_B, minlength=(length + 1) ** 2).reshape(length + 1, length + 1)
        for chosen_B in (joint_B, joint_B[instances.clicked_B])
    )
    return SplitSums(
        num_instances=len(instances),
        num_clicked=int(instances.clicked_B.sum()),
        num_users=int(_changes(instances.user_ids_B).sum()),
        num_sequences=int(is_first_B.sum()),
        lengths_D=lengths_DB[:, is_first_B].sum(axis=1),
        categories_D=categories_D,
        overlap=overlap,
        gaps_DH=gaps_DH,
        shown_LL=shown_LL,
        clicked_LL=clicked_LL,
        story_marks_N=marks[Domain.STORY],
        product_marks_N=marks[Domain.PRODUCT],
        clicks_DK=np.stack(
            [
                np.bincount(clicked_categories[domain][:-1][covered[domain]], minlength=num_categories + 1)
                for domain in Domain
            ]
        ),
    )


def _changes(*columns: Int64s) -> Bools:
    """Where a row differs from the one before; the first one does."""
    changes_B = np.ones(len(columns[0]), bool)
    changes_B[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return changes_B


def _covered(start_B: Int64s, stop_B: Int64s, *, num_clicks: int) -> Bools:
    """Which clicks lie in a slice, [C]."""
    opened, closed = (np.bincount(bound_B, minlength=num_clicks + 1) for bound_B in (start_B, stop_B))
    covered: Bools = np.cumsum(opened - closed)[:-1] > 0
    return covered


def _num_distinct(kinds_BL: npt.NDArray[np.int32]) -> Int64s:
    """Distinct numbers in each row, zeros left out, [B]."""
    kinds_BL.sort(axis=1)
    is_new_BL = np.ones(kinds_BL.shape, bool)
    is_new_BL[:, 1:] = kinds_BL[:, 1:] != kinds_BL[:, :-1]
    num_distinct_B: Int64s = (is_new_BL & (kinds_BL > 0)).sum(axis=1)
    return num_distinct_B
