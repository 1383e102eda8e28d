"""The pictures of an experiment's report, as SVG."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import markupsafe
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from storyrec.drawing import COLORS, INK, SOFT, bare, svg
from storyrec.experiments.comparison import Row
from storyrec.experiments.published import Figures
from storyrec.experiments.results import Metrics
from storyrec.experiments.table import label

MARKERS = ("o", "D", "s")
ORACLE = "#b3362b"
CHANCE = 0.5
BAR, WIDTH = 0.28, 6.2  # inches
LABEL_GAP = 0.042  # of the height of a plot


def plot_bars(
    rows: Sequence[Row], *, metric: str, references: Mapping[str, Metrics], published: Mapping[str, Figures]
) -> markupsafe.Markup:
    """A figure of every method as a bar, in the order of the table; per-user AUC from chance on.

    Args:
        rows: methods; the black line is one standard deviation over the seeds to either side.
        metric: which figure.
        references: vertical lines, where they have the figure.
        published: hollow markers, by dataset and method.
    """
    start = CHANCE if metric == "per_user_auc" else 0.0
    has_spread = any(len(row.runs) > 1 for row in rows)
    figure = Figure(figsize=(WIDTH, 1.3 + BAR * len(rows)), layout="constrained")
    axes = figure.subplots()
    colors = _group_colors(rows)
    means = [row.mean(metric) for row in rows]
    places = range(len(rows))
    axes.barh(
        places,
        [mean - start for mean in means],
        left=start,
        height=0.66,
        color=[colors[row.group] for row in rows],
        xerr=[_deviation(row, metric) for row in rows] if has_spread else None,
        error_kw={"ecolor": INK, "elinewidth": 1.3, "capsize": 2.5},
    )
    handles = [Line2D([], [], color=color, linewidth=6, label=group) for group, color in colors.items()]
    for (dataset, figures), marker in zip(published.items(), MARKERS, strict=False):
        known = [(place, figures[row.method]) for place, row in zip(places, rows, strict=True) if row.method in figures]
        axes.plot([figure[metric] for _, figure in known], [place for place, _ in known], **_hollow(marker))
        handles.append(Line2D([], [], label=f"published, {dataset}", **_hollow(marker)))
    lines = {name: metrics[metric] for name, metrics in references.items() if metric in metrics}
    for (name, value), style in zip(lines.items(), ("-", "--", ":", "-."), strict=False):
        color = ORACLE if name == "oracle" else SOFT
        handles.append(axes.axvline(value, color=color, linestyle=style, linewidth=1.4, zorder=0.5, label=name))
    axes.axvline(start, color=INK, linewidth=0.8)
    axes.set_yticks(list(places), [row.method for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlabel(
        label(metric) + (", from chance (.5) on" if start else "") + (", ± 1 standard deviation" if has_spread else "")
    )
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    bare(axes)
    return svg(figure)


def plot_against_published(rows: Sequence[Row], *, published: Mapping[str, Figures]) -> markupsafe.Markup:
    """Our per-user AUC against the published ones, which a line joins for each method.

    Args:
        rows: methods; those that were not published are left out.
        published: by dataset and method.
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    colors = _group_colors(rows)
    known = [
        row
        for row in rows
        if math.isfinite(row.mean("per_user_auc")) and all(row.method in figures for figures in published.values())
    ]
    for row in known:
        theirs = [figures[row.method]["per_user_auc"] for figures in published.values()]
        ours = row.mean("per_user_auc")
        axes.plot(theirs, [ours] * len(theirs), color=colors[row.group], linewidth=1.2)
        for x, marker in zip(theirs, MARKERS, strict=False):
            axes.errorbar(
                x, ours, yerr=_deviation(row, "per_user_auc"), color=colors[row.group], marker=marker, markersize=5
            )
    axes.margins(x=0.04, y=0.06)
    _label_right(axes, {row.method: (row.mean("per_user_auc"), colors[row.group]) for row in known})
    axes.legend(
        handles=[
            Line2D([], [], label=dataset, color=SOFT, linestyle="none", marker=marker)
            for dataset, marker in zip(published, MARKERS, strict=False)
        ],
        loc="upper left",
        frameon=False,
    )
    axes.set_xlabel("published per-user AUC")
    axes.set_ylabel("per-user AUC here")
    bare(axes)
    return svg(figure)


def _label_right(axes: Axes, labels: Mapping[str, tuple[float, str]]) -> None:
    """Name heights (with a color each) at the right edge, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)
    place = -1.0
    for text, (height, color) in sorted(labels.items(), key=lambda label: label[1][0]):
        at = (height - low) / (high - low)
        place = max(at, place + LABEL_GAP)
        axes.plot([1.0, 1.03], [at, place], transform=axes.transAxes, color=color, linewidth=0.8, clip_on=False)
        axes.text(1.04, place, text, transform=axes.transAxes, fontsize=8.5, color=color, va="center")


def _group_colors(rows: Sequence[Row]) -> dict[str, str]:
    groups = list(dict.fromkeys(row.group for row in rows))
    return {group: COLORS[number % len(COLORS)] for number, group in enumerate(groups)}


def _deviation(row: Row, metric: str) -> float:
    """What an error bar shows; nothing with one seed."""
    deviation = row.deviation(metric)
    return deviation if math.isfinite(deviation) else 0.0


def _hollow(marker: str) -> dict[str, Any]:
    return {
        "linestyle": "none",
        "marker": marker,
        "markerfacecolor": "white",
        "markeredgecolor": INK,
        "markersize": 5.5,
        "alpha": 0.9,
    }
