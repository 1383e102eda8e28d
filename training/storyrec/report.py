"""The HTML report of a run: one self-contained page that a product manager understands."""

import json
import math
from base64 import b64encode
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np
from matplotlib.figure import Figure

from storyrec.drawing import svg
from storyrec.gate.plots import plot_gains
from storyrec.gate.verdict import SLICE
from storyrec.metrics import per_user_auc

Document = dict[str, Any]
"""A parsed JSON object."""

ATTENTION = "attention.png"
FIGURES = (
    ("per_user_auc", "per-user AUC"),
    ("impression_weighted_auc", "impression-weighted AUC"),
    ("global_auc", "global AUC"),
    ("hr_at_", "HR@"),
    ("ndcg_at_", "NDCG@"),
    ("log_loss", "log loss"),
    ("click_rate", "click rate"),
    ("mean_score", "mean score"),
)
BESIDE_AUC = {
    "ndcg_against_champion": "putting the clicked story near the top (NDCG)",
    "log_loss_against_champion": "the click probabilities it gives (log loss)",
    "calibration_against_champion": "how these meet the click rates (calibration)",
}


def render_report(
    folder: Path,
    *,
    verdict: Document | None = None,
    validation: Document | None = None,
) -> str:
    """The page for one day's evaluation.

    Args:
        folder: holds evaluation.json and scores.npz, and attention.png where a click could be explained.
        verdict: the gate's verdict; None before it is given.
        validation: the day's validation report; None where it is not at hand.
    """
    evaluation = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    with np.load(folder / "scores.npz") as scores:
        differences_U, is_difference = _per_user(scores)
    columns = [
        {
            "name": name,
            "metrics": evaluation[name]["metrics"],
            "unknown_words": {items: _share(evaluation[name], items) for items in ("stories", "products")},
        }
        for name in ("challenger", "champion", "popularity", "oracle")
        if evaluation.get(name)
    ]
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("storyrec") / "templates" / "report.html.j2").read_text("utf-8"))
    training = evaluation["challenger"]["training"]
    rules = {rule["name"]: rule for rule in verdict["rules"]} if verdict else {}
    return template.render(
        evaluation=evaluation,
        verdict=verdict,
        rules=rules,
        beyond_chance=_beyond_chance(rules),
        slice_rule=SLICE,
        validation=validation,
        columns=columns,
        figures=_named_figures(evaluation["challenger"]["metrics"]),
        num_candidates=evaluation["num_candidates"],
        number=_number,
        attention=_embedded(folder / ATTENTION),
        plots={
            "difference": _plot_users(differences_U, is_difference=is_difference),
            "calibration": _plot_calibration(evaluation["challenger"]["calibration"]),
            "dual": _plot_dual(training["dual"]["curves"]),
            "aden": _plot_aden(training["aden"]["curves"]),
            "gains": plot_gains(verdict) if verdict else None,
        },
    )


def _beyond_chance(rules: Mapping[str, Document]) -> dict[str, list[str]]:
    """What else the challenger is better or worse at than the champion, of what chance does not explain."""
    bounds = {name: rules[name]["figures"] for name in BESIDE_AUC if rules.get(name, {}).get("figures")}
    return {
        "better": [BESIDE_AUC[name] for name, found in bounds.items() if found["lower"] > 0],
        "worse": [BESIDE_AUC[name] for name, found in bounds.items() if found["upper"] < 0],
    }


def _named_figures(metrics: Document) -> list[tuple[str, str]]:
    """The figures in reading order, with the K of HR@K and NDCG@K filled in."""
    named = []
    for prefix, label in FIGURES:
        for name in metrics:
            if name == prefix or (prefix.endswith("_at_") and name.startswith(prefix)):
                named.append((name, label + name.removeprefix(prefix) if prefix.endswith("_at_") else label))
    return named


def _embedded(picture: Path) -> str | None:
    """A PNG as the address that holds it."""
    return f"data:image/png;base64,{b64encode(picture.read_bytes()).decode()}" if picture.is_file() else None


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def _share(model: Document, items: str) -> str:
    """Unknown words among those of the new titles, in percent; a dash where there are none to count."""
    counts = model.get("unknown_words", {}).get(items)
    return f"{counts['num_unknown'] / counts['num_words']:.1%}" if counts and counts["num_words"] else "–"


def _per_user(scores: Mapping[str, np.ndarray]) -> tuple[np.ndarray, bool]:
    """Challenger minus champion in per-user AUC, [U]; without a champion the challenger's own, and False."""
    new_U, *old_U = (
        per_user_auc(scores["user_ids"], scores["clicked"], scores[name]).values_U
        for name in ("challenger", "champion")
        if name in scores
    )
    return (new_U - old_U[0], True) if old_U else (new_U, False)


def _plot_users(values_U: np.ndarray, *, is_difference: bool) -> markupsafe.Markup:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    mean = float(values_U.mean()) if values_U.size else math.nan
    if is_difference:
        # a few users with few impressions differ more
        width = max(float(np.quantile(np.abs(values_U), 0.99)), 1e-3) if values_U.size else 1.0
        axes.hist(values_U.clip(-width, width), bins=41, range=(-width, width), color="#4878a8")
        axes.axvline(mean, color="#b3362b", label=f"mean {mean:+.4f}")
        axes.set_xlabel("challenger − champion, per-user AUC")
    else:
        axes.hist(values_U, bins=40, range=(0, 1), color="#4878a8")
        axes.axvline(mean, color="#b3362b", label="mean")
        axes.set_xlabel("per-user AUC")
    axes.legend(frameon=False)
    axes.set_ylabel("users")
    return svg(figure)


def _plot_calibration(bins: list[Document]) -> markupsafe.Markup:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    scores, rates = [b["mean_score"] for b in bins], [b["click_rate"] for b in bins]
    limit = max([*scores, *rates, 0.05]) * 1.05
    axes.plot([0, limit], [0, limit], color="#bbc4cf", linewidth=1)
    axes.plot(scores, rates, marker="o", color="#4878a8")
    axes.set_xlabel("predicted click probability")
    axes.set_ylabel("click rate")
    return svg(figure)


def _plot_dual(curves: list[Document]) -> markupsafe.Markup:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    epochs = [point["epoch"] for point in curves]
    for name, label, color in (("title_loss", "title loss", "#4878a8"), ("cover_loss", "cover loss", "#d08a2e")):
        axes.plot(epochs, [point["validation"].get(name, np.nan) for point in curves], label=label, color=color)
    axes.set_xlabel("DUAL epoch")
    axes.set_ylabel("validation loss")
    axes.legend(frameon=False)
    return svg(figure)


def _plot_aden(curves: list[Document]) -> markupsafe.Markup:
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    epochs = [point["epoch"] for point in curves]
    axes.plot(epochs, [point["validation"]["per_user_auc"] for point in curves], marker="o", color="#4878a8")
    axes.set_xlabel("ADEN epoch")
    axes.set_ylabel("validation per-user AUC")
    return svg(figure)
