"""The model card: what a bundle is, what it was made from, how good it is, for whom, and where its limits are."""

import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from storyrec.gate.verdict import SLICE

MODEL_CARD = "model_card.md"
SETTINGS = {
    "features": ("vocabulary_size", "sequence_length"),
    "model": ("width", "num_heads", "head_widths"),
    "dual": ("contrast", "adversary", "learning_rate", "max_epochs"),
    "aden": ("batch_size", "learning_rate", "max_epochs", "gated"),
}
"""What a reader asks for first; all settings are in the bundle's config.toml."""


def model_card(evaluation: Path, *, verdict: dict[str, Any]) -> str:
    """The card of the bundle that was judged, in Markdown.

    Args:
        evaluation: folder that `evaluate_model` wrote; what it lacks is a dash.
        verdict: as in verdict.json.
    """
    try:
        read = json.loads((evaluation / "evaluation.json").read_bytes())
    except (OSError, ValueError):
        read = {}
    environment = jinja2.Environment(undefined=jinja2.ChainableUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("storyrec") / "templates" / "card.md.j2").read_text("utf-8"))
    rules = {rule["name"]: rule for rule in verdict["rules"]}
    return template.render(
        evaluation=read if isinstance(read, dict) else {},
        verdict=verdict,
        rules=rules,
        slice_rule=SLICE,
        settings=SETTINGS,
        number=_number,
        count=_count,
    )


def _number(value: object, form: str = ".4f") -> str:
    return format(value, form) if isinstance(value, int | float) and math.isfinite(value) else "–"


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else "–"
