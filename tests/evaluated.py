"""An evaluation folder as `evaluate_model` writes it, over drawn impressions whose click probabilities are known."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from storyrec.metrics import summarize
from storyrec.slices import SLICES

CHALLENGER, CHAMPION = "c" * 16, "a" * 16
NUM_USERS, NUM_SHOWN = 500, 16
REHEARSAL = {
    "error": None,
    "version": CHALLENGER,
    "num_requests": 64,
    "num_with_clicks": 60,
    "largest_difference": 1e-7,
    "num_candidates": 500,
    "latency_ms_median": 4.0,
    "latency_ms_p95": 9.0,
}


@dataclass
class Evaluated:
    """What two models say of the same impressions; change it before it is written.

    Attributes:
        user_ids, clicked, truth: [B].
        challenger, champion: probabilities, [B]; no champion: None.
        slices: [K, B] bool, in the order of SLICES; at first the first slice has one user in two, the others nobody.
    """

    user_ids: np.ndarray
    clicked: np.ndarray
    truth: np.ndarray
    challenger: np.ndarray
    champion: np.ndarray | None
    slices: np.ndarray
    versions: tuple[str, str] = (CHALLENGER, CHAMPION)
    day: str = "2026-03-09"
    changes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, *, seed: int = 0, num_users: int = NUM_USERS) -> "Evaluated":
        """Both models know the truth."""
        generator = np.random.default_rng(seed)
        user_ids = np.repeat(np.arange(1, num_users + 1), NUM_SHOWN)
        truth = 1 / (1 + np.exp(1.2 - 1.2 * generator.normal(size=len(user_ids))))
        slices = np.zeros((len(SLICES), len(user_ids)), np.bool_)
        slices[0] = user_ids % 2 == 0
        clicked = generator.random(len(user_ids)) < truth
        return cls(user_ids, clicked, truth, truth.copy(), truth.copy(), slices)

    def spoiled(self, share: float, *, where: np.ndarray | None = None, seed: int = 1) -> np.ndarray:
        """The truth, but for a share of the impressions (of a part of them) handed out anew."""
        generator = np.random.default_rng(seed)
        drawn = generator.random(len(self.truth)) < share
        rows = np.flatnonzero(drawn if where is None else drawn & where)
        scores = self.truth.copy()
        scores[rows] = scores[generator.permutation(rows)]
        return scores

    def model(self, scores: np.ndarray, version: str) -> dict[str, Any]:
        figures = summarize(self.user_ids, self.clicked, scores, num_candidates=13, top_k=5, seed=7)
        return {"version": version, "num_bytes": 1_000_000, "metrics": figures, "onnx_difference": 2e-7}

    def content(self) -> dict[str, Any]:
        """What evaluation.json says of them."""
        challenger, champion = self.versions
        return {
            "day": self.day,
            "num_candidates": 13,
            "top_k": 5,
            "seed": 7,
            "challenger": self.model(self.challenger, challenger),
            "champion": None if self.champion is None else self.model(self.champion, champion),
            "rehearsal": REHEARSAL | {"version": challenger},
        } | self.changes

    def arrays(self) -> dict[str, np.ndarray]:
        """What scores.npz holds."""
        champion = {} if self.champion is None else {"champion": self.champion}
        return {
            "user_ids": self.user_ids,
            "clicked": self.clicked,
            "challenger": self.challenger,
            "slices": self.slices,
            **champion,
        }

    def write(self, folder: Path) -> Path:
        """Write the folder, overwriting what is there."""
        return write_evaluation(folder, content=self.content(), arrays=self.arrays())


def write_evaluation(folder: Path, *, content: object, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write any evaluation, be it ever so strange."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(content))
    (folder / "report.html").write_text("<p>report</p>")
    np.savez(folder / "scores.npz", **arrays)  # type: ignore[arg-type]
    return folder
