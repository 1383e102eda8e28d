"""What the feature store holds: entities, feature views and the services other programs ask for.

The offline sources are Parquet partitions below the folder that STORYREC_FEATURES names (default:
`var/marketplace/work/features` beside this folder). Timestamps are microseconds, UTC.

A name without `_vN` is version 1. What was released stays as schemas.json has it; a change is a new
version beside the old one. Each view of items has a second one, `_by_model`: what each model that is online
says of an item, asked for by its version or as "current". Tags are what docs/feature-catalog.md and Feast's
UI show: of a field its shape, unit and an example (JSON); of a view its freshness and the log tables it comes
from.
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
EVERY_MODEL = "with each new champion, at most daily; a model's items come and go as a whole"

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


def _entity(name: str, key: str, kind: ValueType, meaning: str) -> Entity:
    return Entity(name=name, join_keys=[key], value_type=kind, description=meaning, owner=OWNER)


def _view(
    name: str, keys: list[Entity], fields: list[Field], source: FileSource | PushSource, meaning: str, **tags: str
) -> FeatureView:
    return FeatureView(
        name=name,
        entities=keys,
        ttl=NO_EXPIRY,
        schema=[*(KEY_FIELDS[key.name] for key in keys), *fields],
        source=source,
        online=True,
        description=meaning,
        owner=OWNER,
        tags=tags,
    )


def _sequence(domain: str, *, lineage: str) -> FeatureView:
    """A user's last clicks in one domain."""
    ids = _field(
        f"{domain}_ids",
        Array(Int64),
        f"The last {'stories' if domain == 'story' else 'products'} clicked, oldest first.",
        shape=f"1 to {SEQUENCE_LENGTH}",
        unit=f"{domain} ids",
        example="[17, 4, 233]",
    )
    times = _field(
        f"{domain}_clicked_us",
        Array(Int64),
        "When, entry by entry.",
        shape=f"as {domain}_ids",
        unit="epoch microseconds, UTC",
        example="[1773046800000000, 1773050400000000, 1773050400000250]",
    )
    return _view(
        f"user_{domain}_sequence",
        [user],
        [ids, times],
        _clicks(domain),
        f"A user's most recent {domain} clicks; one row a click, valid one microsecond after it.",
        domain=domain,
        kind="sequence",
        length=str(SEQUENCE_LENGTH),
        max_age=SEQUENCE_MAX_AGE,
        freshness=EVERY_DAY,
        lineage=lineage,
    )


def _of_items(
    name: str, item: Entity, fields: list[Field], *, meaning: str, by_model: str, kind: str, lineage: str
) -> tuple[FeatureView, FeatureView]:
    """A view of items twice: by the newest model that knows an item, and by each model that is online."""
    tags = {"domain": item.name, "kind": kind, "max_age": ITEM_MAX_AGE, "lineage": lineage}
    fields, second = [*fields, MODEL_VERSION], f"{name}_by_model"
    return (
        _view(name, [item], fields, _source(name), meaning, freshness=EVERY_CHAMPION, **tags),
        _view(second, [item, model], fields, _source(second), by_model, freshness=EVERY_MODEL, **tags),
    )


def _embedding(item: Entity) -> tuple[FeatureView, FeatureView]:
    """What a model's extractor yields for the items of one domain."""
    return _of_items(
        f"{item.name}_embedding",
        item,
        [EMBEDDING],
        meaning=f"What the champion's frozen {item.name} extractor yields; compare only within one model_version.",
        by_model=f"What a model's frozen {item.name} extractor yields; a row for each model that is online.",
        kind="embedding",
        lineage="stories" if item is story else "products",
    )


def _matches(
    item: Entity, *, meaning: str, stories: str, distances: str, lineage: str
) -> tuple[FeatureView, FeatureView]:
    """The stories nearest to the items of one domain."""
    ids = _field(
        "story_ids",
        Array(Int64),
        stories,
        shape="10 (match.num_stories)",
        unit="story ids",
        example="[233, 17, 4]",
    )
    away = _field(
        "distances",
        Array(Float32),
        distances,
        shape="as story_ids",
        unit="Euclidean, between matching vectors",
        example="[0.41, 0.44, 0.52]",
    )
    return _of_items(
        f"stories_for_{item.name}",
        item,
        [ids, away],
        meaning=meaning,
        by_model=f"{meaning} A row for each model that is online.",
        kind="matching",
        lineage=lineage,
    )


