"""The report of an experiment: the table in the paper's form, beside the paper's figures, as HTML and Markdown."""

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from storyrec.errors import DataError
from storyrec.experiments.comparison import Agreement, Ranking, Row, agree, headroom_share, rows_of
from storyrec.experiments.plots import plot_against_published, plot_auc
from storyrec.experiments.results import CSV, Results, read_results, write_results
from storyrec.experiments.table import (
    JUDGED_APART,
    OTHER_METRICS,
    Cell,
    Table,
    differences,
    headline_metrics,
    label,
    make_table,
    number,
    percent,
    probability,
    signed,
)
from storyrec.storage import write_file

REPORT, MARKDOWN = "report.html", "table.md"
TITLES = {
    "table4": "Table IV: which method ranks stories best?",
    "table6": "Table VI: what does each part of ADAPT give?",
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
    _check(results)
    rows = rows_of(results)
    table = make_table(results, metrics=headline_metrics(results))
    agreement = agree(rows, table.published, metric="per_user_auc") if table.has_published else None
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("storyrec") / "templates" / "experiment.html.j2").read_text("utf-8"))
    return template.render(
        title=_title(results),
        results=results,
        rows=rows,
        table=table,
        others=make_table(results, metrics=[name for name in OTHER_METRICS if name in results.runs[0].metrics]),
        verdicts=[*_verdicts(results, table)],
        differences=differences(results),
        agreement=agreement,
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
            "auc": plot_auc(rows, references=results.references, published=table.published),
            "published": plot_against_published(rows, published=table.published) if agreement else None,
        },
    )


def markdown_table(results: Results) -> str:
    """The table in the paper's form, and every method against ADAPT, as Markdown.

    Raises:
        DataError: there are no runs, or they have no per-user AUC.
    """
    _check(results)
    table = make_table(results, metrics=headline_metrics(results))
    names = [label(metric) for metric in table.metrics]
    shares = ["of the oracle's headroom"] if table.has_oracle else []
    published = [f"{dataset} {name}" for dataset in table.published for name in names]
    lines = [*_head(["Group", "Method"], [*names, *shares, *published])]
    for group, members in table.groups.items():
        for line in members:
            cells = [*(_mark(cell) for cell in line.cells), *([line.share] if shares else []), *line.published]
            lines.append(_line([group, line.row.method, *cells]))
    for name, figures, share in table.references:
        lines.append(_line(["reference", name, *figures, *([share] if shares else []), *[""] * len(published)]))
    lines += ["", _legend(table), ""]
    compared = differences(results)
    if compared:
        lines += _head(["Method", "against"], ["per-user AUC", "paired t-test", "common seeds"])
        for found in compared:
            test = found.test
            lines.append(
                _line(
                    [
                        found.row.method,
                        found.base,
                        signed(test.difference),
                        probability(test.p_value),
                        str(test.num_seeds),
                    ]
                )
            )
        lines.append("")
    if table.has_published:
        lines += [_agreement(agree(rows_of(results), table.published, metric="per_user_auc")), ""]
    return "\n".join(lines)


def _check(results: Results) -> None:
    problem = "the results hold no run" if not results.runs else ""
    if not problem and not all("per_user_auc" in run.metrics for run in results.runs):
        problem = "a run has no per-user AUC"
    if problem:
        raise DataError(
            problem,
            expected="runs with the figures of an evaluation",
            where=f"results of the experiment '{results.experiment}'",
            remedy="run the experiment again",
        )


def _title(results: Results) -> str:
    return TITLES.get(results.experiment, f"Experiment {results.experiment}")


def _verdicts(results: Results, table: Table) -> Iterator[str]:
    """What the ranking by per-user AUC says, a sentence for each set of methods that is compared."""
    oracle = results.references.get("oracle", {}).get("per_user_auc", float("nan"))
    for (group, metric), ranking in table.rankings.items():
        if metric != "per_user_auc" or ranking.best is None:
            continue
        mean = ranking.best.mean(metric)
        share = percent(headroom_share(mean, oracle=oracle))
        yield "".join(
            [
                f"{group}: " if group else "",
                f"{ranking.best.method} is best with a per-user AUC of {number(mean)}",
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
    """The counts behind the figures, and which methods or groups they belong to where there are several."""
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


def _head(left: list[str], right: list[str]) -> list[str]:
    return [_line([*left, *right]), "|" + " --- |" * len(left) + " ---: |" * len(right)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _mark(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.is_best else f"<u>{cell.text}</u>" if cell.is_second else cell.text
    return text + (r"\*" if cell.has_star else "")


def _legend(table: Table) -> str:
    published = " SRD-1 and SRD-2: as published in the paper, on its own data." if table.has_published else ""
    return (
        "Mean ± standard deviation over the seeds; **best**, <u>second</u>; \\* the best is better than the second, "
        f"paired t-test over the seeds, p < 0.01.{published}"
    )


def _agreement(agreement: Agreement) -> str:
    correlations = ", ".join(f"{value:.2f} ({dataset})" for dataset, value in agreement.correlations.items())
    pairs = "; ".join(
        f"{pair.better} above {pair.worse} ({probability(pair.test.p_value)})" for pair in agreement.significant
    )
    return (
        f"Rank correlation with the paper's order of {agreement.num_methods} methods by per-user AUC: {correlations}. "
        f"Of {agreement.num_pairs} pairs {len(agreement.reversals)} stand the other way round here, "
        f"{len(agreement.significant)} of them significantly{': ' + pairs if pairs else ''}."
    )
