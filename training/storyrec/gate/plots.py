"""The picture of a verdict: how much better or worse the challenger is, for whom, and how sure that is."""

import math
from typing import Any

import markupsafe
from matplotlib.figure import Figure

from storyrec.drawing import COLORS, SOFT, bare, svg
from storyrec.gate.verdict import SLICE

BAD = "#b3362b"


def plot_gains(verdict: dict[str, Any]) -> markupsafe.Markup | None:
    """Differences in per-user AUC with their bounds, of everybody and of each slice; None without a champion.

    Args:
        verdict: as in verdict.json.
    """
    rows = [
        (rule["name"].removeprefix(SLICE) if rule["name"].startswith(SLICE) else "everybody", rule)
        for rule in verdict["rules"]
        if rule["name"] == "per_user_auc_against_champion" or rule["name"].startswith(SLICE)
    ]
    rows = [(name, rule) for name, rule in rows if isinstance(rule["figures"].get("lower"), float)]
    if not rows:
        return None
    figure = Figure(figsize=(8.4, 0.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, rule) in enumerate(rows):
        figures, color = rule["figures"], COLORS[0] if rule["passed"] else BAD
        axes.plot([figures["lower"], figures["upper"]], [place, place], color=color, linewidth=2)
        axes.plot(figures["estimate"], place, marker="o", color=color)
        axes.plot(rule["threshold"], place, marker="|", markersize=11, color=BAD)
    axes.axvline(0, color=SOFT, linewidth=0.8)
    reach = max(
        abs(value)
        for _, rule in rows
        for value in (rule["figures"]["lower"], rule["figures"]["upper"], rule["threshold"])
        if math.isfinite(value)
    )
    axes.set_xlim(-1.1 * reach, 1.1 * reach)
    axes.set_yticks(range(len(rows)), [f"{name} ({rule['figures']['num_users']:,} users)" for name, rule in rows])
    axes.invert_yaxis()
    axes.set_xlabel("challenger − champion, per-user AUC, with its bounds; red stroke: the margin")
    bare(axes)
    return svg(figure)
