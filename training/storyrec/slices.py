"""Parts of the held-out impressions that a model must not get worse for, unseen in the mean of all.

Suffixes: B impressions, U users.
"""

import numpy as np

from storyrec.data.dataset import Dataset
from storyrec.features.sequences import midnight_us
from storyrec.metrics import Booleans
from storyrec.schema import SOURCES

SHORT = 5  # clicks
SLICES = (
    "new stories",
    "users without story clicks",
    "short story sequences",
    "full story sequences",
    "light users",
    "heavy users",
    *(f"source {name}" for name in SOURCES),
)


def held_out_slices(data: Dataset) -> dict[str, Booleans]:
    """Which held-out impressions belong to each of SLICES, [B] bool.

    A story is new if it was published in the held-out days, a story sequence short below 5 clicks and full at the
    dataset's length. Light and heavy users are the quarters with the fewest and the most held-out impressions.
    """
    holdout, stories = data.holdout, data.stories
    num_clicks_B = holdout.story_stop_B - holdout.story_start_B
    _, places_B, counts_U = np.unique(holdout.user_ids_B, return_inverse=True, return_counts=True)
    few, many = np.quantile(counts_U, [0.25, 0.75]) if len(counts_U) else (0, 0)
    num_shown_B = counts_U[places_B]
    published_us_B = stories.published_us_N[holdout.story_rows_B]
    sources_B = stories.sources_N[holdout.story_rows_B]
    parts = (
        published_us_B >= midnight_us(data.windows.holdout_start(data.day)),
        num_clicks_B == 0,
        (num_clicks_B > 0) & (num_clicks_B < SHORT),
        num_clicks_B == data.sequence_length,
        num_shown_B <= few,
        num_shown_B >= many,
        *(sources_B == number for number in range(len(SOURCES))),
    )
    return dict(zip(SLICES, parts, strict=True))
