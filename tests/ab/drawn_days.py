"""What tests without logs saw, day by day."""

from datetime import date, timedelta

import numpy as np

from storyrec.ab.logs import Observed


def observed_of(sums_UDK: np.ndarray, is_treatment_U: np.ndarray, *, entry_U: np.ndarray | None = None) -> Observed:
    return Observed(
        days=tuple(date(2026, 3, 1) + timedelta(days=day) for day in range(sums_UDK.shape[1])),
        is_treatment_U=is_treatment_U,
        entry_U=np.zeros(len(sums_UDK), np.int64) if entry_U is None else entry_U,
        sums_UDK=sums_UDK,
        before_UK=None,
        has_dwell=False,
        counts=(),
        share_in_both=0.0,
    )


def draw_days(rng: np.random.Generator, *, num_users: int, num_days: int) -> np.ndarray:
    """Users of unlike tastes and diligence, who come on some of the days."""
    taste_U = rng.beta(2, 8, num_users)
    shown_UD = rng.poisson(4 * np.exp(0.5 * rng.standard_normal((num_users, 1))), (num_users, num_days))
    shown_UD *= rng.random((num_users, num_days)) < 0.6
    clicked_UD = rng.binomial(shown_UD, taste_U[:, None])
    return np.stack([shown_UD, clicked_UD, 0 * clicked_UD], axis=2).astype(float)