def _service(name: str, views: list[FeatureView], meaning: str, *, consumer: str = "other teams") -> FeatureService:
    tags = {"consumer": consumer, "owner": OWNER, "meaning": meaning}  # Feast's page of a service shows its tags alone
    return FeatureService(name=name, features=[*views], description=meaning, owner=OWNER, tags=tags)


def _services(name: str, views: tuple[FeatureView, FeatureView], meaning: str) -> tuple[FeatureService, ...]:
    """Version 1 by item alone, of the newest model that knows it; version 2 by item and model."""
    newest, by_model = views
    return (
        _service(f"{name}_v1", [newest], meaning),
        _service(f"{name}_v2", [by_model], f"{meaning[:-1]}, by one model."),
    )


user = _entity("user", "user_id", ValueType.INT64, "Who clicks stories and products.")
story = _entity("story", "story_id", ValueType.INT64, "A post, picture or video about merchandise.")
product = _entity("product", "product_id", ValueType.INT64, "Something to buy, which stories are about.")
model = _entity("model", "model", ValueType.STRING, "A published model, by its version; online also: current.")

KEY_FIELDS = {
    name: _field(key, Int64, meaning, shape="1", unit="id, > 0", example="42")
    for name, key, meaning in (
        ("user", "user_id", "Whose clicks."),
        ("story", "story_id", "Which story."),
        ("product", "product_id", "Which product."),
    )
}
KEY_FIELDS["model"] = _field(
    "model",
    String,
    'Whose row: a model that is online, or "current".',
    shape="1",
    unit="bundle version, 16 hex digits",
    example='"8c1f0a6b2e4d9713"',
)
EMBEDDING = _field(
    "embedding",
    Array(Float32),
    "Visual plus textual features.",
    shape="64",
    unit="none; Euclidean distances count",
    example="[0.31, -1.2, 0.07]",
)
MODEL_VERSION = _field(
    "model_version",
    String,
    "The champion whose extractors made it.",
    shape="1",
    unit="bundle version, 16 hex digits",
    example='"8c1f0a6b2e4d9713"',
)

user_story_sequence = _sequence("story", lineage="impressions")
user_product_sequence = _sequence("product", lineage="product_clicks")
story_embedding, story_embedding_by_model = _embedding(story)
product_embedding, product_embedding_by_model = _embedding(product)
stories_for_product, stories_for_product_by_model = _matches(
    product,
    meaning="The stories that match a product best.",
    stories="The nearest stories, nearest first.",
    distances="How far each story is from the product, ascending.",
    lineage="stories,products",
)
stories_for_story, stories_for_story_by_model = _matches(
    story,
    meaning="The stories that are most like a story; it is none of them.",
    stories="The nearest other stories, nearest first.",
    distances="How far each is, ascending.",
    lineage="stories",
)

ranker_v1 = _service(
    "ranker_v1",
    [user_story_sequence, user_product_sequence],
    "What the ranker reads for a request: both click sequences with their times.",
    consumer="storyrec",
)
user_interest_v1 = _service(
    "user_interest_v1",
    [user_story_sequence[["story_ids"]], user_product_sequence[["product_ids"]]],
    "What a user clicked lately, without times.",
)
story_embedding_v1, story_embedding_v2 = _services(
    "story_embedding",
    (story_embedding, story_embedding_by_model),
    "Story embeddings with the version of the model that made them.",
)
product_embedding_v1, product_embedding_v2 = _services(
    "product_embedding",
    (product_embedding, product_embedding_by_model),
    "Product embeddings with the version of the model that made them.",
)
stories_for_product_v1, stories_for_product_v2 = _services(
    "stories_for_product",
    (stories_for_product, stories_for_product_by_model),
    "Stories to show beside a product.",
)
stories_for_story_v1, stories_for_story_v2 = _services(
    "stories_for_story",
    (stories_for_story, stories_for_story_by_model),
    "Stories to show beside a story.",
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
