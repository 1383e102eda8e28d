"""What the gate is told of a challenger and the champion: figures, the scores behind them, and how the bundle served.

Nothing is taken on trust: reading refuses what is missing, of another type, or not finite. Suffix: B impressions.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from storyrec.manifest import VERSION
from storyrec.metrics import Booleans, Floats, Integers
from storyrec.slices import SLICES

EVALUATION = "evaluation.json"
SCORES = "scores.npz"


@dataclass(frozen=True)
class Model:
    """What the evaluation says of one model.

    Attributes:
        version: of the bundle.
        num_bytes: of its files.
        metrics: reported figures by name.
    """

    version: str
    num_bytes: float
    metrics: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Scores:
    """The held-out impressions, as both models saw them.

    Attributes:
        user_ids_B: [B] int64.
        clicked_B: [B] bool.
        challenger_B: click probabilities, [B] float64.
        champion_B: likewise; None before there is a champion.
        slices: the impressions of each of SLICES, [B] bool.
    """

    user_ids_B: Integers
    clicked_B: Booleans
    challenger_B: Floats
    champion_B: Floats | None
    slices: Mapping[str, Booleans]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the gate weighs.

    Attributes:
        day: partition key of the run.
        challenger, champion: the models; no champion before the first deployment.
        scores: behind their figures.
        num_candidates, top_k, seed: of the ranking figures.
        onnx_difference: largest |difference| between the packed ranker's probabilities and torch's; None: not known.
        rehearsal: what `rehearse` measured in the model server; or its `error`.
    """

    day: str
    challenger: Model
    champion: Model | None
    scores: Scores
    num_candidates: int
    top_k: int
    seed: int
    onnx_difference: object
    rehearsal: Mapping[str, Any]


def read_evidence(folder: Path) -> Evidence:
    """Read evaluation.json and scores.npz.

    Raises:
        Exception: whatever a damaged file makes its decoder raise; ValueError, KeyError or TypeError for what is
            missing, of a wrong type or contradictory.
    """
    read = json.loads((folder / EVALUATION).read_bytes())
    with np.load(folder / SCORES, allow_pickle=False) as arrays:
        held = {name: arrays[name] for name in arrays.files}
    champion = None if read["champion"] is None else _model(read["champion"], "champion")
    date.fromisoformat(read["day"])
    return Evidence(
        day=read["day"],
        challenger=_model(read["challenger"], "challenger"),
        champion=champion,
        scores=_scores(held, with_champion=champion is not None),
        num_candidates=_count(read["num_candidates"], "num_candidates"),
        top_k=_count(read["top_k"], "top_k"),
        seed=int(number(read["seed"], "seed")),
        onnx_difference=read["challenger"]["onnx_difference"],
        rehearsal=dict(read["rehearsal"]),
    )


def number(value: object, name: str) -> float:
    """A finite number; ValueError for anything else, a bool and None too."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}, which is no number")
    return float(value)


def _count(value: object, name: str) -> int:
    found = number(value, name)
    if found < 1 or found != int(found):
        raise ValueError(f"{name} is {value!r}, which is no count")
    return int(found)


def _model(read: Mapping[str, Any], name: str) -> Model:
    version = read["version"]
    if not (isinstance(version, str) and VERSION.fullmatch(version)):
        raise ValueError(f"the {name}'s version is {version!r}, which names no bundle")
    return Model(version, number(read["num_bytes"], f"the {name}'s num_bytes"), dict(read["metrics"]))


def _scores(held: Mapping[str, np.ndarray], *, with_champion: bool) -> Scores:
    names = {"user_ids", "clicked", "challenger", "slices"} | ({"champion"} if with_champion else set())
    if held.keys() != names:
        raise ValueError(f"{SCORES} has {', '.join(sorted(held))} instead of {', '.join(sorted(names))}")
    user_ids_B, clicked_B, slices_KB = held["user_ids"], held["clicked"], held["slices"]
    challenger_B, champion_B = held["challenger"], held.get("champion")
    shape = (len(user_ids_B),)
    parts = [clicked_B, challenger_B] + ([] if champion_B is None else [champion_B])
    if not len(user_ids_B) or any(part.shape != shape for part in parts) or slices_KB.shape != (len(SLICES), *shape):
        raise ValueError(f"the arrays of {SCORES} do not belong to the same impressions")
    if user_ids_B.dtype != np.int64 or clicked_B.dtype != np.bool_ or slices_KB.dtype != np.bool_:
        raise ValueError(f"the arrays of {SCORES} are of other types")
    for name, scores_B in (("challenger", challenger_B), ("champion", champion_B)):
        if scores_B is not None and not ((scores_B >= 0) & (scores_B <= 1)).all():  # false for NaN too
            raise ValueError(f"scores of the {name} are not finite, or no probabilities")
    return Scores(user_ids_B, clicked_B, challenger_B, champion_B, dict(zip(SLICES, slices_KB, strict=True)))
