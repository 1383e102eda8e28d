"""What the feature store holds: entities, feature views and the services other programs ask for.

The offline sources are Parquet partitions below the folder that STORYREC_FEATURES names (default:
`var/marketplace/work/features` beside this folder). Timestamps are microseconds, UTC.

A name without `_vN` is version 1. What was released stays as schemas.json has it; a change is a new
version beside the old one. Tags are what docs/feature-catalog.md and Feast's UI show: of a field its
shape, unit and an example (JSON); of a view its freshness and the log tables it comes from.
"""

import os
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, ValueType
from feast.permissions.action import CRUD, READ, AuthzedAction
from feast.permissions.permission import Permission
from feast.permissions.policy import RoleBasedPolicy
from feast.types import Array, FeastType, Float32, Int64, String

OWNER = "storyrec"
SEQUENCE_LENGTH = 20  # what the online store keeps of a user's clicks, pushed ones among them
SEQUENCE_MAX_AGE = "30h"  # a day, two hours until its run starts, and four for the run
ITEM_MAX_AGE = "36h"  # and the training
NO_EXPIRY = timedelta(0)  # the reader cuts a sequence to its history window by the click times
EVERY_DAY = "daily: the run of a day starts at 02:00 UTC of the day after and brings all its clicks"
EVERY_CHAMPION = "with each new champion, at most daily; an item that it does not know keeps its earlier row"

_default = Path(__file__).resolve().parents[1] / "var/marketplace/work/features"
_features = Path(os.environ.get("STORYREC_FEATURES") or _default).resolve()
if _features == _default:
    # feature_store.yaml puts its databases here, and SQLite makes no folders: `feast apply` works in a fresh checkout
    (_default.parent / "feast").mkdir(parents=True, exist_ok=True)


def _source(view: str) -> FileSource:
    return FileSource(
        name=f"{view}_source",
        path=f"{_features}/{view}/dt=*/*.parquet",
        timestamp_field="event_timestamp",
        created_timestamp_column="known_at",
        description=f"Day partitions of {view}.",
        owner=OWNER,
    )


def _clicks(domain: str) -> PushSource:
    """Clicks as they happen: each row's items and times are merged into the user's sequence."""
    return PushSource(
        name=f"{domain}_clicks",
        batch_source=_source(f"user_{domain}_sequence"),
        description=f"A user's {domain} clicks as they happen; a day's logs replace what is before the day's end.",
        owner=OWNER,
    )


def _field(name: str, dtype: FeastType, meaning: str, *, shape: str, unit: str, example: str) -> Field:
    return Field(name=name, dtype=dtype, description=meaning, tags={"shape": shape, "unit": unit, "example": example})


def _id(name: str, meaning: str) -> Field:
    return _field(name, Int64, meaning, shape="1", unit="id, > 0", example="42")


def _embedding() -> Field:
    return _field(
        "embedding",
        Array(Float32),
        "Visual plus textual features.",
        shape="64",
        unit="none; Euclidean distances count",
        example="[0.31, -1.2, 0.07]",
    )


def _model_version() -> Field:
    return _field(
        "model_version",
        String,
        "The champion whose extractors made it.",
        shape="1",
        unit="bundle version, 16 hex digits",
        example='"8c1f0a6b2e4d9713"',
    )


user = Entity(
    name="user",
    join_keys=["user_id"],
    value_type=ValueType.INT64,
    description="Who clicks stories and products.",
    owner=OWNER,
)
story = Entity(
    name="story",
    join_keys=["story_id"],
    value_type=ValueType.INT64,
    description="A post, picture or video about merchandise.",
    owner=OWNER,
)
product = Entity(
    name="product",
    join_keys=["product_id"],
    value_type=ValueType.INT64,
    description="Something to buy, which stories are about.",
    owner=OWNER,
)

user_story_sequence = FeatureView(
    name="user_story_sequence",
    entities=[user],
    ttl=NO_EXPIRY,
    schema=[
        _id("user_id", "Whose clicks."),
        _field(
            "story_ids",
            Array(Int64),
            "The last stories clicked, oldest first.",
            shape="1 to 20",
            unit="story ids",
            example="[17, 4, 233]",
        ),
        _field(
            "story_clicked_us",
            Array(Int64),
            "When, entry by entry.",
            shape="as story_ids",
            unit="epoch microseconds, UTC",
            example="[1773046800000000, 1773050400000000, 1773050400000250]",
        ),
    ],
    source=_clicks("story"),
    online=True,
    description="A user's most recent story clicks; one row a click, valid one microsecond after it.",
    owner=OWNER,
    tags={
        "domain": "story",
        "kind": "sequence",
        "length": str(SEQUENCE_LENGTH),
        "max_age": SEQUENCE_MAX_AGE,
        "freshness": EVERY_DAY,
        "lineage": "impressions",
    },
)

user_product_sequence = FeatureView(
    name="user_product_sequence",
    entities=[user],
    ttl=NO_EXPIRY,
    schema=[
        _id("user_id", "Whose clicks."),
        _field(
            "product_ids",
            Array(Int64),
            "The last products clicked, oldest first.",
            shape="1 to 20",
            unit="product ids",
            example="[17, 4, 233]",
        ),
        _field(
            "product_clicked_us",
            Array(Int64),
            "When, entry by entry.",
            shape="as product_ids",
            unit="epoch microseconds, UTC",
            example="[1773046800000000, 1773050400000000, 1773050400000250]",
        ),
    ],
    source=_clicks("product"),
    online=True,
    description="A user's most recent product clicks; one row a click, valid one microsecond after it.",
    owner=OWNER,
    tags={
        "domain": "product",
        "kind": "sequence",
        "length": str(SEQUENCE_LENGTH),
        "max_age": SEQUENCE_MAX_AGE,
        "freshness": EVERY_DAY,
        "lineage": "product_clicks",
    },
)

