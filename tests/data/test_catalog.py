"""Catalogs: rows of ids, the newest row of an item, covers, and pairs."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from storyrec.data.catalog import Catalog, covers_of, mounted_pairs, newest_rows
from storyrec.errors import DataError
from storyrec.schema import COVER_WIDTH, PRODUCTS, STORIES

DAY_US = 86_400_000_000


def stories(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(
        [{"title": "t", "source": "ugv", "mounted_product_ids": []} | row for row in rows], STORIES
    )


def products(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([{"title": "t", "category_id": 1} | row for row in rows], PRODUCTS)


def catalog_of(table: pa.Table) -> Catalog:
    newest_N = newest_rows(table, before_us=2**62)
    has_cover_R, covers_KV = covers_of(table["cover"])
    visual_raw_RV = np.zeros((table.num_rows, COVER_WIDTH), np.float16)
    visual_raw_RV[has_cover_R] = covers_KV
    visual_raw_NV = np.concatenate([np.zeros((1, COVER_WIDTH), np.float16), visual_raw_RV[newest_N]])
    return Catalog.from_table(table, newest_N=newest_N, visual_raw_NV=visual_raw_NV)


def cover(value: float) -> list[float]:
    return [value] * COVER_WIDTH


def test_row_zero_is_padding_and_the_other_rows_are_sorted_by_id() -> None:
    catalog = catalog_of(
        stories(
            {"story_id": 9, "title": "nine", "cover": cover(0.5), "published_at": 3, "source": "mgi"},
            {"story_id": 4, "title": "four", "cover": None, "published_at": 2, "source": "ugv"},
            {"story_id": 7, "title": "seven", "cover": cover(-0.25), "published_at": 1, "source": "other"},
        )
    )
    assert catalog.item_ids_N.tolist() == [0, 4, 7, 9]
    assert list(catalog.titles) == ["", "four", "seven", "nine"]
    assert catalog.visual_raw_NV.dtype == np.float16
    assert catalog.visual_raw_NV.tolist() == [cover(0), cover(0), cover(-0.25), cover(0.5)]
    assert catalog.published_us_N.tolist() == [0, 2, 1, 3]
    assert catalog.sources_N.tolist() == [-1, 0, 5, 4]


def test_products_have_no_source() -> None:
    assert catalog_of(products({"product_id": 4, "published_at": 2})).sources_N.tolist() == [-1, -1]


def test_products_have_their_category_and_stories_none_yet() -> None:
    rows = products(
        {"product_id": 9, "category_id": 30, "published_at": 1}, {"product_id": 4, "category_id": 70, "published_at": 1}
    )
    assert catalog_of(rows).category_ids_N.tolist() == [0, 70, 30]
    assert catalog_of(stories({"story_id": 4, "published_at": 2})).category_ids_N.tolist() == [0, 0]


def test_a_story_has_the_category_of_its_first_pair() -> None:
    product_catalog = catalog_of(
        products(*({"product_id": id_, "category_id": id_ * 10, "published_at": 1} for id_ in (21, 22, 23)))
    )
    story_catalog = catalog_of(stories(*({"story_id": id_, "published_at": 1} for id_ in (4, 7, 9))))
    pairs_M2 = np.array([[1, 3], [3, 1], [3, 2]])  # story 4 mounts 23, story 9 mounts 21 and 22
    mounted = story_catalog.with_mounted_categories(pairs_M2, products=product_catalog)
    assert mounted.category_ids_N.tolist() == [0, 230, 0, 210]
    assert mounted.titles == story_catalog.titles
    assert not story_catalog.category_ids_N.any()


def test_rows_of_unknown_ids_are_zero() -> None:
    catalog = catalog_of(products(*({"product_id": id_, "published_at": 1} for id_ in (4, 7, 9))))
    assert catalog.rows([9, 4, 5, 100, -3, 0]).tolist() == [3, 1, 0, 0, 0, 0]
    assert catalog.rows(np.array([[7], [8]])).tolist() == [[2], [0]]
    assert int(catalog.rows(7)) == 2


def test_the_newest_row_wins_and_chunks_do_not_matter() -> None:
    old = products(
        {"product_id": 4, "title": "old four", "cover": cover(0.5), "published_at": 1},
        {"product_id": 5, "title": "old five", "cover": cover(0.25), "published_at": 2},
    )
    new = products(
        {"product_id": 6, "title": "new six", "cover": cover(1.0), "published_at": 3},
        {"product_id": 4, "title": "new four", "cover": cover(-0.5), "published_at": 1},
    )
    catalog = catalog_of(pa.concat_tables([old, new]))
    assert list(catalog.titles) == ["", "new four", "old five", "new six"]
    assert catalog.visual_raw_NV[:, 0].tolist() == [0, -0.5, 0.25, 1.0]


def test_a_cover_taken_back_is_gone() -> None:
    rows = products(
        {"product_id": 4, "cover": cover(0.5), "published_at": 1}, {"product_id": 4, "cover": None, "published_at": 1}
    )
    assert not catalog_of(rows).visual_raw_NV.any()


def test_items_published_later_are_left_out() -> None:
    rows = products({"product_id": 4, "published_at": DAY_US - 1}, {"product_id": 5, "published_at": DAY_US})
    assert newest_rows(rows, before_us=DAY_US).tolist() == [0]


def test_a_cover_of_another_width_is_an_error() -> None:
    with pytest.raises(DataError, match="512"):
        catalog_of(products({"product_id": 4, "cover": [1.0, 2.0], "published_at": 1}))


def test_pairs_are_rows_of_known_items_published_in_time() -> None:
    story_rows = stories(
        {"story_id": 9, "mounted_product_ids": [22, 21, 99, 22], "published_at": 1},
        {"story_id": 4, "mounted_product_ids": [], "published_at": 1},
        {"story_id": 7, "mounted_product_ids": [23, 21], "published_at": 1},
        {"story_id": 8, "mounted_product_ids": [21], "published_at": 1},
    )
    product_catalog = catalog_of(products(*({"product_id": i, "published_at": i} for i in (21, 22, 23))))
    pairs_M2 = mounted_pairs(
        story_rows,
        story_catalog=catalog_of(story_rows.slice(0, 3)),  # 4, 7, 9: story 8 is unknown
        product_catalog=product_catalog,
        products_before_us=23,
    )
    assert pairs_M2.tolist() == [[2, 1], [3, 1], [3, 2]]


def test_pairs_of_nothing() -> None:
    empty = mounted_pairs(
        stories({"story_id": 1, "published_at": 1}),
        story_catalog=catalog_of(stories({"story_id": 1, "published_at": 1})),
        product_catalog=catalog_of(products({"product_id": 1, "published_at": 1})),
        products_before_us=10,
    )
    assert empty.shape == (0, 2)
