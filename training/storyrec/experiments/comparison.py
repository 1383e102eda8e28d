"""What runs over several seeds say: means, what is best, whether that is chance, and what the paper found.

Paper: Sec. IV-D: five runs a method, and a paired Student t-test of the best against the second.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from storyrec.experiments.published import Figures
from storyrec.experiments.results import Results, Run

SIGNIFICANT = 0.01
LOWER_IS_BETTER = frozenset(
    {
        "log_loss",
        *(f"{step}_{part}" for step in ("training", "inference") for part in ("all", "all_once", "sequence")),
    }
)


@dataclass(frozen=True)
class Row:
    """The runs of one method, by seed ascending.

    Attributes:
        method, group: as the runs have them.
        runs: at least one.
    """

    method: str
    group: str
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the runs."""
        return tuple(run.seed for run in self.runs)

    def mean(self, metric: str) -> float:
        """Mean over the seeds; NaN where a run has no such figure."""
        return float(np.mean(self._values(metric)))

    def deviation(self, metric: str) -> float:
        """Standard deviation over the seeds (of a sample: n - 1); NaN with one seed."""
        values = self._values(metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def _values(self, metric: str) -> list[float]:
        return [run.metrics.get(metric, float("nan")) for run in self.runs]


@dataclass(frozen=True)
class PairedTest:
    """Whether two methods differ in a figure, by the seeds that both were trained with.

    Attributes:
        difference: mean of first minus second; NaN without common seeds.
        p_value: two-sided, of a paired Student t-test; NaN with fewer than two common seeds.
        num_seeds: that both have.
    """

    difference: float
    p_value: float
    num_seeds: int

    @property
    def is_significant(self) -> bool:
        """Whether p < 0.01."""
        return self.p_value < SIGNIFICANT


@dataclass(frozen=True)
class Ranking:
    """Methods by one figure, best first; those without the figure are left out.

    Attributes:
        metric: the figure.
        rows: in order.
        test: of the best against the second; None with fewer than two methods.
    """

    metric: str
    rows: tuple[Row, ...]
    test: PairedTest | None

    @property
    def best(self) -> Row | None:
        """The first; None without any."""
        return self.rows[0] if self.rows else None

    @property
    def second(self) -> Row | None:
        """The second; None without."""
        return self.rows[1] if len(self.rows) > 1 else None

    @property
    def has_star(self) -> bool:
        """Whether the best is better than the second by more than chance."""
        if self.test is None or not self.test.is_significant:
            return False
        return self.test.difference < 0 if self.metric in LOWER_IS_BETTER else self.test.difference > 0


@dataclass(frozen=True)
class Reversal:
    """Two methods that stand in the other order here than in the paper.

    Attributes:
        better, worse: here.
        metric: by which.
        test: of better against worse.
        published: by dataset, the paper's figure of `better` minus that of `worse`, all below zero.
    """

    better: str
    worse: str
    metric: str
    test: PairedTest
    published: Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """How our order of the methods agrees with the paper's.

    Attributes:
        correlations: Spearman's rank correlation by dataset; NaN with fewer than two methods.
        num_methods: that both have.
        num_pairs: of methods that the paper orders alike on all its datasets.
        reversals: those of these pairs that stand the other way round here, the surest first.
    """

    correlations: Mapping[str, float]
    num_methods: int
    num_pairs: int
    reversals: tuple[Reversal, ...]

    @property
    def significant(self) -> tuple[Reversal, ...]:
        """The reversals with p < 0.01, each pair tested for itself."""
        return tuple(reversal for reversal in self.reversals if reversal.test.is_significant)


def rows_of(results: Results) -> tuple[Row, ...]:
    """The methods of an experiment, in the order of its runs."""
    runs: dict[tuple[str, str], list[Run]] = {}
    for run in results.runs:
        runs.setdefault((run.group, run.method), []).append(run)
    return tuple(
        Row(method, group, tuple(sorted(found, key=lambda run: run.seed))) for (group, method), found in runs.items()
    )


def paired_test(first: Row, second: Row, *, metric: str) -> PairedTest:
    """Compare two methods seed by seed."""
    values = [{run.seed: run.metrics.get(metric, float("nan")) for run in row.runs} for row in (first, second)]
    seeds = sorted(values[0].keys() & values[1].keys())
    ours, theirs = ([by_seed[seed] for seed in seeds] for by_seed in values)
    if not seeds:
        return PairedTest(float("nan"), float("nan"), 0)
    p_value = float(stats.ttest_rel(ours, theirs).pvalue) if len(seeds) > 1 else float("nan")
    return PairedTest(float(np.mean(np.subtract(ours, theirs))), p_value, len(seeds))


def rank(rows: Sequence[Row], *, metric: str) -> Ranking:
    """Order methods by the mean of a figure."""
    scored = [row for row in rows if math.isfinite(row.mean(metric))]
    ranked = sorted(scored, key=lambda row: row.mean(metric), reverse=metric not in LOWER_IS_BETTER)
    test = paired_test(ranked[0], ranked[1], metric=metric) if len(ranked) > 1 else None
    return Ranking(metric, tuple(ranked), test)


def headroom_share(per_user_auc: float, *, oracle: float) -> float:
    """Which part of the way from chance (.5) to the oracle a method goes; NaN where there is no way."""
    return (per_user_auc - 0.5) / (oracle - 0.5) if oracle > 0.5 else float("nan")


def agree(rows: Sequence[Row], published: Mapping[str, Figures], *, metric: str) -> Agreement:
    """Compare our order of the methods with the published one.

    Args:
        rows: our methods; those that were not published are left out.
        published: by dataset, method and metric; nothing to compare with where empty.
        metric: of which higher is better.
    """
    ours = [
        row
        for row in rows
        if published
        and math.isfinite(row.mean(metric))
        and all(metric in figures.get(row.method, {}) for figures in published.values())
    ]
    correlations = {
        dataset: _rank_correlation([row.mean(metric) for row in ours], [figures[row.method][metric] for row in ours])
        for dataset, figures in published.items()
    }
    num_pairs, reversals = 0, []
    for pair in combinations(ours, 2):
        better, worse = sorted(pair, key=lambda row: row.mean(metric), reverse=True)
        theirs = {
            dataset: figures[better.method][metric] - figures[worse.method][metric]
            for dataset, figures in published.items()
        }
        is_reversed = all(difference < 0 for difference in theirs.values())
        num_pairs += is_reversed or all(difference > 0 for difference in theirs.values())
        if is_reversed:
            test = paired_test(better, worse, metric=metric)
            reversals.append(Reversal(better.method, worse.method, metric, test, theirs))
    reversals.sort(key=lambda reversal: (math.isnan(reversal.test.p_value), reversal.test.p_value))
    return Agreement(correlations, len(ours), num_pairs, tuple(reversals))


def _rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return float(stats.spearmanr(ours, theirs).statistic) if len(ours) > 1 else float("nan")
