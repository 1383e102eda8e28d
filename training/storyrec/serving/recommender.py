"""From a request to an answer, whatever protocol it came by: look up, retrieve, rank, explain, count, log.

Suffixes: B candidates, C clicks, H heads, L sequence.
"""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from storyrec.features.neighbours import nearest_to_clicks
from storyrec.schema import Domain
from storyrec.serving import metrics
from storyrec.serving.answer_log import AnswerLog
from storyrec.serving.ranking import Clicks, History, cut_history, ranker_inputs
from storyrec.serving.served import Served, ServedBundle
from storyrec.serving.store import Looked, SequenceStore

INT64 = 2**63
PROBED_SHARE = 0.5  # for 40 clicks: 99.6 % of the same 300 of 500,000 stories, in half the time
Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

Retrieval = Literal["neighbours", "no_clicks"]
"""Candidates are near what the user clicked; or, without clicks that the model knows, what it finds best for nobody."""


class BadRequest(ValueError):
    """A request that cannot be answered, with what is wrong with it."""


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes:
        max_candidates: stories to rank.
        max_clicks: clicks a domain that come with the request.
        num_retrieved: candidates that `recommend` ranks.
    """

    max_candidates: int
    max_clicks: int
    num_retrieved: int


@dataclass(frozen=True, eq=False)
class Asked:
    """Whose request it is and when.

    Attributes:
        route: for the log and the counts.
        user_id: None where the request brings its own clicks.
        request_id: the caller's; one is made up without it.
        clicks: story and product clicks of the request; None: the store knows them.
        now_us: as of when; None: now.
        version: of the model; None: whichever serves.
    """

    route: str
    user_id: int | None = None
    request_id: str | None = None
    clicks: tuple[Clicks, Clicks] | None = None
    now_us: int | None = None
    version: str | None = None


@dataclass(frozen=True, eq=False)
class Answer:
    """What was answered, in the order of the candidates.

    Attributes:
        request_id, user_id, route: as asked.
        answered_us: when, epoch microseconds UTC.
        model_version: that answered.
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
    looked: Looked
    history: History
    candidate_ids_B: Int64s
    scores_B: Floats
    unknown_B: npt.NDArray[np.bool_]
    appended_B: npt.NDArray[np.bool_]
    retrieval: Retrieval | None
    age_seconds: float | None


@dataclass(frozen=True, eq=False)
class Explained:
    """An answer for one candidate, and how much each head attended to each click of the history.

    Attributes:
        answer: for the candidate alone.
        story_weights_HC, product_weights_HC: a row sums to 1 where there are clicks.
    """

    answer: Answer
    story_weights_HC: Floats
    product_weights_HC: Floats


@dataclass(frozen=True)
class StoriesOfProduct:
    """The stories nearest to a product, nearest first; None where the model does not know the product."""

    model_version: str
    story_ids: Sequence[int] | None
    distances: Sequence[float]


