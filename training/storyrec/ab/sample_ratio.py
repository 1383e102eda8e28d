"""Did each arm get the share of the users that was planned? If not, nothing else is to be trusted.

Fabijan, Gupchup, Gupta, Omhover, Qin, Vermeer, Dmitriev: Diagnosing Sample Ratio Mismatch in Online Controlled
Experiments (KDD 2019).
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

from storyrec.ab.effects import Booleans, Integers

MAX_P = 0.001
"""Below, it is a mismatch."""


@dataclass(frozen=True)
class SampleRatio:
    """Users by arm.

    Attributes:
        num_control, num_treatment: users.
        treatment_share: as planned.
        p_value: of the chi-square test against the plan.
        met_control, met_treatment: users that had met the test by the end of each day, [D].
    """

    num_control: int
    num_treatment: int
    treatment_share: float
    p_value: float
    met_control: tuple[int, ...]
    met_treatment: tuple[int, ...]

    @property
    def is_mismatch(self) -> bool:
        """Whether chance explains the numbers too badly."""
        return self.p_value < MAX_P


def check_ratio(is_treatment_U: Booleans, entry_U: Integers, *, num_days: int, treatment_share: float) -> SampleRatio:
    """Compare the users of both arms with the plan.

    Args:
        is_treatment_U: each user's arm, [U].
        entry_U: each user's first day, [U].
        num_days: of the test.
        treatment_share: planned, in (0, 1).
    """
    met = [np.bincount(entry_U[mine_U], minlength=num_days).cumsum() for mine_U in (~is_treatment_U, is_treatment_U)]
    counts = np.array([met[0][-1], met[1][-1]])
    expected = counts.sum() * np.array([1 - treatment_share, treatment_share])
    return SampleRatio(
        num_control=int(counts[0]),
        num_treatment=int(counts[1]),
        treatment_share=treatment_share,
        p_value=float(stats.chisquare(counts, expected).pvalue),
        met_control=tuple(met[0].tolist()),
        met_treatment=tuple(met[1].tolist()),
    )
