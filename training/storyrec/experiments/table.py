"""The table of an experiment in the paper's form: methods in order, best, second and star marked.

Paper: Tables IV and VI.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storyrec.errors import DataError
from storyrec.experiments.comparison import PairedTest, Ranking, Row, headroom_share, paired_test, rank, rows_of
from storyrec.experiments.published import EXPERIMENTS, TABLE_7, Figures
from storyrec.experiments.results import Metrics, Results

LABELS = {
    "per_user_auc": "per-user AUC",
    "impression_weighted_auc": "impression-weighted AUC",
    "global_auc": "global AUC",
    "log_loss": "log loss",
}
RANKED_LABELS = {"hr_at_": "HR@", "ndcg_at_": "NDCG@"}
MATCHING_LABELS = {
    "hit_at_5": "hit@5",
    "recall_at_5": "recall@5",
    "ndcg_at_5": "NDCG@5",
    "auc_top_500": "AUC in the top 500",
}
MATCHING_PARTS = {"in_sample_": "in-sample", "held_out_": "held-out"}
UNSEEN = "unseen_"
FLOPS_LABELS = {
    f"{step}_{part}": f"{step}, {text}"
    for step in ("training", "inference")
    for part, text in (("all", "all"), ("all_once", "shared once"), ("sequence", "sequence"))
}
OTHER_METRICS = ("impression_weighted_auc", "global_auc", "log_loss")

BASE = "ADAPT"
ORIGINAL = " (original)"
JUDGED_APART = frozenset({"placebo"})
"""Experiments whose groups are judged on data of their own: nothing is compared across groups."""


@dataclass(frozen=True)
class Cell:
    """A figure of a method.

    Attributes:
        mean: over the seeds.
        deviation: standard deviation over the seeds; empty with one seed.
        is_best, is_second: by the mean.
        has_star: best, and significantly better than the second.
    """

    mean: str
    deviation: str
    is_best: bool
    is_second: bool
    has_star: bool


@dataclass(frozen=True)
class Line:
    """A method of the table.

    Attributes:
        row: its runs.
        cells: of the table's metrics.
        share: of the oracle's headroom; empty where there is no oracle.
        published: the paper's figures, dataset by dataset; empty where it has none of this experiment.
    """

    row: Row
    cells: tuple[Cell, ...]
    share: str
    published: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """A method against the one that it is a variant or a rival of, by per-user AUC."""

    row: Row
    base: str
    test: PairedTest


@dataclass(frozen=True)
class Table:
    """All of it.

    Attributes:
        metrics: names of its columns.
        groups: lines by group, in order.
        references: name, figures and share of each.
        rankings: by group and metric; the group is empty where all are compared with each other.
        published: the paper's figures by dataset; empty where it has none.
        has_oracle: whether shares of the oracle's headroom are known.
    """

    metrics: tuple[str, ...]
    groups: Mapping[str, tuple[Line, ...]]
    references: tuple[tuple[str, tuple[str, ...], str], ...]
    rankings: Mapping[tuple[str, str], Ranking]
    published: Mapping[str, Figures]
    has_oracle: bool

    @property
    def has_published(self) -> bool:
        """Whether the paper has figures of this experiment."""
        return bool(self.published)


def make_table(results: Results, *, metrics: Sequence[str]) -> Table:
    """Lay out an experiment's figures.

    Args:
        results: of at least one run.
        metrics: the columns.
    """
    rows = rows_of(results)
    rankings = {
        (group, metric): rank(members, metric=metric)
        for group, members in _compared(results.experiment, rows).items()
        for metric in metrics
    }
    published = EXPERIMENTS.get(results.experiment, {})
    oracle = oracle_auc(results)
    groups: dict[str, tuple[Line, ...]] = {}
    for row in rows:
        group = row.group if results.experiment in JUDGED_APART else ""
        line = Line(
            row=row,
            cells=tuple(_cell(row, rankings[group, metric]) for metric in metrics),
            share=percent(headroom_share(row.mean("per_user_auc"), oracle=oracle)),
            published=tuple(
                number(figures.get(row.method, {}).get(metric)) for figures in published.values() for metric in metrics
            ),
        )
        groups[row.group] = (*groups.get(row.group, ()), line)
    references = tuple(
        (
            name,
            tuple(number(figures.get(metric)) for metric in metrics),
            percent(headroom_share(figures.get("per_user_auc", float("nan")), oracle=oracle)),
        )
        for name, figures in [*results.references.items(), *_published_matching(results)]
    )
    return Table(tuple(metrics), groups, references, rankings, published, has_oracle=math.isfinite(oracle))


def check_results(results: Results) -> None:
    """Refuse results that no table can be made of.

    Raises:
        DataError: there are no runs, or one has none of the figures of the first column.
    """
    problem = "the results hold no run" if not results.runs else ""
    columns = headline_metrics(results)
    if not problem and not (columns and all(columns[0] in run.metrics for run in results.runs)):
        problem = f"a run has no {label(columns[0]) if columns else 'per-user AUC'}"
    if problem:
        raise DataError(
            problem,
            expected="runs with the figures of an evaluation",
            where=f"results of the experiment '{results.experiment}'",
            remedy="run the experiment again",
        )


def headline_metrics(results: Results) -> tuple[str, ...]:
    """The paper's figures under our names, the one that decides first.

    Per-user AUC, and HR and NDCG at the K that was evaluated (Tables IV, VI); figures of matching, held-out pairs
    first (Table VII); millions of operations (Table V).
    """
    names = dict.fromkeys(name for run in results.runs for name in run.metrics)
    ranked = [name for prefix in RANKED_LABELS for name in names if name.startswith(prefix)]
    matching = [part + name for part in reversed(MATCHING_PARTS) for name in MATCHING_LABELS]
    return tuple(name for name in ["per_user_auc", *ranked, *matching, *FLOPS_LABELS] if name in names)


def other_metrics(results: Results) -> tuple[str, ...]:
    """Figures for a second table, those that the runs have."""
    names = [*OTHER_METRICS, *(UNSEEN + name for name in MATCHING_LABELS)]
    return tuple(name for name in names if any(name in run.metrics for run in results.runs))


def differences(results: Results) -> tuple[Difference, ...]:
    """Every method against ADAPT, and a method as its own paper has it against the paper's version.

    Those whose counterpart was not run are left out.
    """
    found: list[Difference] = []
    if headline_metrics(results)[0] != "per_user_auc":
        return ()
    for members in _compared(results.experiment, rows_of(results)).values():
        by_name = {row.method: row for row in members}
        for row in members:
            base = row.method.removesuffix(ORIGINAL) if row.method.endswith(ORIGINAL) else BASE
            if base in by_name and base != row.method:
                found.append(Difference(row, base, paired_test(row, by_name[base], metric="per_user_auc")))
    return tuple(found)


def oracle_auc(results: Results) -> float:
    """The oracle's per-user AUC; NaN where it is not known for all of the rows."""
    if results.experiment in JUDGED_APART:
        return float("nan")
    return results.references.get("oracle", {}).get("per_user_auc", float("nan"))


