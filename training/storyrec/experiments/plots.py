"""The pictures of an experiment's report, as SVG."""

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import markupsafe
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from storyrec.experiments.comparison import Row
from storyrec.experiments.published import Figures
from storyrec.experiments.results import Metrics

COLORS = ("#4878a8", "#d08a2e", "#5b8c5a", "#8b6bab", "#a0636b", "#6b7785")
MARKERS = ("o", "D", "s")
INK, SOFT, ORACLE = "#1d2733", "#66758a", "#b3362b"
CHANCE = 0.5
BAR, WIDTH = 0.3, 7.2  # inches


def plot_auc(
    rows: Sequence[Row], *, references: Mapping[str, Metrics], published: Mapping[str, Figures]
) -> markupsafe.Markup:
    """Per-user AUC of every method as a bar from chance on, in the order of the table.

    Args:
        rows: methods; the black line is one standard deviation over the seeds to either side.
        references: vertical lines.
        published: hollow markers, by dataset and method.
    """
    figure = Figure(figsize=(WIDTH, 1.3 + BAR * len(rows)), layout="constrained")
    axes = figure.subplots()
    colors = _group_colors(rows)
    means = [row.mean("per_user_auc") for row in rows]
    places = range(len(rows))
    axes.barh(
        places,
        [mean - CHANCE for mean in means],
        left=CHANCE,
        height=0.66,
        color=[colors[row.group] for row in rows],
        xerr=[_deviation(row) for row in rows],
        error_kw={"ecolor": INK, "elinewidth": 1.3, "capsize": 2.5},
    )
    handles = [Line2D([], [], color=color, linewidth=6, label=group) for group, color in colors.items()]
    for (dataset, figures), marker in zip(published.items(), MARKERS, strict=False):
        known = [(place, figures[row.method]) for place, row in zip(places, rows, strict=True) if row.method in figures]
        axes.plot([figure["per_user_auc"] for _, figure in known], [place for place, _ in known], **_hollow(marker))
        handles.append(Line2D([], [], label=f"published, {dataset}", **_hollow(marker)))
    for (name, metrics), style in zip(references.items(), ("-", "--", ":", "-."), strict=False):
        color = ORACLE if name == "oracle" else SOFT
        axes.axvline(metrics["per_user_auc"], color=color, linestyle=style, linewidth=1.4, zorder=0.5)
        handles.append(Line2D([], [], color=color, linestyle=style, linewidth=1.4, label=name))
    axes.axvline(CHANCE, color=INK, linewidth=0.8)
    axes.set_yticks(list(places), [row.method for row in rows])
    axes.invert_yaxis()
    axes.margins(y=0.02)
    axes.set_xlabel("per-user AUC, from chance (.5) on; the line is ± 1 standard deviation over the seeds")
    figure.legend(handles=handles, loc="outside upper left", ncols=3, frameon=False, fontsize=9)
    _bare(axes)
    return _svg(figure)


def plot_against_published(rows: Sequence[Row], *, published: Mapping[str, Figures]) -> markupsafe.Markup:
    """Ours against the published per-user AUC, one panel a dataset.

    Args:
        rows: methods; those that were not published are left out.
        published: by dataset and method.
    """
    figure = Figure(figsize=(WIDTH, 3.9), layout="constrained")
    panels = figure.subplots(1, len(published), sharey=True, squeeze=False)[0]
    colors = _group_colors(rows)
    for axes, (dataset, figures) in zip(panels, published.items(), strict=True):
        for row in rows:
            if row.method not in figures:
                continue
            x, y = figures[row.method]["per_user_auc"], row.mean("per_user_auc")
            axes.errorbar(x, y, yerr=_deviation(row), color=colors[row.group], marker="o", capsize=2.5, markersize=5)
            axes.annotate(row.method, (x, y), xytext=(6, -3), textcoords="offset points", fontsize=7.5, color=INK)
        axes.margins(x=0.16, y=0.08)
        axes.set_xlabel(f"published per-user AUC, {dataset}")
        _bare(axes)
    panels[0].set_ylabel("per-user AUC here")
    return _svg(figure)


def _group_colors(rows: Sequence[Row]) -> dict[str, str]:
    groups = list(dict.fromkeys(row.group for row in rows))
    return {group: COLORS[number % len(COLORS)] for number, group in enumerate(groups)}


def _deviation(row: Row) -> float:
    """What an error bar shows; nothing with one seed."""
    deviation = row.deviation("per_user_auc")
    return deviation if math.isfinite(deviation) else 0.0


def _hollow(marker: str) -> dict[str, object]:
    return {
        "linestyle": "none",
        "marker": marker,
        "markerfacecolor": "white",
        "markeredgecolor": INK,
        "markersize": 5.5,
        "alpha": 0.9,
    }


def _bare(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure) -> markupsafe.Markup:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "storyrec"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return markupsafe.Markup(buffer.getvalue()[buffer.getvalue().index("<svg") :])
