"""From a request to an answer, whatever protocol it came by: look up, retrieve, rank, explain, count, log.

Suffixes: B candidates, C clicks, H heads, L sequence.
"""

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np

from storyrec.errors import ModelError
from storyrec.features.neighbours import nearest_to_clicks
from storyrec.schema import Domain
from storyrec.serving import metrics
from storyrec.serving.answer_log import AnswerLog
from storyrec.serving.answers import Answer, Failure, Floats, Int64s, Retrieval
from storyrec.serving.ranking import Clicks, History, cut_history, ranker_inputs
from storyrec.serving.served import Served
from storyrec.serving.shadow import Shadows
from storyrec.serving.split import Chosen, Split
from storyrec.serving.store import Looked, SequenceStore

INT64 = 2**63
LAST_US = 253_402_300_799_999_999
"""The end of the year 9999; what is later are nanoseconds, or no time."""
PROBED_SHARE = 0.5  # for 40 clicks: 99.6 % of the same 300 of 500,000 stories, in half the time

log = logging.getLogger(__name__)


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
class Read:
    """What a request reads once, whichever bundle answers.

    Attributes:
        looked: the clicks that were found.
        now_us: as of when, epoch microseconds UTC.
        request_id: the caller's, or made up.
    """

    looked: Looked
    now_us: int
    request_id: str

    def history(self, served: Served) -> History:
        """The clicks that count for a bundle."""
        return cut_history(
            served.bundle,
            story_clicks=self.looked.story_clicks,
            product_clicks=self.looked.product_clicks,
            now_us=self.now_us,
        )


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


T = TypeVar("T")
Answering: TypeAlias = Callable[[Chosen, Read], tuple[Answer, T]]
"""How a bundle answers a request, and what it has to say beside the answer."""


