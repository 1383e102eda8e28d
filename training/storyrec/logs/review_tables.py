"""Reviews of two categories as tables of the log contract.

What a story's buyers also bought among the products is what it mounts. Reviews know only the day, so
all times are midnight UTC. When an item came out is unknown: a story is published on the first day it
is shown to anyone, be it a click or a non-click; a product on the day of its first review, or when
the first story that mounts it is published. Items without a title are left out with their reviews.

Shapes: C = clicks, M = non-clicks, I = impressions, N = items of a domain, P = pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.errors import DataError
from storyrec.logs.negatives import sample_negatives
from storyrec.logs.review_files import Description, Descriptions, Reviews
from storyrec.schema import TABLES

Ints = npt.NDArray[np.int64]

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class ReviewLogs:
    """What an import makes.

    Attributes:
        tables: for every table of the contract its rows and the day of each, in days since 1970.
        ids: the source's ids of users, stories, products and categories; a place + 1 is the id in the logs.
        counts: what came in, and what was left out.
    """

    tables: Mapping[str, tuple[pa.Table, Ints]]
    ids: Mapping[str, Sequence[str]]
    counts: Mapping[str, Any]


@dataclass(frozen=True)
class _Clicks:
    """Positions of users and items, and days, of one domain's clicks, [C] each, ordered by day."""

    user_C: Ints
    item_C: Ints
    day_C: Ints


def make_logs(
    story_reviews: Reviews,
    story_texts: Descriptions,
    product_reviews: Reviews,
    product_texts: Descriptions,
    *,
    negatives_per_click: int,
    seed: int,
) -> ReviewLogs:
    """Turn the reviews of two categories into logs.

    Raises:
        DataError: no review of an item with a title is left.
    """
    users = sorted(set(story_reviews.users).union(product_reviews.users))
    stories = _titled(story_texts, names=story_reviews.items)
    mounted = {name for story in stories.values() for name in story.related}
    products = _titled(product_texts, names=sorted(mounted.union(product_reviews.items)))
    clicks = _clicks(story_reviews, users=users, items=list(stories))
    product_clicks = _clicks(product_reviews, users=users, items=list(products))
    for role, kept, reviews, texts in (
        ("target", clicks, story_reviews, story_texts),
        ("source", product_clicks, product_reviews, product_texts),
    ):
        if not len(kept.day_C):
            raise DataError(
                f"no review of the {role} category is left",
                expected="items that have reviews, and a title or a brand in the meta file",
                where=f"{len(reviews.day_C)} reviews of {len(reviews.items)} items; the meta file describes "
                f"{len(texts.items)} of the wanted items",
                remedy="take the reviews and the meta file of the same category",
            )
    click_M, story_M = sample_negatives(
        clicks.user_C, clicks.item_C, clicks.day_C, per_click=negatives_per_click, rng=np.random.default_rng([seed, 1])
    )
    product_row = {name: row for row, name in enumerate(products)}
    mounts = [[product_row[name] for name in story.related if name in product_row] for story in stories.values()]
    story_day_N = _first_days(
        np.concatenate([clicks.item_C, story_M]),
        np.concatenate([clicks.day_C, clicks.day_C[click_M]]),
        num_items=len(stories),
    )
    pair_story_P = np.repeat(np.arange(len(mounts)), [len(rows) for rows in mounts])
    pair_product_P = np.array([row for rows in mounts for row in rows], np.int64)
    product_day_N = _first_days(
        np.concatenate([product_clicks.item_C, pair_product_P]),
        np.concatenate([product_clicks.day_C, story_day_N[pair_story_P]]),
        num_items=len(products),
    )
    categories = sorted({product.category for product in products.values()})
    category_id = {name: row + 1 for row, name in enumerate(categories)}
    impressions, impression_day_I = _impressions(clicks, click_M, story_M)
    tables = {
        "impressions": (impressions, impression_day_I),
        "product_clicks": (
            _table(
                "product_clicks",
                user_id=product_clicks.user_C + 1,
                product_id=product_clicks.item_C + 1,
                clicked_at=product_clicks.day_C * DAY_US,
            ),
            product_clicks.day_C,
        ),
        "stories": (
            _table(
                "stories",
                story_id=np.arange(1, len(stories) + 1),
                source=["other"] * len(stories),
                mounted_product_ids=[[row + 1 for row in rows] for rows in mounts],
                **_description_columns(stories, story_day_N),
            ),
            story_day_N,
        ),
        "products": (
            _table(
                "products",
                product_id=np.arange(1, len(products) + 1),
                category_id=[category_id[product.category] for product in products.values()],
                **_description_columns(products, product_day_N),
            ),
            product_day_N,
        ),
    }
    negatives_C = np.bincount(click_M, minlength=len(clicks.day_C))
    days = np.concatenate([clicks.day_C, product_clicks.day_C])
    counts = {
        "users": len(users),
        "stories": len(stories),
        "products": len(products),
        "pairs": len(pair_story_P),
        "story_clicks": len(clicks.day_C),
        "impressions": impressions.num_rows,
        "product_clicks": len(product_clicks.day_C),
        "first_day": str(day_of(days.min())),
        "last_day": str(day_of(days.max())),
        "clicks_with_fewer_negatives": int((negatives_C < negatives_per_click).sum()),
        "left_out": {
            "stories_without_title": len(story_reviews.items) - len(stories),
            "story_clicks": len(story_reviews.day_C) - len(clicks.day_C),
            "products_without_title": len(set(product_reviews.items).difference(products)),
            "product_clicks": len(product_reviews.day_C) - len(product_clicks.day_C),
        },
    }
    ids = {"users": users, "stories": list(stories), "products": list(products), "categories": categories}
    return ReviewLogs(tables, ids, counts)


