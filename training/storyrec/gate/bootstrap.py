"""The paired bootstrap by user: how sure a difference between two models is, and what it could have shown.

Every figure is a ratio of sums over users, so one set of resamples serves all of them: a user is drawn Poisson(1)
times, with everything that both models said of her. Suffixes: U users, M figures, R resamples.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

POWER = 0.8
MAX_DRAWS = 2_000_000  # drawn at once: bounds the memory


@dataclass(frozen=True)
class Gain:
    """How much better the challenger is in one figure; positive is better, whatever the figure.

    Attributes:
        estimate: of the held-out users.
        lower, upper: one-sided bounds, each at `confidence`.
        confidence: such as 0.95.
        standard_error: of the estimate.
        detectable: the smallest true difference that this day would have shown at the confidence with 80 % power.
        num_users: that the figure is made of.
    """

    estimate: float
    lower: float
    upper: float
    confidence: float
    standard_error: float
    detectable: float
    num_users: int


def resampled_sums(totals_UM: Floats, *, num_resamples: int, seed: int) -> Floats:
    """Column sums over resampled users, [R, M].

    Args:
        totals_UM: one row per user, [U, M] float, finite.
        num_resamples: R.
        seed: the same seed draws the same users, however the draws are cut.
    """
    generator = np.random.default_rng(seed)
    num_users, num_figures = totals_UM.shape
    sums_RM = np.empty((num_resamples, num_figures))
    step = max(1, MAX_DRAWS // max(1, num_users))
    for start in range(0, num_resamples, step):
        size = min(step, num_resamples - start)
        times_RU = generator.poisson(1.0, size=(size, num_users)).astype(np.float64)
        sums_RM[start : start + size] = times_RU @ totals_UM
    return sums_RM


def gain(estimate: float, resampled_R: Floats, *, confidence: float, num_users: int) -> Gain:
    """A difference with its one-sided bounds and the power behind it.

    Raises:
        ValueError: the estimate or a resample is not finite.
    """
    if not (np.isfinite(estimate) and np.isfinite(resampled_R).all()):
        raise ValueError("the difference is not finite")
    standard_error = float(resampled_R.std())
    needed = NormalDist().inv_cdf(confidence) + NormalDist().inv_cdf(POWER)
    return Gain(
        estimate=float(estimate),
        lower=float(np.quantile(resampled_R, 1 - confidence)),
        upper=float(np.quantile(resampled_R, confidence)),
        confidence=confidence,
        standard_error=standard_error,
        detectable=needed * standard_error,
        num_users=num_users,
    )
