"""An analyzed test as one HTML page, as Markdown, as JSON and on the terminal."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table

from storyrec.ab.analyze import Analysis, Measured
from storyrec.ab.effects import ALPHA, Effect, Metric
from storyrec.ab.plots import plot_distribution, plot_effects, plot_looks, plot_ratio
from storyrec.ab.power import Planned
from storyrec.ab.sequence import SPREAD
from storyrec.ab.trials import Trials
from storyrec.ab.verdict import Outcome, say_interval
from storyrec.storage import write_files

JSON, PAGE, MARKDOWN = "analysis.json", "report.html", "table.md"
NONE = "–"
HEADLINES = {
    Outcome.INVALID: "This test cannot be trusted",
    Outcome.BETTER: "The treatment is better",
    Outcome.WORSE: "The treatment is worse",
    Outcome.MIXED: "The treatment is better in some ways and worse in others",
    Outcome.OPEN: "No difference is shown",
}
HEAD = (
    "metric",
    "control",
    "treatment",
    "lift (95 %)",
    "p",
    "with CUPED (95 %)",
    "p",
    "variance",
    "valid at every look",
    "p",
)


def write_analysis(analysis: Analysis, out: Path) -> None:
    """Write analysis.json, table.md and report.html into a folder, all of them or none."""
    contents = {
        MARKDOWN: markdown_analysis(analysis),
        JSON: json.dumps(document(analysis), indent=1),
        PAGE: render_analysis(analysis),
    }
    write_files({out / name: content.encode() for name, content in contents.items()})


def document(analysis: Analysis) -> dict[str, object]:
    """The analysis as JSON holds it."""
    found: dict[str, object] = json.loads(json.dumps(asdict(analysis), default=str))
    return {"headline": _headline(analysis), **found}


def render_analysis(analysis: Analysis) -> str:
    """One self-contained HTML page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = "{:,}".format
    template = environment.from_string((files("storyrec") / "templates" / "online_test.html.j2").read_text("utf-8"))
    compared = [measured for measured in analysis.metrics if measured.effect]
    return template.render(
        analysis=analysis,
        headline=_headline(analysis),
        answers=[*_answers(analysis)],
        head=HEAD,
        rows=[*_rows(analysis.metrics)],
        before=[
            (m.metric.label, say_interval(m.before.lift), f"{m.before.p_value:.2g}")
            for m in analysis.metrics
            if m.before
        ],
        left_out=[(counted.what, f"{counted.count:,}", f"{counted.of:,}") for counted in analysis.counts],
        spread=SPREAD,
        plots={
            "effects": plot_effects(compared) if compared else None,
            "looks": [(m.metric.label, plot_looks(m)) for m in compared if m.looks],
            "ratio": plot_ratio(analysis.sample_ratio, analysis.days),
            "distributions": [(m.metric.label, plot_distribution(m)) for m in analysis.metrics if m.distribution],
        },
    )


def markdown_analysis(analysis: Analysis) -> str:
    """The verdict, the warnings and the table as Markdown, for documents and pull requests."""
    lines = [f"**{_headline(analysis)}.** {analysis.verdict.recommendation}", ""]
    lines += [f"- Warning: {warning}" for warning in analysis.warnings]
    cells = [[*HEAD], ["---", *["---:"] * (len(HEAD) - 1)], *_rows(analysis.metrics)]
    lines += ["", _about(analysis), "", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines) + "\n"


def print_analysis(analysis: Analysis, *, console: Console) -> None:
    """Warnings, verdict and table, short."""
    for warning in analysis.warnings:
        console.print(f"Warning: {warning}")
    console.print(f"{_headline(analysis)}. {analysis.verdict.recommendation}")
    console.print(_about(analysis))
    rows = [[m.metric.label, *_effect_cells(m.best), *_sequence_cells(m)] for m in analysis.metrics]
    _print_table(("metric", "lift (95 %)", "p", "valid at every look", "p"), rows, console=console)
    for counted in analysis.counts:
        if counted.count:
            console.print(f"{counted.what}: {counted.count:,} of {counted.of:,}")