class Recommender:
    """Answers requests.

    Args:
        champion: which bundle answers.
        store: where users' clicks are.
        limits: of a request.
        answers: where answers are logged; None: nowhere.
        now_us: the clock, epoch microseconds UTC.
    """

    def __init__(
        self,
        champion: ServedBundle,
        *,
        store: SequenceStore,
        limits: Limits,
        answers: AnswerLog | None,
        now_us: Callable[[], int],
    ) -> None:
        self.champion, self.limits = champion, limits
        self._store, self._answers, self._now_us = store, answers, now_us

    def rank(self, asked: Asked, *, candidate_ids: Sequence[int]) -> Answer:
        """Click probabilities of the candidates.

        Raises:
            BadRequest: too many or too few candidates or clicks, or a time that is none.
            NotServed: no bundle serves, or not the version that was asked for.
        """
        self._check(asked, num_candidates=len(candidate_ids))
        served = self.champion.answering(asked.version)
        looked, history = self._read(served, asked)
        return self._answer(served, asked, looked, history, np.array(candidate_ids, np.int64), retrieval=None)

    def recommend(self, asked: Asked) -> Answer:
        """Click probabilities of stories near what the user clicked lately; raises as `rank`."""
        self._check(asked, num_candidates=1)
        served = self.champion.answering(asked.version)
        looked, history = self._read(served, asked)
        candidates_B, retrieval = _retrieve(served, history, number=self.limits.num_retrieved)
        return self._answer(served, asked, looked, history, candidates_B, retrieval=retrieval)

    def explain(self, asked: Asked, *, candidate_id: int) -> Explained:
        """The answer for one candidate with its attention; raises as `rank`, and ModelError for bundles of before."""
        self._check(asked, num_candidates=1)
        served = self.champion.answering(asked.version)
        looked, history = self._read(served, asked)
        ids_B = np.array([candidate_id], np.int64)
        inputs = ranker_inputs(served.bundle, history, candidate_ids=ids_B, stories=served.stories)
        story_BHL, product_BHL = served.bundle.attention_weights(**inputs)
        return Explained(
            self._answer(served, asked, looked, history, ids_B, retrieval=None),
            story_BHL[0, :, : len(history.story_ids_C)],
            product_BHL[0, :, : len(history.product_ids_C)],
        )

    def stories_for_product(self, product_id: int, *, top: int) -> StoriesOfProduct:
        """The stories whose matching vectors are nearest to a product's. Paper: Sec. IV-G.

        Raises:
            NotServed: no bundle serves.
        """
        served = self.champion.answering(None)
        products = served.bundle.products
        row = int(products.rows(product_id)) if abs(product_id) < INT64 else 0
        if row == 0:
            return StoriesOfProduct(served.bundle.version, None, ())
        ids, distances = _nearest(served, np.asarray(products.match_NM[row : row + 1]), number=top)
        return StoriesOfProduct(served.bundle.version, ids.tolist(), distances.tolist())

    def _check(self, asked: Asked, *, num_candidates: int) -> None:
        if not 1 <= num_candidates <= self.limits.max_candidates:
            raise BadRequest(f"{num_candidates} candidates; a request has 1 to {self.limits.max_candidates:,}")
        if asked.now_us is not None and not 0 <= asked.now_us < INT64 // 2:
            raise BadRequest("'now_us' is no time in epoch microseconds")
        if asked.clicks is None and asked.user_id is None:
            raise BadRequest("neither 'user_id' nor clicks are given: whose request is it?")
        for clicks in asked.clicks or ():
            if np.size(clicks.item_ids_C) > self.limits.max_clicks:
                raise BadRequest(
                    f"{np.size(clicks.item_ids_C)} clicks of one domain; a request has at most {self.limits.max_clicks}"
                )

    def _read(self, served: Served, asked: Asked) -> tuple[Looked, History]:
        if asked.clicks is not None:
            looked = Looked(*asked.clicks, "given")
        else:
            assert asked.user_id is not None
            looked = self._store.look_up(asked.user_id)
        if looked.reason:
            metrics.FALLBACKS.labels(looked.reason).inc()
        history = cut_history(
            served.bundle,
            story_clicks=looked.story_clicks,
            product_clicks=looked.product_clicks,
            now_us=self._now_us() if asked.now_us is None else asked.now_us,
        )
        return looked, history

    def _answer(
        self,
        served: Served,
        asked: Asked,
        looked: Looked,
        history: History,
        candidate_ids_B: Int64s,
        *,
        retrieval: Retrieval | None,
    ) -> Answer:
        inputs = ranker_inputs(served.bundle, history, candidate_ids=candidate_ids_B, stories=served.stories)
        is_known_B = served.stories.known.rows(candidate_ids_B) > 0
        is_appended_B = ~is_known_B & (served.stories.appended.rows(candidate_ids_B) > 0)
        answer = Answer(
            request_id=asked.request_id or uuid.uuid4().hex,
            user_id=asked.user_id,
            route=asked.route,
            answered_us=self._now_us(),
            model_version=served.bundle.version,
            looked=looked,
            history=history,
            candidate_ids_B=candidate_ids_B,
            scores_B=served.bundle.rank_candidates(**inputs),
            unknown_B=~(is_known_B | is_appended_B),
            appended_B=is_appended_B,
            retrieval=retrieval,
            age_seconds=_age_seconds(history),
        )
        self._count(answer)
        if self._answers is not None:
            self._answers.put(answer)
        return answer

    def _count(self, answer: Answer) -> None:
        metrics.CANDIDATES.observe(len(answer.candidate_ids_B))
        metrics.UNKNOWN.inc(int(answer.unknown_B.sum()))
        metrics.APPENDED.inc(int(answer.appended_B.sum()))
        if answer.age_seconds is not None and answer.looked.origin == "online":
            metrics.SEQUENCE_AGE.observe(answer.age_seconds)
        if answer.retrieval == "no_clicks":
            metrics.FALLBACKS.labels("no_clicks").inc()


def _retrieve(served: Served, history: History, *, number: int) -> tuple[Int64s, Retrieval]:
    """Stories near the clicks, without the clicked ones; the best for nobody where the model knows no click."""
    products_CM, _ = served.index.vectors(history.product_ids_C, domain=Domain.PRODUCT)
    clicks_CM = np.concatenate([served.stories.match_vectors(history.story_ids_C), products_CM])
    retrieval: Retrieval = "neighbours" if len(clicks_CM) else "no_clicks"
    if len(clicks_CM):
        found, _ = _nearest(served, clicks_CM, number=number + len(history.story_ids_C))
    else:
        found = served.for_nobody
    return found[~np.isin(found, history.story_ids_C)][:number], retrieval


def _nearest(served: Served, clicks_CM: Floats, *, number: int) -> tuple[Int64s, Floats]:
    """Ids and distances of the stories nearest to some vectors together, appended ones included."""
    share = 1.0 if len(clicks_CM) == 1 else PROBED_SHARE
    rows_K, distances_K = nearest_to_clicks(served.index, clicks_CM, top_k=number, share=share)
    ids_K = np.asarray(served.index.story_ids_N[rows_K])
    appended = served.stories.appended
    if len(appended.ids_N) > 1:
        # of one vector the distance itself, as in the index
        differences_NC = np.linalg.norm(appended.match_NM[1:, None] - clicks_CM[None], axis=2)
        young_N = np.log(len(clicks_CM)) - np.logaddexp.reduce(-differences_NC, axis=1)
        ids_K, distances_K = np.concatenate([ids_K, appended.ids_N[1:]]), np.concatenate([distances_K, young_N])
    best_K = np.argsort(distances_K, kind="stable")[:number]
    return ids_K[best_K], distances_K[best_K].astype(np.float32)


def _age_seconds(history: History) -> float | None:
    times_C = np.concatenate([history.story_clicked_us_C, history.product_clicked_us_C])
    return (history.now_us - int(times_C.max())) / 1e6 if len(times_C) else None
