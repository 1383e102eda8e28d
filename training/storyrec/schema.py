"""The log contract: tables, columns and types, and the words every module shares.

A data root holds `<table>/dt=YYYY-MM-DD/*.parquet`. Catalog partitions (stories, products) hold
what is new or changed that day. A story click is an impression with `clicked` = true.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

COVER_WIDTH = 512
SOURCES = ("ugv", "mgv", "segv", "ugi", "mgi", "other")
TIMESTAMP = pa.timestamp("us", tz="UTC")


class Domain(enum.IntEnum):
    """Where an item lives. Paper: Sec. III-B, z."""

    STORY = 0
    PRODUCT = 1


IMPRESSIONS = pa.schema(
    [
        ("user_id", pa.int64()),
        ("story_id", pa.int64()),
        ("shown_at", TIMESTAMP),
        ("clicked", pa.bool_()),
        ("request_id", pa.string()),
    ]
)
PRODUCT_CLICKS = pa.schema([("user_id", pa.int64()), ("product_id", pa.int64()), ("clicked_at", TIMESTAMP)])
STORIES = pa.schema(
    [
        ("story_id", pa.int64()),
        ("title", pa.string()),
        ("cover", pa.list_(pa.float32())),
        ("cover_uri", pa.string()),
        ("source", pa.string()),
        ("published_at", TIMESTAMP),
        ("mounted_product_ids", pa.list_(pa.int64())),
    ]
)
PRODUCTS = pa.schema(
    [
        ("product_id", pa.int64()),
        ("title", pa.string()),
        ("cover", pa.list_(pa.float32())),
        ("cover_uri", pa.string()),
        ("category_id", pa.int64()),
        ("published_at", TIMESTAMP),
    ]
)

TRUTH = pa.schema(
    [
        ("user_id", pa.int64()),
        ("story_id", pa.int64()),
        ("request_id", pa.string()),
        ("shown_at", TIMESTAMP),
        ("probability", pa.float32()),
    ]
)
"""The true click probabilities of a simulated marketplace, apart from its logs."""

TABLES: Mapping[str, pa.Schema] = MappingProxyType(
    {
        "products": PRODUCTS,
        "stories": STORIES,
        "impressions": IMPRESSIONS,
        "product_clicks": PRODUCT_CLICKS,
    }
)
"""Every table of the log contract; catalogs first, as a day's rules need them first."""

EVENT_TIME: Mapping[str, str] = MappingProxyType(
    {
        "products": "published_at",
        "stories": "published_at",
        "impressions": "shown_at",
        "product_clicks": "clicked_at",
    }
)
"""The column that says when a row happened."""
