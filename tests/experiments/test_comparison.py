"""Comparing methods over seeds, recomputed by hand; and the published figures against the paper's text."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from scipy import stats

from storyrec.experiments import methods, published
from storyrec.experiments.comparison import Row, agree, headroom_share, paired_test, rank, rows_of
from storyrec.experiments.results import Results, Run

PAPER = Path(__file__).parents[3] / "shared" / "paper" / "adapt.txt"


def make_row(method: str, values: Sequence[float], *, first_seed: int = 0, metric: str = "per_user_auc") -> Row:
    runs = [
        Run(method, "a group", seed, {metric: value}, 1.0, 1, 1, {}) for seed, value in enumerate(values, first_seed)
    ]
    return Row(method, "a group", tuple(runs))


def with_t(statistic: float) -> tuple[Row, Row]:
    """Two methods of five seeds whose paired differences have this t statistic: mean / (sd / sqrt(5))."""
    spread = [-2.0, -1.0, 0.0, 1.0, 2.0]  # standard deviation sqrt(2.5)
    mean = statistic * math.sqrt(2.5) / math.sqrt(5)
    common = [0.6, 0.1, 0.9, 0.3, 0.2]
    better = [value + (mean + noise) / 1000 for value, noise in zip(common, spread, strict=True)]
    return make_row("better", better), make_row("worse", common)


def test_mean_and_sample_deviation_over_the_seeds() -> None:
    row = make_row("DIN", [0.5, 0.6, 0.7])
    assert row.mean("per_user_auc") == pytest.approx(0.6)
    assert row.deviation("per_user_auc") == pytest.approx(0.1)
    assert math.isnan(make_row("DIN", [0.5]).deviation("per_user_auc"))


def test_p_value_is_that_of_a_paired_t_test() -> None:
    test = paired_test(*with_t(3.0), metric="per_user_auc")
    assert test.p_value == pytest.approx(2 * stats.t.sf(3.0, df=4), rel=1e-6)
    assert test.difference == pytest.approx(3.0 * math.sqrt(0.5) / 1000)
    assert test.num_seeds == 5


@pytest.mark.parametrize(("statistic", "has_star"), [(4.5, False), (4.7, True)])
def test_star_from_the_table_value_of_four_degrees_of_freedom_on(statistic: float, has_star: bool) -> None:
    ranking = rank(with_t(statistic), metric="per_user_auc")  # t(4) at p = 0.01 is 4.604
    assert ranking.best is not None
    assert ranking.best.method == "better"
    assert ranking.has_star is has_star


def test_only_common_seeds_are_paired() -> None:
    first, second = make_row("a", [0.9, 0.5, 0.6]), make_row("b", [0.4, 0.3, 0.1], first_seed=1)
    test = paired_test(first, second, metric="per_user_auc")
    assert test.num_seeds == 2
    assert test.difference == pytest.approx(((0.5 - 0.4) + (0.6 - 0.3)) / 2)


@pytest.mark.parametrize("first_seed", [2, 3])
def test_no_star_without_two_common_seeds(first_seed: int) -> None:
    ranking = rank(
        [make_row("a", [0.9, 0.9, 0.9]), make_row("b", [0.1, 0.2, 0.1], first_seed=first_seed)], metric="per_user_auc"
    )
    assert ranking.test is not None
    assert ranking.test.num_seeds == 3 - first_seed
    assert math.isnan(ranking.test.p_value)
    assert not ranking.has_star


def test_no_star_where_the_best_is_worse_on_the_common_seeds() -> None:
    best = make_row("a", [0.50, 0.51, 0.50, 0.99])
    ranking = rank([best, make_row("b", [0.60, 0.612, 0.599])], metric="per_user_auc")
    assert ranking.best is best
    assert ranking.test is not None
    assert ranking.test.is_significant
    assert not ranking.has_star


def test_a_lower_log_loss_is_better() -> None:
    rows = [
        make_row(name, values, metric="log_loss")
        for name, values in {"a": [0.5, 0.51, 0.5], "b": [0.3, 0.31, 0.301], "c": [0.7, 0.7, 0.7]}.items()
    ]
    ranking = rank(rows, metric="log_loss")
    assert [row.method for row in ranking.rows] == ["b", "a", "c"]
    assert ranking.has_star


def test_a_method_without_a_finite_figure_has_no_rank() -> None:
    rows = [make_row("a", [0.6, float("nan")]), make_row("b", [0.5, 0.5])]
    ranking = rank(rows, metric="per_user_auc")
    assert [row.method for row in ranking.rows] == ["b"]
    assert ranking.test is None
    assert rank(rows, metric="hr_at_5").best is None


def test_runs_are_gathered_by_group_and_method_in_order() -> None:
    runs = [
        Run(method, group, seed, {}, 1.0, 1, 1, {})
        for method, group, seed in [("b", "x", 1), ("a", "x", 0), ("b", "x", 0), ("b", "y", 0)]
    ]
    rows = rows_of(Results("placebo", {}, tuple(runs), {}, ()))
    assert [(row.method, row.group, row.seeds) for row in rows] == [
        ("b", "x", (0, 1)),
        ("a", "x", (0,)),
        ("b", "y", (0,)),
    ]


def test_headroom_is_counted_from_chance() -> None:
    assert headroom_share(0.65, oracle=0.70) == pytest.approx(0.75)
    assert headroom_share(0.5, oracle=0.70) == 0.0
    assert math.isnan(headroom_share(0.6, oracle=0.5))


def test_agreement_with_a_published_order() -> None:
    rows = [
        make_row("a", [0.60, 0.61, 0.60]),
        make_row("b", [0.70, 0.711, 0.70]),
        make_row("c", [0.65, 0.80, 0.68]),
        make_row("unpublished", [0.9, 0.9, 0.9]),
    ]
    orders = {"one": {"a": 0.4, "b": 0.2, "c": 0.3}, "two": {"a": 0.1, "b": 0.3, "c": 0.2}}
    figures = {
        dataset: {name: {"per_user_auc": value} for name, value in order.items()} for dataset, order in orders.items()
    }
    both = agree(rows, figures, metric="per_user_auc")
    # ours a < b < c, ranks 1 2 3; theirs 3 1 2 and 1 3 2: 1 - 6 * sum of squared distances / (3 * 8)
    assert both.correlations == pytest.approx({"one": 1 - 6 * 6 / 24, "two": 1 - 6 * 2 / 24})
    assert both.num_methods == 3
    assert (both.num_pairs, both.reversals) == (0, ())  # the two datasets order every pair differently

    one = agree(rows, {"one": figures["one"]}, metric="per_user_auc")
    assert one.num_pairs == 3
    assert [(pair.better, pair.worse) for pair in one.reversals] == [("b", "a"), ("c", "a")]
    assert [(pair.better, pair.worse) for pair in one.significant] == [("b", "a")]
    assert one.reversals[0].published == pytest.approx({"one": -0.2})


def test_published_figures_stand_under_the_names_of_the_methods() -> None:
    for table, ours in ((published.TABLE_4, methods.TABLE_4), (published.TABLE_6, methods.TABLE_6)):
        for dataset in published.DATASETS:
            assert list(table[dataset]) == [method.name for method in ours]
    assert published.TABLE_4["SRD-1"]["ADAPT"] == published.TABLE_6["SRD-1"]["ADAPT"]
    assert set(published.TABLE_5) | set(published.TRAINING_DAYS) <= set(methods.METHODS)


@pytest.mark.skipif(not PAPER.exists(), reason="the paper's text is not at hand")
@pytest.mark.parametrize(
    ("title", "table"), [("IV", published.TABLE_4), ("VI", published.TABLE_6), ("VII", published.TABLE_7)]
)
def test_published_figures_are_those_of_the_paper(title: str, table: dict[str, published.Figures]) -> None:
    text = PAPER.read_text()
    text = text[text.index(f"\nTABLE {title}\n") :]
    lines = [[float(number) for number in re.findall(r"\b0\.\d{4}\b", line)] for line in text.splitlines()]
    printed = [numbers for numbers in lines if len(numbers) == 6][: len(table["SRD-1"])]
    ours = [[*table["SRD-1"][method].values(), *table["SRD-2"][method].values()] for method in table["SRD-1"]]
    assert ours == printed