story_embedding = FeatureView(
    name="story_embedding",
    entities=[story],
    ttl=NO_EXPIRY,
    schema=[
        _id("story_id", "Which story."),
        _embedding(),
        _model_version(),
    ],
    source=_source("story_embedding"),
    online=True,
    description="What the champion's frozen story extractor yields; compare only within one model_version.",
    owner=OWNER,
    tags={
        "domain": "story",
        "kind": "embedding",
        "max_age": ITEM_MAX_AGE,
        "freshness": EVERY_CHAMPION,
        "lineage": "stories",
    },
)

product_embedding = FeatureView(
    name="product_embedding",
    entities=[product],
    ttl=NO_EXPIRY,
    schema=[
        _id("product_id", "Which product."),
        _embedding(),
        _model_version(),
    ],
    source=_source("product_embedding"),
    online=True,
    description="What the champion's frozen product extractor yields; compare only within one model_version.",
    owner=OWNER,
    tags={
        "domain": "product",
        "kind": "embedding",
        "max_age": ITEM_MAX_AGE,
        "freshness": EVERY_CHAMPION,
        "lineage": "products",
    },
)

stories_for_product = FeatureView(
    name="stories_for_product",
    entities=[product],
    ttl=NO_EXPIRY,
    schema=[
        _id("product_id", "Which product."),
        _field(
            "story_ids",
            Array(Int64),
            "The nearest stories, nearest first.",
            shape="10 (match.num_stories)",
            unit="story ids",
            example="[233, 17, 4]",
        ),
        _field(
            "distances",
            Array(Float32),
            "How far each story is from the product, ascending.",
            shape="as story_ids",
            unit="Euclidean, between matching vectors",
            example="[0.41, 0.44, 0.52]",
        ),
        _model_version(),
    ],
    source=_source("stories_for_product"),
    online=True,
    description="The stories that match a product best.",
    owner=OWNER,
    tags={
        "domain": "product",
        "kind": "matching",
        "max_age": ITEM_MAX_AGE,
        "freshness": EVERY_CHAMPION,
        "lineage": "stories,products",
    },
)

stories_for_story = FeatureView(
    name="stories_for_story",
    entities=[story],
    ttl=NO_EXPIRY,
    schema=[
        _id("story_id", "Which story."),
        _field(
            "story_ids",
            Array(Int64),
            "The nearest other stories, nearest first.",
            shape="10 (match.num_stories)",
            unit="story ids",
            example="[233, 17, 4]",
        ),
        _field(
            "distances",
            Array(Float32),
            "How far each is, ascending.",
            shape="as story_ids",
            unit="Euclidean, between matching vectors",
            example="[0.41, 0.44, 0.52]",
        ),
        _model_version(),
    ],
    source=_source("stories_for_story"),
    online=True,
    description="The stories that are most like a story; it is none of them.",
    owner=OWNER,
    tags={
        "domain": "story",
        "kind": "matching",
        "max_age": ITEM_MAX_AGE,
        "freshness": EVERY_CHAMPION,
        "lineage": "stories",
    },
)

ranker_v1 = FeatureService(
    name="ranker_v1",
    features=[user_story_sequence, user_product_sequence],
    description="What the ranker reads for a request: both click sequences with their times.",
    owner=OWNER,
    tags={"consumer": "storyrec"},
)
user_interest_v1 = FeatureService(
    name="user_interest_v1",
    features=[user_story_sequence[["story_ids"]], user_product_sequence[["product_ids"]]],
    description="What a user clicked lately, without times.",
    owner=OWNER,
    tags={"consumer": "other teams"},
)
story_embedding_v1 = FeatureService(
    name="story_embedding_v1",
    features=[story_embedding],
    description="Story embeddings with the version of the model that made them.",
    owner=OWNER,
    tags={"consumer": "other teams"},
)
product_embedding_v1 = FeatureService(
    name="product_embedding_v1",
    features=[product_embedding],
    description="Product embeddings with the version of the model that made them.",
    owner=OWNER,
    tags={"consumer": "other teams"},
)
stories_for_product_v1 = FeatureService(
    name="stories_for_product_v1",
    features=[stories_for_product],
    description="Stories to show beside a product.",
    owner=OWNER,
    tags={"consumer": "other teams"},
)
stories_for_story_v1 = FeatureService(
    name="stories_for_story_v1",
    features=[stories_for_story],
    description="Stories to show beside a story.",
    owner=OWNER,
    tags={"consumer": "other teams"},
)

# who may do what through the server, by the roles in their token; no action is open to everybody
reading = Permission(
    name="reading",
    policy=RoleBasedPolicy(roles=["reader", "writer", "admin"]),
    actions=[AuthzedAction.DESCRIBE, *READ],
)
pushing = Permission(
    name="pushing", policy=RoleBasedPolicy(roles=["writer", "admin"]), actions=AuthzedAction.WRITE_ONLINE
)
changing = Permission(
    name="changing", policy=RoleBasedPolicy(roles=["admin"]), actions=[*CRUD, AuthzedAction.WRITE_OFFLINE]
)
