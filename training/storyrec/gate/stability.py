"""The population stability index: how far scores are spread otherwise than others. Needs numpy alone."""

import numpy as np
import numpy.typing as npt

NUM_BINS = 10
LEAST_SHARE = 1e-4  # of a bin of scores: an empty one would make the index infinite

Floats = npt.NDArray[np.float64]


def population_stability(champion_B: Floats, challenger_B: Floats) -> float:
    """Population stability index of the challenger's scores over the champion's deciles; 0: spread alike."""
    edges = np.unique(np.quantile(champion_B, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    before_Q, after_Q = (
        np.maximum(np.bincount(np.searchsorted(edges, scores_B), minlength=len(edges) + 1) / len(scores_B), LEAST_SHARE)
        for scores_B in (champion_B, challenger_B)
    )
    return float(((after_Q - before_Q) * np.log(after_Q / before_Q)).sum())
