"""A fault for every row rule: what to change in a clean row so that this rule is broken and no other."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
from marketplace import DAY, Row, at, cover, make_rows

Fault = Callable[[Row], Any]

FRESH: dict[str, Row] = {
    "products": {"product_id": 900},
    "stories": {"story_id": 900},
    "impressions": {"user_id": 900, "request_id": "fresh"},
    "product_clicks": {"user_id": 900},
}
"""What makes a copy of a clean row a new one."""


def spoil(table: str, fault: Fault) -> Row:
    """A new row that is clean but for the fault."""
    row = {**make_rows(DAY)[table][1], **FRESH[table]}
    fault(row)
    return row


def put(**values: Any) -> Fault:
    return lambda row: row.update(values)


def copy_of(table: str, **values: Any) -> Fault:
    return lambda row: row.update({**make_rows(DAY)[table][1], **values})


def _with(value: float) -> list[float]:
    return [value, *cover(1)[1:]]


_ITEM: dict[str, list[Fault]] = {
    "title_present": [put(title=None)],
    "title_not_blank": [put(title=""), put(title=" \t\u3000\n")],
    "cover_width": [put(cover=cover(1)[:-1]), put(cover=[])],
    "cover_finite": [put(cover=_with(np.nan)), put(cover=_with(np.inf)), put(cover=_with(None))],  # type: ignore[arg-type]
    "cover_unit_norm": [put(cover=[0.0] * 512), put(cover=[1.004 * x for x in cover(1)])],
    "published_at_present": [put(published_at=None)],
    "published_at_not_after_day": [put(published_at=at(DAY + timedelta(days=1), hour=0))],
}

FAULTS: dict[str, dict[str, list[Fault]]] = {
    "products": {
        "product_id_present": [put(product_id=None)],
        "product_id_positive": [put(product_id=0), put(product_id=-5)],
        **_ITEM,
        "product_once": [copy_of("products", title="another title")],
    },
    "stories": {
        "story_id_present": [put(story_id=None)],
        "story_id_positive": [put(story_id=0), put(story_id=-5)],
        **_ITEM,
        "source_present": [put(source=None)],
        "source_known": [put(source="tv"), put(source="UGV")],
        "story_once": [copy_of("stories")],
        "mounted_products_known": [put(mounted_product_ids=[1, 777]), put(mounted_product_ids=[None])],
    },
    "impressions": {
        "user_id_present": [put(user_id=None)],
        "user_id_positive": [put(user_id=0)],
        "story_id_present": [put(story_id=None)],
        "story_id_positive": [put(story_id=-1)],
        "shown_at_present": [put(shown_at=None)],
        "shown_at_inside_day": [put(shown_at=at(DAY, hour=24)), put(shown_at=at(DAY, hour=0, second=-1))],
        "clicked_present": [put(clicked=None)],
        "impression_once": [copy_of("impressions", clicked=True)],
        "story_id_known": [put(story_id=777)],
    },
    "product_clicks": {
        "user_id_present": [put(user_id=None)],
        "user_id_positive": [put(user_id=-7)],
        "product_id_present": [put(product_id=None)],
        "product_id_positive": [put(product_id=0)],
        "clicked_at_present": [put(clicked_at=None)],
        "clicked_at_inside_day": [put(clicked_at=at(DAY - timedelta(days=1)))],
        "click_once": [copy_of("product_clicks")],
        "product_id_known": [put(product_id=777)],
    },
}
