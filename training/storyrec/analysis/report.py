"""An analysis as one HTML page, as Markdown, as JSON and on the terminal, beside the published figures."""

import json
from collections.abc import Iterator
from datetime import date
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich.console import Console
from rich.table import Table

from storyrec.analysis.analyze import Document
from storyrec.analysis.plots import (
    MIN_SHOWN,
    plot_categories,
    plot_gaps,
    plot_rates,
    plot_similarity,
    plot_sources,
    plot_title_lengths,
)
from storyrec.storage import write_files

JSON, PAGE, MARKDOWN = "analysis.json", "analysis.html", "analysis.md"
COLUMNS = ("here", "SRD-1", "SRD-2")
SPLITS = ("training", "test")
NONE = "–"
TABLE_1 = {
    "#Instances": "instances",
    "#Users": "users",
    "#Sequences": "sequences",
    "#Stories": "stories",
    "#Products": "products",
}
TABLE_1_RATIOS = {
    "instances a user": ("instances", "users"),
    "instances a sequence": ("instances", "sequences"),
    "stories a user": ("stories", "users"),
    "products a user": ("products", "users"),
}
TABLE_3 = {
    "Avg. length": ("story_length", "product_length"),
    "Avg. #category": ("story_categories", "product_categories"),
    "Avg. #overlap": ("overlap",),
}
WITHIN_HOURS = (1, 24, 72, 168)

Grid = list[list[str]]
"""The cells of a table, a heading in front of each line."""


def write_analysis(document: Document, out: Path) -> None:
    """Write analysis.json, analysis.md and analysis.html into a folder, all of them or none."""
    contents = {
        MARKDOWN: markdown_analysis(document),
        JSON: json.dumps(document, indent=1),
        PAGE: render_analysis(document),
    }
    write_files({out / name: content.encode() for name, content in contents.items()})


