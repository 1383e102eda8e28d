"""What comes in and is no log of the contract: a clear error that names it, or a row in the quarantine."""

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from marketplace import DAY, Market, at, cover, make_rows, to_table

from storyrec.errors import DataError, SchemaMismatch
from storyrec.logs.partitions import encode, partition_key, quarantine_schema, read_partition
from storyrec.logs.validate import validate_logs

LARGE = 2**63
KEY = partition_key("product_clicks", DAY)


def with_column(market: Market, name: str, column: pa.Array) -> None:
    """A clean day whose product clicks have another column of this name."""
    market.write(DAY, make_rows(DAY))
    rows = to_table("product_clicks", make_rows(DAY)["product_clicks"])
    market.logs.write(KEY, encode(rows.set_column(rows.schema.get_field_index(name), name, column)))


def ids(first: object, kind: pa.DataType) -> pa.Array:
    """120 ids, of which only the sixth is odd."""
    rest = [type(first)(1) for _ in range(119)]
    return pa.array([*rest[:5], first, *rest[5:]], kind)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (ids(LARGE, pa.uint64()), rf"has type uint64 and cannot be cast without loss \(Integer value {LARGE}"),
        (pa.array([Decimal(LARGE)] * 120, pa.decimal128(20)), rf"has type decimal128\(20, 0\), such as '{LARGE}'"),
        (pa.array([None, "u-17"] * 60), "has type string, such as 'u-17'"),
        (pa.array([1.5] * 120), "has type double, such as '1.5'"),
    ],
)
def test_ids_that_are_no_int64_are_named_with_column_value_and_file(
    market: Market, column: pa.Array, message: str
) -> None:
    with_column(market, "user_id", column)
    with pytest.raises(SchemaMismatch, match=f"column 'user_id' {message}") as caught:
        validate_logs(market.config, day=DAY)
    assert caught.value.where == f"{market.logs.url}/{KEY}"
    assert caught.value.expected == "user_id: int64"
    assert market.work.list("validated/") == []


def test_unsigned_ids_within_int64_pass(market: Market) -> None:
    with_column(market, "user_id", ids(2**63 - 1, pa.uint64()))
    assert validate_logs(market.config, day=DAY).tables["product_clicks"].valid == 120
    assert (
        max(read_partition(market.work, "product_clicks", DAY, prefix="validated/")["user_id"].to_pylist()) == 2**63 - 1
    )


def times() -> pa.ChunkedArray:
    return to_table("product_clicks", make_rows(DAY)["product_clicks"])["clicked_at"]


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_times_in_another_unit_pass_where_nothing_is_lost(market: Market, unit: str) -> None:
    with_column(market, "clicked_at", times().cast(pa.timestamp(unit, "Asia/Shanghai")))
    assert validate_logs(market.config, day=DAY).tables["product_clicks"].valid == 120
    assert read_partition(market.work, "product_clicks", DAY, prefix="validated/")["clicked_at"].equals(times())


def test_nanoseconds_that_would_be_lost_are_an_error_that_says_so(market: Market) -> None:
    late = np.array(times().cast(pa.int64()).to_numpy() * 1_000)
    late[7] += 1
    with_column(market, "clicked_at", pa.array(late).cast(pa.timestamp("ns", "UTC")))
    message = rf"column 'clicked_at' .* cannot be cast without loss \(Casting .* would lose data: {late[7]}\)"
    with pytest.raises(SchemaMismatch, match=message) as caught:
        validate_logs(market.config, day=DAY)
    assert KEY in caught.value.where


def test_times_without_a_zone_are_refused(market: Market) -> None:
    with_column(market, "clicked_at", times().cast(pa.timestamp("us")))
    with pytest.raises(
        SchemaMismatch, match=r"has type timestamp\[us\] without a time zone: .* UTC is wanted"
    ) as caught:
        validate_logs(market.config, day=DAY)
    assert caught.value.expected == "clicked_at: timestamp[us, tz=UTC]"


def no_text(titles: pa.ChunkedArray) -> pa.Array:
    """Titles the first of which is bytes that are no UTF-8, which Parquet stores without a look."""
    said = pa.array([b"\xff\xfe tea", *(title.encode() for title in titles.to_pylist()[1:])])
    return pa.Array.from_buffers(pa.string(), len(said), said.buffers())


def test_titles_that_are_no_text_are_an_error_that_names_the_file(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    rows = to_table("stories", make_rows(DAY)["stories"])
    key = partition_key("stories", DAY)
    place = rows.schema.get_field_index("title")
    market.logs.write(key, encode(rows.set_column(place, "title", no_text(rows["title"]))))
    with pytest.raises(DataError, match="Invalid UTF8") as caught:
        validate_logs(market.config, day=DAY)
    assert caught.value.where == f"{market.logs.url}/{key}"
    assert market.work.list("validated/") == []
    market.write(DAY, make_rows(DAY))
    assert validate_logs(market.config, day=DAY).tables["stories"].valid == len(rows)


def test_bots_unknown_items_and_odd_covers_go_to_the_quarantine(make_market: Callable[..., Market]) -> None:
    market = make_market(max_quarantined_share=1.0)
    rows = make_rows(DAY)
    click = rows["product_clicks"][0]
    rows["product_clicks"] += [
        {**click, "user_id": 77, "clicked_at": at(DAY, hour=5) + timedelta(microseconds=i)} for i in range(10_000)
    ]
    rows["product_clicks"].append({**click, "user_id": 77, "clicked_at": at(DAY, hour=7)})  # at a human pace again
    rows["product_clicks"] += [{**click, "product_id": unknown} for unknown in (41, 2**63 - 1)]
    for place, odd in enumerate((np.nan, np.inf, -np.inf)):
        product = {**rows["products"][1], "product_id": 901 + place, "cover": [odd, *cover(1)[1:]]}
        rows["products"].append(product)
    market.write(DAY, rows)
    report = validate_logs(market.config, day=DAY)
    assert report.tables["products"].quarantined == {"cover_finite": 3}
    assert report.tables["product_clicks"].quarantined == {"product_id_known": 2, "user_at_human_pace": 10_000}
    assert report.tables["product_clicks"].valid == 121
    held = read_partition(
        market.work, "product_clicks", DAY, prefix="quarantine/", schema=quarantine_schema("product_clicks")
    )
    assert held["rule"].value_counts().to_pylist() == [
        {"values": "user_at_human_pace", "counts": 10_000},
        {"values": "product_id_known", "counts": 2},
    ]