def print_plan(planned: Sequence[Planned], *, lift: float, power: float, console: Console) -> None:
    """What a test of each number of days finds, and what the lift asked for needs."""
    head = (
        "metric",
        "days",
        "users",
        f"finds with {power:.0%}",
        "looked at daily",
        f"users for {lift:+.1%}",
    )
    rows = [
        [
            _short(one.metric),
            str(one.num_days),
            f"{one.num_users:,}",
            f"{one.detectable:+.1%}",
            f"{one.detectable_daily:+.1%}",
            f"{one.users_needed:,}{'  enough' if one.users_needed <= one.num_users else ''}",
        ]
        for one in planned
    ]
    _print_table(head, rows, console=console)


def print_trials(trials: Sequence[Trials], *, console: Console) -> None:
    """How often tests whose effect is known alarm, and how often their intervals hold it."""
    figures: list[tuple[str, Callable[[Trials], float], str]] = [
        ("true lift", lambda one: one.lift, "+.2%"),
        ("mean estimate", lambda one: one.mean_lift, "+.2%"),
        ("alarms: at the end", lambda one: one.alarms, ".1%"),
        ("  at the end, with CUPED", lambda one: one.adjusted_alarms, ".1%"),
        ("  confidence sequence, at any look", lambda one: one.daily_alarms, ".1%"),
        ("  interval of one look, at any look", lambda one: one.peeking_alarms, ".1%"),
        ("holds the true lift: at the end", lambda one: one.covered, ".1%"),
        ("  at the end, with CUPED", lambda one: one.adjusted_covered, ".1%"),
        ("  confidence sequence", lambda one: one.daily_covered, ".1%"),
        ("variance, by CUPED", lambda one: -one.narrowing, "+.0%"),
    ]
    console.print(f"{trials[0].repetitions:,} tests of {trials[0].num_users:,} users, {trials[0].num_days} days")
    rows = [[name, *(format(figure(one), form) for one in trials)] for name, figure, form in figures]
    _print_table(("", *(_short(one.metric) for one in trials)), rows, console=console)


def _short(metric: Metric) -> str:
    return metric.label.removesuffix(" per user")


def _headline(analysis: Analysis) -> str:
    return HEADLINES[analysis.verdict.outcome]


def _about(analysis: Analysis) -> str:
    ratio = analysis.sample_ratio
    return (
        f"{analysis.days[0]} to {analysis.days[-1]}, {len(analysis.days)} days; {ratio.num_control:,} users in the "
        f"control, {ratio.num_treatment:,} in the treatment ({ratio.treatment_share:.0%} planned, "
        f"p = {ratio.p_value:.2g})"
    )


def _answers(analysis: Analysis) -> Iterator[list[str]]:
    """Of each metric what it was, what it became, and what that says, for whoever decides."""
    for measured in analysis.metrics:
        best = measured.best
        if best is None or analysis.sample_ratio.is_mismatch:
            says = "nothing can be said"
        elif measured.metric.name in analysis.verdict.changed:
            says = "better" if best.log_lift > 0 else "worse"
        elif best.p_value <= ALPHA:
            says = "a hint, no proof: of several metrics one looks so by chance"
        else:
            says = "no difference shown"
        change = say_interval(best.lift) if best else NONE
        label, values = measured.metric.label, (measured.control, measured.treatment)
        yield [label, *(_value(measured, value) for value in values), change, says]


def _rows(metrics: Sequence[Measured]) -> Iterator[list[str]]:
    for measured in metrics:
        yield [
            measured.metric.label,
            _value(measured, measured.control),
            _value(measured, measured.treatment),
            *_effect_cells(measured.effect),
            *_effect_cells(measured.adjusted),
            NONE if measured.narrowing is None else f"{-measured.narrowing:+.0%}",
            *_sequence_cells(measured),
        ]


def _effect_cells(effect: Effect | None) -> list[str]:
    return [say_interval(effect.lift), f"{effect.p_value:.2g}"] if effect else [NONE, NONE]


def _sequence_cells(measured: Measured) -> list[str]:
    if not measured.looks:
        return [NONE, NONE]
    last = measured.looks[-1]
    return [say_interval(last.sequence), f"{last.p_value:.2g}"]


def _value(measured: Measured, value: float | None) -> str:
    if value is None:
        return NONE
    if measured.metric.unit == "share":
        return f"{value:.2%}"
    return f"{value:,.1f} s" if measured.metric.unit == "seconds" else f"{value:,.2f}"


def _print_table(head: Sequence[str], rows: list[list[str]], *, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(head):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
