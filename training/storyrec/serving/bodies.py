"""What requests and answers look like over HTTP; FastAPI makes the documentation of them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from storyrec.serving.recommender import INT64

Int64 = Annotated[int, Field(ge=-INT64, lt=INT64)]
Int64s = Annotated[list[Int64], Field(fail_fast=True)]  # a megabyte of wrong values is one error
MAX_ID_LENGTH = 200
Id = Annotated[str, Field(max_length=MAX_ID_LENGTH)]
Status = Literal["known", "appended", "unknown"]

CLICKS: list[JsonValue] = [{"item_id": 1042, "clicked_us": 1773057600000000}]


class Strict(BaseModel):
    """No key is unknown, and nothing is taken for what it is not."""

    model_config = ConfigDict(strict=True, extra="forbid")


class Click(Strict):
    """A past click; `clicked_us` is epoch microseconds UTC."""

    item_id: Int64
    clicked_us: Int64


Clicks = Annotated[list[Click], Field(fail_fast=True)]


class Whose(Strict):
    """Whose request it is: a user of the feature store, or clicks that come with the request.

    Without `now_us` it is answered as of now. `request_id` comes back, and stands in the answer log.
    """

    user_id: Int64 | None = None
    story_clicks: Clicks | None = None
    product_clicks: Clicks | None = None
    now_us: Int64 | None = None
    request_id: Id | None = None


class RankBody(Whose):
    """Which stories are to be ranked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": 42, "candidates": [1000, 1001, 1002]},
                {"story_clicks": CLICKS, "product_clicks": [], "candidates": [1000, 1001]},
            ]
        }
    )

    candidates: Int64s


class RecommendBody(Whose):
    """How many stories are wanted."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 42, "top": 10}]})

    top: Annotated[int, Field(ge=1, le=1_000)] = 20


class ExplainBody(Whose):
    """Which story's probability is to be explained."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": 42, "candidate": 1000}]})

    candidate: Int64


class RankedStory(BaseModel):
    """A story with its click probability; `appended`: published after the training; `unknown`: scored as a story
    without title and cover."""

    story_id: int
    probability: float
    status: Status


class RankAnswer(BaseModel):
    """Stories, best first.

    `sequences`: "online" (feature store), "given" (with the request), "none" (there is no store), "unavailable" (the
    store did not answer; ranked as for a user without clicks). `retrieval` of recommendations: "neighbours" of the
    clicks, or "no_clicks".
    """

    request_id: str
    model_version: str
    user_id: int | None
    sequences: Literal["online", "given", "none", "unavailable"]
    sequence_age_seconds: float | None
    retrieval: Literal["neighbours", "no_clicks"] | None
    stories: list[RankedStory]


class AttendedClick(BaseModel):
    """A past click, and how much the candidate attends to it: the mean over the heads, and each head."""

    item_id: int
    clicked_us: int
    weight: float
    head_weights: list[float]


class ExplainAnswer(RankAnswer):
    """A ranking of the one candidate, with the clicks that it attends to, oldest first. Paper: Eq. 10."""

    story_clicks: list[AttendedClick]
    product_clicks: list[AttendedClick]


class NearStory(BaseModel):
    """A story near a product."""

    story_id: int
    distance: float


class ProductAnswer(BaseModel):
    """Stories nearest to a product, nearest first."""

    product_id: int
    model_version: str
    stories: list[NearStory]


class Refusal(BaseModel):
    """Why there is no answer."""

    error: str


class Readiness(BaseModel):
    """Whether a bundle serves; `refused`: why the deployed one is not it."""

    ready: bool
    refused: str | None


class Tensor(BaseModel):
    """An input of the Open Inference Protocol."""

    model_config = ConfigDict(strict=True)

    name: Literal["user_id", "candidate_ids", "now_us"]
    shape: Annotated[list[Int64], Field(max_length=8)]
    datatype: Literal["INT64"]
    data: Int64s


class InferenceRequest(BaseModel):
    """Body of an inference request; unknown keys of the protocol are allowed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "inputs": [
                        {"name": "user_id", "shape": [1], "datatype": "INT64", "data": [42]},
                        {"name": "candidate_ids", "shape": [3], "datatype": "INT64", "data": [1000, 1001, 1002]},
                    ]
                }
            ]
        }
    )

    id: Id | None = None
    inputs: list[Tensor]


REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The request is malformed or asks for too much."},
    404: {"model": Refusal, "description": "There is no such model version, product or route."},
    408: {"model": Refusal, "description": "The body did not come in time."},
    413: {"model": Refusal, "description": "The body is too large."},
    "4XX": {"model": Refusal, "description": "Another refusal."},
    503: {"model": Refusal, "description": "No model serves yet."},
}
READY: dict[int | str, dict[str, Any]] = {
    200: {"model": Readiness, "description": "A bundle serves."},
    503: {"model": Readiness, "description": "No bundle serves yet."},
}