def label(metric: str) -> str:
    """A metric's name for a reader."""
    for prefix, text in RANKED_LABELS.items():
        if metric.startswith(prefix):
            return text + metric.removeprefix(prefix)
    for prefix, text in {**MATCHING_PARTS, UNSEEN: "unseen"}.items():
        if metric.startswith(prefix):
            return f"{text} {MATCHING_LABELS[metric.removeprefix(prefix)]}"
    return {**LABELS, **FLOPS_LABELS}[metric]


def number(value: float | None) -> str:
    """Four decimals; a dash where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float) -> str:
    """Four decimals with their sign."""
    return f"{value:+.4f}".replace("-", "−") if math.isfinite(value) else "–"


def percent(share: float) -> str:
    """A share as whole percents; nothing where there is none."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%".replace("-", "−") if math.isfinite(share) else ""


def probability(p_value: float) -> str:
    """A p-value with its relation, such as "p = 0.012"."""
    if not math.isfinite(p_value):
        return "p unknown"
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _published_matching(results: Results) -> list[tuple[str, Metrics]]:
    """The rows of Table VII; its pairs are those that DUAL was trained on."""
    if results.experiment != "table7":
        return []
    return [
        (f"{method}, published, {dataset}", {f"in_sample_{name}": value for name, value in metrics.items()})
        for dataset, figures in TABLE_7.items()
        for method, metrics in figures.items()
    ]


def _compared(experiment: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Which rows are compared with each other: those of a group, or all under an empty name."""
    compared: dict[str, list[Row]] = {}
    for row in rows:
        compared.setdefault(row.group if experiment in JUDGED_APART else "", []).append(row)
    return compared


def _cell(row: Row, ranking: Ranking) -> Cell:
    deviation = row.deviation(ranking.metric)
    is_best = row is ranking.best
    return Cell(
        mean=number(row.mean(ranking.metric)),
        deviation=f"± {deviation:.4f}" if math.isfinite(deviation) else "",
        is_best=is_best,
        is_second=row is ranking.second,
        has_star=is_best and ranking.has_star,
    )