def render_analysis(document: Document) -> str:
    """One self-contained HTML page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = "{:,}".format
    template = environment.from_string((files("storyrec") / "templates" / "analysis.html.j2").read_text("utf-8"))
    rates = document["click_rates"]
    lengths = {"story sequence": rates["story_length"], "product sequence": rates["product_length"]}
    days = [{**rate, "value": date.fromisoformat(rate["value"])} for rate in rates["day"]]
    return template.render(
        data=document["data"],
        columns=COLUMNS,
        splits=SPLITS,
        table_1=_table_1(document),
        table_2=_table_2(document),
        table_3=_table_3(document),
        sources=_sources(document),
        gaps=_gaps(document),
        min_shown=MIN_SHOWN,
        published_gaps=document["figure_3"]["published"],
        categories=document["figure_4"],
        facts={name: _facts(document, name) for name in ("cold_start", "duplicates", "coverage")},
        titles=_titles(document),
        plots={
            "sources": plot_sources(document["figure_1"]) if document["figure_1"] else None,
            "gaps": plot_gaps(document["figure_3"]),
            "categories": plot_categories(document["figure_4"]) if document["figure_4"]["categories"] else None,
            "similarity": plot_similarity(document["table_2"]) if sum(document["table_2"]["here"]) else None,
            "hours": plot_rates({"all days": rates["hour"] or ()}, xlabel="hour of the day, UTC"),
            "days": plot_rates({"all hours": days}, xlabel="day"),
            "lengths": plot_rates(lengths, xlabel="clicks in the sequence, test day"),
            "titles": plot_title_lengths(document["titles"]),
        },
    )


def print_analysis(document: Document, *, console: Console) -> None:
    """The tables and figures, short."""
    console.print(_about(document))
    for title, head, rows in _grids(document):
        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for number, name in enumerate(head):
            table.add_column(name, justify="right" if number else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        console.print()


def markdown_analysis(document: Document) -> str:
    """The tables and figures as Markdown, for documents and pull requests."""
    lines = [_about(document)]
    for title, head, rows in _grids(document):
        cells = [[title, *head[1:]], ["---", *["---:"] * (len(head) - 1)], *rows]
        lines += ["", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines) + "\n"


def _about(document: Document) -> str:
    data = document["data"]
    return (
        f"{data['path']}: {data['first_day']} to {data['test_day']}; training day {data['training_day']}, "
        f"test day {data['test_day']}; sequences of {data['sequence_length']} clicks from {data['history_days']} days"
    )


def _grids(document: Document) -> Iterator[tuple[str, list[str], Grid]]:
    """Every table: its title, its head with an empty first cell, its rows."""
    splits = [f"{column}, {split}" for column in COLUMNS for split in SPLITS]
    domains = [f"{column}, {domain}" for column in COLUMNS for domain in ("story", "product")]
    yield "Table I", ["", *splits], _table_1(document)
    yield "Table II, title similarity", ["", *COLUMNS], _table_2(document)
    yield "Table III, sequences", ["", *domains], _table_3(document)
    yield "Fig. 1, sources", ["", "exposure", "click rate"], _sources(document)
    yield "Fig. 3, clicks in sequences", ["", "story", "product"], _gaps(document)
    yield "Fig. 4, categories", ["", "story", "product"], _categories(document)
    yield "Click rate by hour, UTC", ["", "impressions", "click rate"], _hours(document)
    lengths = [f"{domain}, {name}" for domain in ("story", "product") for name in ("impressions", "click rate")]
    yield "Click rate by sequence length", ["", *lengths], _lengths(document)
    yield "Titles", ["", "story", "product"], _titles(document)
    for title, name in (("Cold start", "cold_start"), ("Duplicates", "duplicates"), ("Coverage", "coverage")):
        rows = _facts(document, name)
        yield title, ["", "count", "share", "click rate"][: len(rows[0])], rows


def _table_1(document: Document) -> Grid:
    columns = [document["table_1"][column][split] for column in COLUMNS for split in SPLITS]
    counts = [[name, *(f"{column[key]:,}" for column in columns)] for name, key in TABLE_1.items()]
    return counts + [
        [name, *(_number(_ratio(column[over], column[under])) for column in columns)]
        for name, (over, under) in TABLE_1_RATIOS.items()
    ]


def _table_2(document: Document) -> Grid:
    table = document["table_2"]
    bins = [*pairwise(table["edges"])]
    return [
        [
            f"{low}–{high}",
            *(f"{table[column][place]:,}  {_percent(table[column][place], sum(table[column]))}" for column in COLUMNS),
        ]
        for place, (low, high) in enumerate(bins)
    ]


def _table_3(document: Document) -> Grid:
    rows = []
    for name, keys in TABLE_3.items():
        cells = [_number(document["table_3"][column][key]) for column in COLUMNS for key in keys]
        rows.append([name, *cells] if len(keys) > 1 else [name, *(text for cell in cells for text in (cell, ""))])
    return rows


def _sources(document: Document) -> Grid:
    found = document["figure_1"]
    total = sum(source["shown"] for source in found)
    return [
        [source["source"], _percent(source["shown"], total), _percent(source["clicked"], source["shown"])]
        for source in found
    ]


def _gaps(document: Document) -> Grid:
    gaps = document["figure_3"]
    return [
        [
            f"within {hours} h" if hours < 24 else f"within {hours // 24} d",
            *(
                _percent(
                    sum(n for edge, n in zip(gaps["edges_hours"], gaps[domain], strict=True) if edge < hours),
                    sum(gaps[domain]),
                )
                for domain in ("story", "product")
            ),
        ]
        for hours in WITHIN_HOURS
    ]


def _categories(document: Document) -> Grid:
    figure = document["figure_4"]
    return [
        [
            str(category["category_id"]),
            _percent(category["story_clicks"], figure["num_story_clicks"]),
            _percent(category["product_clicks"], figure["num_product_clicks"]),
        ]
        for category in figure["categories"]
    ]


def _hours(document: Document) -> Grid:
    return [[str(rate["value"]), *_rate_cells(rate)] for rate in document["click_rates"]["hour"] or ()]


def _lengths(document: Document) -> Grid:
    """By the number of clicks in the sequence, on the test day."""
    rates = document["click_rates"]
    both = zip(rates["story_length"], rates["product_length"], strict=True)
    return [[str(story["value"]), *_rate_cells(story), *_rate_cells(product)] for story, product in both]


def _rate_cells(rate: dict[str, Any]) -> tuple[str, str]:
    return f"{rate['shown']:,}", _share(rate["click_rate"])


def _titles(document: Document) -> Grid:
    titles = document["titles"]
    both = [titles["story"], titles["product"]]
    return [
        ["words in a title, mean", *(_number(one["mean_length"]) for one in both)],
        ["words in a title, 5, 50 and 95 %", *(_quantiles(one["lengths"]) for one in both)],
        ["new titles on the last day", *(f"{one['num_new']:,}" for one in both)],
        ["of their words unknown", *(_percent(one["num_unknown_words"], one["num_new_words"]) for one in both)],
    ]


def _quantiles(counts: list[int]) -> str:
    """How many words the shortest 5, 50 and 95 % have at most, of the number of titles of 0, 1, ... words."""
    until = np.cumsum(counts)
    if not len(until) or not until[-1]:
        return NONE
    return " / ".join(str(np.searchsorted(until, share * until[-1])) for share in (0.05, 0.5, 0.95))


def _facts(document: Document, name: str) -> Grid:
    return [[*_fact_cells(fact)] for fact in _with_rates(document[name])]


def _with_rates(facts: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Facts of one table have the same cells."""
    have_rates = any("click_rate" in fact for fact in facts)
    for fact in facts:
        yield {"click_rate": None, **fact} if have_rates else fact


def _fact_cells(fact: dict[str, Any]) -> Iterator[str]:
    yield fact["what"]
    yield f"{fact['count']:,}"
    yield _share(fact["share"])
    if "click_rate" in fact:
        yield _share(fact["click_rate"])


def _ratio(count: int, of: int) -> float | None:
    return count / of if of else None


def _percent(count: int, of: int) -> str:
    return _share(_ratio(count, of))


def _share(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.2f} %"


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"
