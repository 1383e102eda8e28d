"""The plain routes, for those who want stories and no tensors."""

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Response

from storyrec.serving.answers import Answer, Floats, Int64s
from storyrec.serving.app import respond
from storyrec.serving.bodies import (
    REFUSALS,
    Click,
    ExplainAnswer,
    ExplainBody,
    ProductAnswer,
    RankAnswer,
    RankBody,
    RecommendBody,
    Whose,
)
from storyrec.serving.body_route import BodyRoute
from storyrec.serving.ranking import Clicks
from storyrec.serving.recommender import Asked, Recommender


def plain_routes(recommender: Recommender, *, num_stories: int) -> APIRouter:
    """The routes below /v1.

    Args:
        recommender: answers.
        num_stories: default number of stories for a product.
    """
    routes = APIRouter(prefix="/v1", tags=["Stories"], responses=REFUSALS, route_class=BodyRoute)

    @routes.post("/rank", responses={200: {"model": RankAnswer}})
    async def rank(body: RankBody) -> Response:
        answer = await recommender.rank(_asked(body, "rank"), candidate_ids=body.candidates)
        return respond(_ranked(answer), version=answer.model_version)

    @routes.post("/recommend", responses={200: {"model": RankAnswer}})
    async def recommend(body: RecommendBody) -> Response:
        answer = await recommender.recommend(_asked(body, "recommend"))
        return respond(_ranked(answer, top=body.top), version=answer.model_version)

    @routes.post("/explain", responses={200: {"model": ExplainAnswer}})
    async def explain(body: ExplainBody) -> Response:
        explained = await recommender.explain(_asked(body, "explain"), candidate_id=body.candidate)
        history = explained.answer.history
        content = _ranked(explained.answer) | {
            "story_clicks": _attended(history.story_ids_C, history.story_clicked_us_C, explained.story_weights_HC),
            "product_clicks": _attended(
                history.product_ids_C, history.product_clicked_us_C, explained.product_weights_HC
            ),
        }
        return respond(content, version=explained.answer.model_version)

    @routes.get("/products/{product_id}/stories", responses={200: {"model": ProductAnswer}})
    async def stories_for_product(
        product_id: int, top: Annotated[int, Query(ge=1, le=1_000)] = num_stories
    ) -> Response:
        found = recommender.stories_for_product(product_id, top=top)
        if found.story_ids is None:
            raise HTTPException(404, f"model {found.model_version} does not know product {product_id}")
        pairs = zip(found.story_ids, found.distances, strict=True)
        content = {
            "product_id": product_id,
            "model_version": found.model_version,
            "stories": [{"story_id": story_id, "distance": distance} for story_id, distance in pairs],
        }
        return respond(content, version=found.model_version)

    return routes


def _asked(body: Whose, route: str) -> Asked:
    given = None
    if body.story_clicks is not None or body.product_clicks is not None:
        given = (_clicks(body.story_clicks or []), _clicks(body.product_clicks or []))
    return Asked(route=route, user_id=body.user_id, request_id=body.request_id, clicks=given, now_us=body.now_us)


def _clicks(clicks: list[Click]) -> Clicks:
    return Clicks(
        np.array([click.item_id for click in clicks], np.int64),
        np.array([click.clicked_us for click in clicks], np.int64),
    )


def _ranked(answer: Answer, *, top: int | None = None) -> dict[str, Any]:
    best_B = np.argsort(-answer.scores_B, kind="stable")[:top]
    status_B = np.where(answer.unknown_B, "unknown", np.where(answer.appended_B, "appended", "known"))
    columns = (answer.candidate_ids_B[best_B], answer.scores_B[best_B], status_B[best_B])
    return {
        "request_id": answer.request_id,
        "model_version": answer.model_version,
        "user_id": answer.user_id,
        "sequences": answer.looked.origin,
        "sequence_age_seconds": answer.age_seconds,
        "retrieval": answer.retrieval,
        "stories": [
            {"story_id": story_id, "probability": probability, "status": status}
            for story_id, probability, status in zip(*(column.tolist() for column in columns), strict=True)
        ],
    }


def _attended(item_ids_C: Int64s, clicked_us_C: Int64s, weights_HC: Floats) -> list[dict[str, Any]]:
    columns = (item_ids_C, clicked_us_C, weights_HC.mean(axis=0), weights_HC.T)
    return [
        {"item_id": item_id, "clicked_us": clicked_us, "weight": weight, "head_weights": heads}
        for item_id, clicked_us, weight, heads in zip(*(column.tolist() for column in columns), strict=True)
    ]
