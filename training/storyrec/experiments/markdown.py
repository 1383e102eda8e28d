"""An experiment's table as Markdown, for documents and pull requests."""

from storyrec.experiments.comparison import Agreement, agree, rows_of
from storyrec.experiments.results import Results
from storyrec.experiments.table import (
    JUDGED_APART,
    Cell,
    Table,
    check_results,
    differences,
    headline_metrics,
    label,
    make_table,
    probability,
    signed,
)


def markdown_table(results: Results) -> str:
    """The table in the paper's form, and every method against ADAPT, as Markdown.

    Raises:
        DataError: there are no runs, or they have no per-user AUC.
    """
    check_results(results)
    table = make_table(results, metrics=headline_metrics(results))
    lines = [*_figures(table), "", _legend(table), "", *_differences(results)]
    agreement = agree(rows_of(results), table.published, metric="per_user_auc")
    if agreement.num_methods > 1:
        lines += ["", _agreement(agreement)]
    return "\n".join(lines).rstrip() + "\n"


def _figures(table: Table) -> list[str]:
    names = [label(metric) for metric in table.metrics]
    shares = ["of the oracle's headroom"] if table.has_oracle else []
    published = [f"{dataset} {name}" for dataset in table.published for name in names]
    lines = _head(["Group", "Method"], [*names, *shares, *published])
    for group, members in table.groups.items():
        for line in members:
            cells = [*(_mark(cell) for cell in line.cells), *([line.share] if shares else []), *line.published]
            lines.append(_line([group, line.row.method, *cells]))
    for name, figures, share in table.references:
        lines.append(_line(["reference", name, *figures, *([share] if shares else []), *[""] * len(published)]))
    return lines


def _differences(results: Results) -> list[str]:
    compared = differences(results)
    if not compared:
        return []
    groups = ["Group"] if results.experiment in JUDGED_APART else []
    lines = _head([*groups, "Method", "against"], ["difference in per-user AUC", "paired t-test", "common seeds"])
    for found in compared:
        test = found.test
        figures = [signed(test.difference), probability(test.p_value), str(test.num_seeds)]
        lines.append(_line([*([found.row.group] if groups else []), found.row.method, found.base, *figures]))
    return lines


def _head(left: list[str], right: list[str]) -> list[str]:
    return [_line([*left, *right]), "|" + " --- |" * len(left) + " ---: |" * len(right)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _mark(cell: Cell) -> str:
    text = f"{cell.mean} {cell.deviation}".rstrip()
    text = f"**{text}**" if cell.is_best else f"<u>{text}</u>" if cell.is_second else text
    return text + (r"\*" if cell.has_star else "")


def _legend(table: Table) -> str:
    published = (
        f" {' and '.join(table.published)}: as published in the paper, on its own data." if table.has_published else ""
    )
    return (
        "Mean ± standard deviation over the seeds; **best**, <u>second</u>; \\* the best is better than the second, "
        f"paired t-test over the seeds, p < 0.01.{published}"
    )


def _agreement(agreement: Agreement) -> str:
    correlations = ", ".join(f"{value:.2f} ({dataset})" for dataset, value in agreement.correlations.items())
    pairs = "; ".join(
        f"{pair.better} above {pair.worse} ({probability(pair.test.p_value)})" for pair in agreement.significant
    )
    outcome = (
        f"{len(agreement.reversals)} stand the other way round here, {len(agreement.significant)} of them significantly"
        if agreement.reversals
        else "none stands the other way round here"
    )
    return (
        f"Rank correlation with the paper's order of {agreement.num_methods} methods by per-user AUC: {correlations}. "
        f"Of the {agreement.num_pairs} pairs that it orders alike on all its datasets {outcome}"
        f"{': ' + pairs if pairs else ''}."
    )
