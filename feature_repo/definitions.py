"""What the feature store holds: entities, feature views and the services other programs ask for.

The offline sources are Parquet partitions below the folder that STORYREC_FEATURES names (default:
`var/marketplace/work/features` beside this folder). Timestamps are microseconds, UTC.
"""

import os
from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Array, Float32, Int64, String

OWNER = "storyrec"
SEQUENCE_MAX_AGE = "30h"  # a day, two hours until its run starts, and four for the run
ITEM_MAX_AGE = "36h"  # and the training
NO_EXPIRY = timedelta(0)  # the reader cuts a sequence to its history window by the click times

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


user = Entity(
    name="user", join_keys=["user_id"], value_type=ValueType.INT64, description="Who clicks stories and products."
)
story = Entity(name="story", join_keys=["story_id"], value_type=ValueType.INT64, description="A storytelling item.")
product = Entity(name="product", join_keys=["product_id"], value_type=ValueType.INT64, description="A product.")

user_story_sequence = FeatureView(
    name="user_story_sequence",
    entities=[user],
    ttl=NO_EXPIRY,
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="story_ids", dtype=Array(Int64), description="The last 20 stories clicked, oldest first."),
        Field(name="story_clicked_us", dtype=Array(Int64), description="When, epoch microseconds UTC."),
    ],
    source=_source("user_story_sequence"),
    online=True,
    description="A user's most recent story clicks; one row a click, valid one microsecond after it.",
    owner=OWNER,
    tags={"domain": "story", "kind": "sequence", "max_age": SEQUENCE_MAX_AGE},
)

user_product_sequence = FeatureView(
    name="user_product_sequence",
    entities=[user],
    ttl=NO_EXPIRY,
    schema=[
        Field(name="user_id", dtype=Int64),
        Field(name="product_ids", dtype=Array(Int64), description="The last 20 products clicked, oldest first."),
        Field(name="product_clicked_us", dtype=Array(Int64), description="When, epoch microseconds UTC."),
    ],
    source=_source("user_product_sequence"),
    online=True,
    description="A user's most recent product clicks; one row a click, valid one microsecond after it.",
    owner=OWNER,
    tags={"domain": "product", "kind": "sequence", "max_age": SEQUENCE_MAX_AGE},
)

story_embedding = FeatureView(
    name="story_embedding",
    entities=[story],
    ttl=NO_EXPIRY,
    schema=[
        Field(name="story_id", dtype=Int64),
        Field(name="embedding", dtype=Array(Float32), description="Visual plus textual features, 64 numbers."),
        Field(name="model_version", dtype=String, description="The champion whose extractors made it."),
    ],
    source=_source("story_embedding"),
    online=True,
    description="What the champion's frozen story extractor yields; compare only within one model_version.",
    owner=OWNER,
    tags={"domain": "story", "kind": "embedding", "max_age": ITEM_MAX_AGE},
)

product_embedding = FeatureView(
    name="product_embedding",
    entities=[product],
    ttl=NO_EXPIRY,
    schema=[
        Field(name="product_id", dtype=Int64),
        Field(name="embedding", dtype=Array(Float32), description="Visual plus textual features, 64 numbers."),
        Field(name="model_version", dtype=String, description="The champion whose extractors made it."),
    ],
    source=_source("product_embedding"),
    online=True,
    description="What the champion's frozen product extractor yields; compare only within one model_version.",
    owner=OWNER,
    tags={"domain": "product", "kind": "embedding", "max_age": ITEM_MAX_AGE},
)

stories_for_product = FeatureView(
    name="stories_for_product",
    entities=[product],
    ttl=NO_EXPIRY,
    schema=[
        Field(name="product_id", dtype=Int64),
        Field(name="story_ids", dtype=Array(Int64), description="The nearest stories, nearest first."),
        Field(name="distances", dtype=Array(Float32), description="Euclidean, between matching vectors."),
        Field(name="model_version", dtype=String, description="The champion whose extractors made it."),
    ],
    source=_source("stories_for_product"),
    online=True,
    description="The stories that match a product best.",
    owner=OWNER,
    tags={"domain": "product", "kind": "matching", "max_age": ITEM_MAX_AGE},
)

stories_for_story = FeatureView(
    name="stories_for_story",
    entities=[story],
    ttl=NO_EXPIRY,
    schema=[
        Field(name="story_id", dtype=Int64),
        Field(name="story_ids", dtype=Array(Int64), description="The nearest other stories, nearest first."),
        Field(name="distances", dtype=Array(Float32), description="Euclidean, between matching vectors."),
        Field(name="model_version", dtype=String, description="The champion whose extractors made it."),
    ],
    source=_source("stories_for_story"),
    online=True,
    description="The stories that are most like a story; it is none of them.",
    owner=OWNER,
    tags={"domain": "story", "kind": "matching", "max_age": ITEM_MAX_AGE},
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