def day_of(day: int) -> date:
    """A day as days since 1970."""
    return date(1970, 1, 1) + timedelta(days=int(day))


def _titled(texts: Descriptions, *, names: Sequence[str]) -> dict[str, Description]:
    """The descriptions of those of the named items that have a title, in the order of the names."""
    return {name: texts.items[name] for name in names if name in texts.items and texts.items[name].title}


def _clicks(reviews: Reviews, *, users: Sequence[str], items: Sequence[str]) -> _Clicks:
    """The reviews of the given items."""
    user_row = {name: row for row, name in enumerate(users)}
    item_row = {name: row for row, name in enumerate(items)}
    user_of = np.array([user_row[name] for name in reviews.users], np.int64)
    item_of = np.array([item_row.get(name, -1) for name in reviews.items], np.int64)
    kept_C = item_of[reviews.item_C] >= 0
    return _Clicks(user_of[reviews.user_C[kept_C]], item_of[reviews.item_C[kept_C]], reviews.day_C[kept_C])


def _first_days(item_C: Ints, day_C: Ints, *, num_items: int) -> Ints:
    """The first day of each item, [N]; every item is there at least once."""
    first_N = np.full(num_items, np.iinfo(np.int64).max)
    np.minimum.at(first_N, item_C, day_C)
    return first_N


def _impressions(clicks: _Clicks, click_M: Ints, story_M: Ints) -> tuple[pa.Table, Ints]:
    """Each click, then its non-clicks, all of one request; and the day of each row."""
    num_clicks = len(clicks.day_C)
    request_I = np.concatenate([np.arange(num_clicks), click_M])
    order = np.argsort(request_I, kind="stable")
    request_I = request_I[order]
    names = [
        f"{user + 1}-{story + 1}-{day_of(day)}"
        for user, story, day in zip(clicks.user_C, clicks.item_C, clicks.day_C, strict=True)
    ]
    day_I = clicks.day_C[request_I]
    table = _table(
        "impressions",
        user_id=clicks.user_C[request_I] + 1,
        story_id=np.concatenate([clicks.item_C, story_M])[order] + 1,
        shown_at=day_I * DAY_US,
        clicked=(np.arange(len(order)) < num_clicks)[order],
        request_id=pa.array(names, pa.string()).take(pa.array(request_I)),
    )
    return table, day_I


def _description_columns(items: Mapping[str, Description], day_N: Ints) -> dict[str, Any]:
    return {
        "title": [item.title for item in items.values()],
        "cover": [None] * len(items),
        "cover_uri": [item.image for item in items.values()],
        "published_at": day_N * DAY_US,
    }


def _table(table: str, /, **columns: Any) -> pa.Table:
    arrays = []
    for field in TABLES[table]:
        column = columns[field.name]
        arrays.append(column if isinstance(column, pa.Array) else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=TABLES[table])