class Recommender:
    """Answers requests.

    Args:
        models: which bundle answers whom.
        store: where users' clicks are.
        limits: of a request.
        answers: where answers are logged; None: nowhere.
        now_us: the clock, epoch microseconds UTC.
    """

    def __init__(
        self,
        models: Split,
        *,
        store: SequenceStore,
        limits: Limits,
        answers: AnswerLog | None,
        now_us: Callable[[], int],
    ) -> None:
        self.models, self.limits = models, limits
        self._store, self._answers, self._now_us = store, answers, now_us
        self._shadows = Shadows()

    def close(self) -> None:
        """Score what waits unseen, and end."""
        self._shadows.close()

    async def rank(self, asked: Asked, *, candidate_ids: Sequence[int]) -> Answer:
        """Click probabilities of the candidates.

        Raises:
            BadRequest: too many or too few candidates or clicks, or a time that is none.
            NotServed: no bundle serves, or not the version that was asked for.
        """
        self._check(asked, num_candidates=len(candidate_ids))
        ids_B = np.array(candidate_ids, np.int64)

        def answer(chosen: Chosen, read: Read) -> tuple[Answer, None]:
            return self._answer(chosen, asked, read, read.history(chosen.served), ids_B), None

        return (await self._by_user(asked, answer))[0]

    async def recommend(self, asked: Asked) -> Answer:
        """Click probabilities of stories near what the user clicked lately; raises as `rank`."""
        self._check(asked, num_candidates=1)

        def answer(chosen: Chosen, read: Read) -> tuple[Answer, None]:
            history = read.history(chosen.served)
            found_B, retrieval = _retrieve(chosen.served, history, number=self.limits.num_retrieved)
            return self._answer(chosen, asked, read, history, found_B, retrieval=retrieval), None

        return (await self._by_user(asked, answer))[0]

    async def explain(self, asked: Asked, *, candidate_id: int) -> Explained:
        """The answer for one candidate with its attention; raises as `rank`, and ModelError for bundles of before."""
        self._check(asked, num_candidates=1)
        ids_B = np.array([candidate_id], np.int64)

        def answer(chosen: Chosen, read: Read) -> tuple[Answer, tuple[Floats, Floats]]:
            served, history = chosen.served, read.history(chosen.served)
            inputs = ranker_inputs(served.bundle, history, candidate_ids=ids_B, stories=served.stories)
            story_BHL, product_BHL = served.bundle.attention_weights(**inputs)
            lengths = len(history.story_ids_C), len(history.product_ids_C)
            weights = story_BHL[0, :, : lengths[0]], product_BHL[0, :, : lengths[1]]
            return self._answer(chosen, asked, read, history, ids_B), weights

        answered, weights = await self._by_user(asked, answer)
        return Explained(answered, *weights)

    def stories_for_product(self, product_id: int, *, top: int) -> StoriesOfProduct:
        """The stories whose matching vectors are nearest to a product's. Paper: Sec. IV-G.

        Raises:
            NotServed: no bundle serves.
        """
        served = self.models.answering(None)
        products = served.bundle.products
        row = int(products.rows(product_id)) if abs(product_id) < INT64 else 0
        if row == 0:
            return StoriesOfProduct(served.bundle.version, None, ())
        ids, distances = _nearest(served, np.asarray(products.match_NM[row : row + 1]), number=top)
        return StoriesOfProduct(served.bundle.version, ids.tolist(), distances.tolist())

    def _check(self, asked: Asked, *, num_candidates: int) -> None:
        if not 1 <= num_candidates <= self.limits.max_candidates:
            raise BadRequest(f"{num_candidates} candidates; a request has 1 to {self.limits.max_candidates:,}")
        if asked.now_us is not None and not 0 <= asked.now_us <= LAST_US:
            raise BadRequest("'now_us' is no time in epoch microseconds")
        if asked.clicks is None and asked.user_id is None:
            raise BadRequest("neither 'user_id' nor clicks are given: whose request is it?")
        for clicks in asked.clicks or ():
            if np.size(clicks.item_ids_C) > self.limits.max_clicks:
                raise BadRequest(
                    f"{np.size(clicks.item_ids_C)} clicks of one domain; a request has at most {self.limits.max_clicks}"
                )

    async def _by_user(self, asked: Asked, answer: Answering[T]) -> tuple[Answer, T]:
        """Let the user's bundle answer, or the champion where the canary fails; and the shadow, unseen."""
        chosen, read = self.models.choose(asked.version, user_id=asked.user_id), await self._read(asked)
        try:
            answered = self._timed(answer, chosen, read)
        except Exception as error:  # whatever it is: the user is answered, if another model can
            if not isinstance(error, ModelError):  # a bundle of before, which cannot explain
                self._note_failure(chosen, asked, read, error)
            if chosen.role == "champion" or asked.version is not None:
                raise
            chosen = Chosen(self.models.champion.answering(None), "champion")
            answered = self._timed(answer, chosen, read)
        if (unseen := self.models.shadow()) is not None:
            self._shadows.score(lambda: self._score_unseen(Chosen(unseen, "shadow"), asked, read, answer))
        return answered

    def _score_unseen(self, chosen: Chosen, asked: Asked, read: Read, answer: Answering[T]) -> None:
        try:
            self._timed(answer, chosen, read)
        except Exception as error:  # whatever it is: it counts against the shadow
            self._note_failure(chosen, asked, read, error)

    def _timed(self, answer: Answering[T], chosen: Chosen, read: Read) -> tuple[Answer, T]:
        started = time.perf_counter()
        answered, more = answer(chosen, read)
        answered = replace(answered, latency_ms=1e3 * (time.perf_counter() - started))
        self._note(answered)
        return answered, more

    async def _read(self, asked: Asked) -> Read:
        if asked.clicks is not None:
            looked = Looked(*asked.clicks, "given")
        else:
            assert asked.user_id is not None
            looked = await self._store.look_up(asked.user_id)
        if looked.reason:
            metrics.FALLBACKS.labels(looked.reason).inc()
        now_us = self._now_us() if asked.now_us is None else asked.now_us
        return Read(looked, now_us, asked.request_id or uuid.uuid4().hex)

    def _answer(
        self,
        chosen: Chosen,
        asked: Asked,
        read: Read,
        history: History,
        candidate_ids_B: Int64s,
        *,
        retrieval: Retrieval | None = None,
    ) -> Answer:
        served = chosen.served
        inputs = ranker_inputs(served.bundle, history, candidate_ids=candidate_ids_B, stories=served.stories)
        is_known_B = served.stories.known.rows(candidate_ids_B) > 0
        is_appended_B = ~is_known_B & (served.stories.appended.rows(candidate_ids_B) > 0)
        scores_B = served.bundle.rank_candidates(**inputs)
        if not np.isfinite(scores_B).all():
            raise ArithmeticError(f"{served.bundle.version} gave scores that are no probabilities")
        return Answer(
            request_id=read.request_id,
            user_id=asked.user_id,
            route=asked.route,
            answered_us=self._now_us(),
            model_version=served.bundle.version,
            role=chosen.role,
            latency_ms=0.0,
            looked=read.looked,
            history=history,
            candidate_ids_B=candidate_ids_B,
            scores_B=scores_B,
            unknown_B=~(is_known_B | is_appended_B),
            appended_B=is_appended_B,
            retrieval=retrieval,
            age_seconds=_age_seconds(history),
        )

    def _note(self, answer: Answer) -> None:
        """Log an answer and count it."""
        if self._answers is not None:
            self._answers.put(answer)
        traffic = self.models.traffic
        if traffic is not None and answer.user_id is not None:
            traffic.note(answer.model_version, latency_ms=answer.latency_ms, scores_B=answer.scores_B)
        if answer.role == "shadow":
            return
        metrics.CANDIDATES.observe(len(answer.candidate_ids_B))
        metrics.UNKNOWN.inc(int(answer.unknown_B.sum()))
        metrics.APPENDED.inc(int(answer.appended_B.sum()))
        if answer.age_seconds is not None and answer.looked.origin == "online":
            metrics.SEQUENCE_AGE.observe(answer.age_seconds)
        if answer.retrieval == "no_clicks":
            metrics.FALLBACKS.labels("no_clicks").inc()

    def _note_failure(self, chosen: Chosen, asked: Asked, read: Read, error: Exception) -> None:
        version = chosen.served.bundle.version
        log.error("the %s %s failed", chosen.role, version, exc_info=error)
        metrics.FAILURES.labels(chosen.role).inc()
        if self.models.traffic is not None and asked.user_id is not None:
            self.models.traffic.note_failure(version)
        if self._answers is not None:
            self._answers.put(
                Failure(
                    request_id=read.request_id,
                    user_id=asked.user_id,
                    route=asked.route,
                    answered_us=self._now_us(),
                    model_version=version,
                    role=chosen.role,
                    error=repr(error),
                )
            )


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
        young_NM = np.asarray(appended.match_NM[1:])
        squares_NC = (young_NM**2).sum(axis=1)[:, None] + (clicks_CM**2).sum(axis=1) - 2 * young_NM @ clicks_CM.T
        differences_NC = np.sqrt(np.maximum(squares_NC, 0))
        young_N = np.log(len(clicks_CM)) - np.logaddexp.reduce(-differences_NC, axis=1)
        ids_K, distances_K = np.concatenate([ids_K, appended.ids_N[1:]]), np.concatenate([distances_K, young_N])
    best_K = np.argsort(distances_K, kind="stable")[:number]
    return ids_K[best_K], distances_K[best_K].astype(np.float32)


def _age_seconds(history: History) -> float | None:
    times_C = np.concatenate([history.story_clicked_us_C, history.product_clicked_us_C])
    return (history.now_us - int(times_C.max())) / 1e6 if len(times_C) else None
