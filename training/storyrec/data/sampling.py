"""A share of the users, always the same ones: a dataset that is smaller, and as deep for each of its users.

Paper: Sec. IV-A, whose data sets are all events of sampled users.
"""

from hashlib import md5

import numpy as np
import numpy.typing as npt

from storyrec.features.sequences import run_starts

_BITS = 32


def is_sampled(user_ids_B: npt.NDArray[np.int64], *, share: float) -> npt.NDArray[np.bool_]:
    """Which rows are of sampled users; who is sampled at one share is so at every larger one.

    Args:
        user_ids_B: ascending, [B].
        share: of the users, 0 < share <= 1.
    """
    if share == 1:
        return np.ones(len(user_ids_B), bool)
    starts_U = run_starts(user_ids_B)
    lengths_U = np.diff(np.append(starts_U, len(user_ids_B)))
    below = _below(share)
    sampled_U = [
        int(md5(str(user_id).encode()).hexdigest()[:8], 16) < below for user_id in user_ids_B[starts_U].tolist()
    ]
    return np.repeat(np.array(sampled_U, bool), lengths_U)


def sampled_in_sql(*, share: float) -> str:
    """The same as a condition on `user_id` in Spark's SQL."""
    return f"CAST(conv(substr(md5(CAST(user_id AS STRING)), 1, 8), 16, 10) AS BIGINT) < {_below(share)}"


def _below(share: float) -> int:
    """Users whose hash is less are sampled."""
    return round(share * 2**_BITS)
