"""The pictures of an analysis, as SVG."""

from collections.abc import Sequence
from datetime import date
from itertools import pairwise
from typing import Any

import markupsafe
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from storyrec.drawing import COLORS, INK, SOFT, bare, svg

STORY, PRODUCT = COLORS[0], COLORS[1]
SIZE = (6.2, 3.0)  # inches
BAR = 0.4
MIN_SHOWN = 30
MAX_MARKERS = 60
Rates = Sequence[dict[str, Any]]


def plot_sources(sources: Rates) -> markupsafe.Markup:
    """Fig. 1: how much of all that is shown a source makes up, as bars, and its click rate, as dots."""
    figure, axes = _figure()
    total = sum(source["shown"] for source in sources)
    names = [source["source"] for source in sources]
    axes.bar(names, [source["shown"] / total for source in sources], color=STORY, width=0.6)
    right = axes.twinx()
    rates = [source["clicked"] / source["shown"] for source in sources]
    right.plot(names, rates, color=PRODUCT, marker="o", linestyle="none")
    right.set_ylim(0, 1.25 * max(rates) or 1)
    axes.set_ylabel("exposure (bars)", color=STORY)
    right.set_ylabel("click rate (dots)", color=PRODUCT)
    for one in (axes, right):
        one.yaxis.set_major_locator(MaxNLocator(nbins=8, steps=[1, 2, 5, 10]))  # whole percents
        one.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.spines["top"].set_visible(False)
    right.spines["top"].set_visible(False)
    return svg(figure)


def plot_gaps(gaps: dict[str, Any]) -> markupsafe.Markup:
    """Fig. 3: clicks in the sequences by the time from the click to the impression, each domain by itself."""
    figure, axes = _figure()
    edges = gaps["edges_hours"]
    labels = [f"{_span(low)}–{_span(high)}" for low, high in pairwise(edges)]
    _paired(axes, [*labels, f"{_span(edges[-1])} on"], gaps["story"], gaps["product"])
    axes.tick_params(axis="x", rotation=45)
    axes.set_xlabel("time before the impression")
    axes.set_ylabel("share of the sequences' clicks")
    return svg(figure)


def plot_categories(categories: dict[str, Any]) -> markupsafe.Markup:
    """Fig. 4: the categories that are most popular among stories, in both domains."""
    figure, axes = _figure()
    found = categories["categories"]
    _paired(
        axes,
        [str(category["category_id"]) for category in found],
        [category["story_clicks"] for category in found],
        [category["product_clicks"] for category in found],
        totals=(categories["num_story_clicks"], categories["num_product_clicks"]),
    )
    axes.set_xlabel("category")
    axes.set_ylabel("share of the domain's clicks")
    return svg(figure)


def plot_similarity(table: dict[str, Any]) -> markupsafe.Markup:
    """Table II as bars, the published data sets beside."""
    figure, axes = _figure()
    edges = table["edges"]
    places = np.arange(len(edges) - 1)
    for number, (name, color) in enumerate((("here", STORY), ("SRD-1", SOFT), ("SRD-2", "#b9c2cd"))):
        counts = np.array(table[name])
        axes.bar(places + 0.27 * (number - 1), counts / max(counts.sum(), 1), width=0.25, color=color, label=name)
    axes.set_xticks(places, [f"{low}–{high}" for low, high in pairwise(edges)])
    axes.set_xlabel("title similarity")
    axes.set_ylabel("share of the pairs")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False)
    return svg(figure)


def plot_rates(lines: dict[str, Rates], *, xlabel: str) -> markupsafe.Markup | None:
    """Click rates along hours, days (dates) or lengths, a line each in a band of one standard error to either side.

    Rates of fewer than MIN_SHOWN impressions are left out, for they say nothing and stretch the axis; None if all are.
    """
    drawn = {name: [rate for rate in rates if rate["shown"] >= MIN_SHOWN] for name, rates in lines.items()}
    known = [rate["value"] for rates in drawn.values() for rate in rates]
    if not known:
        return None
    figure, axes = _figure()
    for (name, rates), color in zip(drawn.items(), COLORS, strict=False):
        values = [rate["value"] for rate in rates]
        means = np.array([rate["click_rate"] for rate in rates], float)
        errors = np.sqrt(means * (1 - means) / np.array([rate["shown"] for rate in rates], float))
        axes.plot(values, means, color=color, marker="o" if len(values) <= MAX_MARKERS else None, ms=3, label=name)
        axes.fill_between(values, means - errors, means + errors, color=color, alpha=0.2, linewidth=0)
    axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel(xlabel)
    axes.set_ylabel("click rate")
    if isinstance(known[0], date):
        axes.tick_params(axis="x", rotation=45)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=12, integer=True))
    if len(lines) > 1:
        axes.legend(frameon=False)
    return svg(figure)


def plot_title_lengths(titles: dict[str, Any]) -> markupsafe.Markup:
    """Titles by their number of words, each domain by itself."""
    figure, axes = _figure()
    for name, color in (("story", STORY), ("product", PRODUCT)):
        lengths = np.array(titles[name]["lengths"])
        axes.step(range(len(lengths)), lengths / max(lengths.sum(), 1), where="mid", color=color, label=name)
    axes.set_xlabel("words in a title")
    axes.set_ylabel("share of the titles")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False)
    return svg(figure)


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    bare(axes)
    axes.tick_params(labelsize=8, color=INK)
    return figure, axes


def _paired(
    axes: Axes,
    labels: Sequence[str],
    story: Sequence[int],
    product: Sequence[int],
    *,
    totals: tuple[int, int] | None = None,
) -> None:
    """Bars of both domains side by side, each as a share of its domain's total."""
    places = np.arange(len(labels))
    sums = totals or (sum(story), sum(product))
    for name, counts, total, offset, color in (
        ("story", story, sums[0], -BAR / 2, STORY),
        ("product", product, sums[1], BAR / 2, PRODUCT),
    ):
        axes.bar(places + offset, np.array(counts) / max(total, 1), width=BAR, color=color, label=name)
    axes.set_xticks(places, labels)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False)


def _span(hours: int) -> str:
    return f"{hours} h" if hours < 24 else f"{hours // 24} d"
