"""What was answered, or could not be, with all that the log and the counts take from it.

Suffixes: B candidates.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from storyrec.serving.ranking import History
from storyrec.serving.split import Role
from storyrec.serving.store import Looked

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

Retrieval = Literal["neighbours", "no_clicks"]
"""Candidates are near what the user clicked; or, without clicks that the model knows, what it finds best for nobody."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What was answered, in the order of the candidates.

    Attributes:
        request_id, user_id, route: as asked.
        answered_us: when, epoch microseconds UTC.
        model_version: that answered.
        role: as what it answered; a shadow's answer nobody sees.
        latency_ms: of retrieval and scoring; 0 while it is not known.
        looked: the clicks that were found.
        history: those of them that counted.
        candidate_ids_B, scores_B: the stories and their click probabilities.
        unknown_B, appended_B: which of them the model does not know, and which are younger than the model.
        retrieval: how candidates were found; None where the request named them.
        age_seconds: from the newest click to the request; None without clicks.
    """

    request_id: str
    user_id: int | None
    route: str
    answered_us: int
    model_version: str
    role: Role
    latency_ms: float
    looked: Looked
    history: History
    candidate_ids_B: Int64s
    scores_B: Floats
    unknown_B: npt.NDArray[np.bool_]
    appended_B: npt.NDArray[np.bool_]
    retrieval: Retrieval | None
    age_seconds: float | None


@dataclass(frozen=True, eq=False)
class Failure:
    """A request that the canary could not answer, or the shadow not score; fields as of `Answer`."""

    request_id: str
    user_id: int | None
    route: str
    answered_us: int
    model_version: str
    role: Role
    error: str
