"""The pictures of an online test, as SVG."""

from collections.abc import Sequence
from datetime import date

import markupsafe
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy import stats

from storyrec.ab.analyze import Measured
from storyrec.ab.effects import Interval
from storyrec.ab.sample_ratio import MAX_P, SampleRatio
from storyrec.drawing import COLORS, INK, SOFT, bare, svg

ADJUSTED, SEQUENCE = COLORS[0], COLORS[1]
CONTROL, TREATMENT = SOFT, COLORS[0]
WIDTH, HEIGHT = 6.2, 3.0  # inches


def plot_effects(metrics: Sequence[Measured]) -> markupsafe.Markup:
    """The lift of every metric with its intervals: plain, adjusted, and valid at all looks."""
    figure, axes = _figure(height=0.7 + 0.75 * len(metrics))
    for place, measured in enumerate(metrics):
        found: tuple[tuple[str, Interval | None, str], ...] = (
            ("as it is", measured.effect.lift if measured.effect else None, SOFT),
            ("with the values before (CUPED)", measured.adjusted.lift if measured.adjusted else None, ADJUSTED),
            ("valid at every look", measured.looks[-1].sequence if measured.looks else None, SEQUENCE),
        )
        for row, (name, lift, color) in enumerate(found):
            if lift is None:
                continue
            reach = [[lift.estimate - lift.low], [lift.high - lift.estimate]]
            label = name if name not in axes.get_legend_handles_labels()[1] else None
            axes.errorbar(
                lift.estimate, place + 0.22 * (row - 1), xerr=reach, fmt="o", ms=4, capsize=3, color=color, label=label
            )
    axes.axvline(0, color=INK, lw=0.8)
    axes.set_yticks(range(len(metrics)), [measured.metric.label for measured in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("treatment against control, 95 % intervals")
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return svg(figure)


def plot_looks(measured: Measured) -> markupsafe.Markup:
    """A metric's lift at the end of each day, within the interval that is valid at all of them together."""
    figure, axes = _figure()
    places = np.arange(len(measured.looks))
    lifts, bands = ([getattr(look, name) for look in measured.looks] for name in ("lift", "sequence"))
    low, high = ([getattr(band, side) for band in bands] for side in ("low", "high"))
    axes.fill_between(places, low, high, color=SEQUENCE, alpha=0.25, lw=0, label="valid at every look")
    estimates = np.array([lift.estimate for lift in lifts])
    reach = [estimates - [lift.low for lift in lifts], [lift.high for lift in lifts] - estimates]
    axes.errorbar(places, estimates, yerr=reach, fmt="o-", ms=3, lw=1, color=ADJUSTED, label="valid at one look alone")
    axes.axhline(0, color=INK, lw=0.8)
    edge = 1.3 * max(np.abs([bands[-1].low, bands[-1].high, *(v for one in lifts for v in (one.low, one.high))]))
    axes.set_ylim(-edge, edge)  # the first bands may be far wider
    _day_ticks(axes, [look.day for look in measured.looks])
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_ylabel("lift so far")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    return svg(figure)


def plot_ratio(ratio: SampleRatio, days: Sequence[date]) -> markupsafe.Markup:
    """The treatment's share of the users so far, day by day, and how far chance takes it."""
    figure, axes = _figure()
    control, treatment = np.array(ratio.met_control), np.array(ratio.met_treatment)
    total = control + treatment
    reach = stats.norm.isf(MAX_P / 2) * np.sqrt(ratio.treatment_share * (1 - ratio.treatment_share) / total)
    places = np.arange(len(days))
    low, high = ratio.treatment_share - reach, ratio.treatment_share + reach
    axes.fill_between(places, low, high, color=SOFT, alpha=0.2, lw=0, label="chance")
    axes.plot(places, treatment / total, "o-", ms=3, color=TREATMENT, label="users in the treatment")
    _day_ticks(axes, days)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
    axes.set_ylabel("share of the users so far")
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def plot_distribution(measured: Measured) -> markupsafe.Markup:
    """How many users of each arm have which value of a metric."""
    figure, axes = _figure()
    assert measured.distribution is not None
    edges = measured.distribution.edges
    for name, counts, color in (
        ("control", measured.distribution.control, CONTROL),
        ("treatment", measured.distribution.treatment, TREATMENT),
    ):
        axes.stairs(np.array(counts) / max(sum(counts), 1), edges, color=color, lw=1.3, label=name)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    if measured.metric.unit == "share":
        axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"{measured.metric.label}{', s' if measured.metric.unit == 'seconds' else ''}")
    axes.set_ylabel("share of the arm's users")
    axes.legend(frameon=False, fontsize=8)
    return svg(figure)


def _figure(*, height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    bare(axes)
    axes.tick_params(labelsize=8, color=INK)
    return figure, axes


def _day_ticks(axes: Axes, days: Sequence[date]) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(
        lambda place, _: f"{days[round(place)]:%b %d}" if 0 <= round(place) < len(days) else ""
    )
