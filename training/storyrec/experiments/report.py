"""The report of an experiment: the table in the paper's form, beside the paper's figures, as HTML and Markdown."""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from storyrec.experiments.comparison import LOWER_IS_BETTER, Ranking, Row, agree, headroom_share, rows_of
from storyrec.experiments.markdown import markdown_table
from storyrec.experiments.plots import plot_against_published, plot_bars
from storyrec.experiments.results import CSV, Results, read_results, write_results
from storyrec.experiments.table import (
    JUDGED_APART,
    Table,
    check_results,
    differences,
    headline_metrics,
    label,
    make_table,
    number,
    oracle_auc,
    other_metrics,
    percent,
    probability,
    signed,
)
from storyrec.storage import write_file

REPORT, MARKDOWN = "report.html", "table.md"
TITLES = {
    "table4": "Table IV: which method ranks stories best?",
    "table5": "Table V: how many operations does each method need?",
    "table6": "Table VI: what does each part of ADAPT give?",
    "table7": "Table VII: which extractors find stories for products best?",
    "beyond": "Beyond the paper: what do other choices give?",
    "placebo": "Placebos: does a gain vanish with its cause?",
    "amazon": "Amazon reviews: what do titles alone give?",
}
COUNTS = ("num_impressions", "num_users", "num_users_left_out", "num_clicks_left_out")


def write_report(results: Results, out: Path) -> None:
    """Write results.csv, results.json, table.md and report.html into a folder.

    Raises:
        DataError: there are no runs, or they have no per-user AUC; nothing is written.
    """
    page, table = render_experiment(results), markdown_table(results)
    write_results(results, out)
    write_file(out / MARKDOWN, table.encode())
    write_file(out / REPORT, page.encode())


def remake_report(file: Path, *, out: Path) -> None:
    """Make the report again from results alone.

    Args:
        file: results.csv or results.json, or a folder that holds one.
        out: where `write_report` writes.

    Raises:
        DataError: the file holds no results of this format.
    """
    write_report(read_results(file), out)


def render_experiment(results: Results) -> str:
    """One self-contained HTML page.

    Raises:
        DataError: there are no runs, or they have no per-user AUC.
    """
    check_results(results)
    rows = rows_of(results)
    table = make_table(results, metrics=headline_metrics(results))
    references = {} if results.experiment in JUDGED_APART else results.references
    agreement = agree(rows, table.published, metric="per_user_auc")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = "{:,}".format
    template = environment.from_string((files("storyrec") / "templates" / "experiment.html.j2").read_text("utf-8"))
    return template.render(
        title=_title(results),
        results=results,
        apart=results.experiment in JUDGED_APART,
        rows=rows,
        table=table,
        others=make_table(results, metrics=other_metrics(results)),
        verdicts=[*_verdicts(results, table)],
        differences=differences(results),
        agreement=agreement if agreement.num_methods > 1 else None,
        judged=_judged(results),
        notes=[*results.notes, *_seed_notes(rows, table)],
        data=dict(_flat(results.data)),
        settings=list(dict.fromkeys(name for run in results.runs for name in run.settings)),
        label=label,
        number=number,
        percent=percent,
        signed=signed,
        probability=probability,
        csv_name=CSV,
        plots={
            "bars": plot_bars(rows, metric=table.metrics[0], references=references, published=table.published),
            "published": plot_against_published(rows, published=table.published) if agreement.num_methods > 1 else None,
        },
    )


def _title(results: Results) -> str:
    return TITLES.get(results.experiment, f"Experiment {results.experiment}")


def _verdicts(results: Results, table: Table) -> Iterator[str]:
    """What the ranking by per-user AUC says, a sentence for each set of methods that is compared."""
    oracle = oracle_auc(results)
    for (group, metric), ranking in table.rankings.items():
        if metric != table.metrics[0] or metric in LOWER_IS_BETTER or ranking.best is None:
            continue
        mean = ranking.best.mean(metric)
        share = percent(headroom_share(mean, oracle=oracle)) if metric == "per_user_auc" else ""
        yield "".join(
            [
                f"{group}: " if group else "",
                f"{ranking.best.method} is best with a {label(metric)} of {number(mean)}",
                _distance(ranking),
                f" It goes {share} of the way from chance to the oracle." if share else "",
            ]
        )


def _distance(ranking: Ranking) -> str:
    if ranking.best is None or ranking.second is None or ranking.test is None:
        return "."
    margin = ranking.best.mean(ranking.metric) - ranking.second.mean(ranking.metric)
    above = f", {number(margin)} above {ranking.second.method}"
    if ranking.test.num_seeds < 2:
        return f"{above}; without two common seeds nothing says whether this is chance."
    outcome = "more than chance" if ranking.has_star else "it may be chance"
    return f"{above}: {outcome} ({probability(ranking.test.p_value)}, {ranking.test.num_seeds} seeds)."


def _judged(results: Results) -> list[tuple[str, Mapping[str, int]]]:
    """The counts behind the figures, and which methods or groups they belong to where there are several.

    Nothing where what was judged was no ranking for users.
    """
    if not all("num_users" in run.metrics for run in results.runs):
        return []
    names: dict[tuple[int, ...], dict[str, None]] = {}
    for run in results.runs:
        counts = tuple(int(run.metrics.get(name, 0)) for name in COUNTS)
        names.setdefault(counts, {})[run.group if results.experiment in JUDGED_APART else run.method] = None
    return [
        (", ".join(found) if len(names) > 1 else "", dict(zip(COUNTS, counts, strict=True)))
        for counts, found in names.items()
    ]


def _seed_notes(rows: tuple[Row, ...], table: Table) -> Iterator[str]:
    most = max(len(row.runs) for row in rows)
    if most == 1:
        return
    for row in rows:
        if len(row.runs) < most:
            yield f"{row.method}: {len(row.runs)} of {most} seeds"
    for ranking in table.rankings.values():
        if ranking.best and ranking.second and ranking.test and ranking.test.num_seeds < 2:
            yield (
                f"{label(ranking.metric)}: no star can be given, {ranking.best.method} and {ranking.second.method} "
                "have fewer than two seeds in common"
            )


def _flat(data: Mapping[str, Any], *, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix=f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
