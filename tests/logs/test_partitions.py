from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from marketplace import DAY, Market, make_rows, to_table

from storyrec.errors import DataError, MissingPartition, SchemaMismatch
from storyrec.logs.partitions import (
    day_number,
    encode,
    find_gap,
    list_days,
    list_files,
    partition_key,
    read_days,
    read_partition,
    write_partition,
)
from storyrec.schema import STORIES, TABLES

KEY = "impressions/dt=2026-03-05/part-0.parquet"


@pytest.mark.parametrize("table", TABLES)
def test_what_is_written_is_read_back(market: Market, table: str) -> None:
    rows = to_table(table, make_rows(DAY)[table])
    write_partition(market.logs, table, DAY, rows)
    assert read_partition(market.logs, table, DAY).equals(rows)
    assert list_days(market.logs, table) == [DAY]
    assert market.logs.list() == [f"{table}/dt=2026-03-05/part-0.parquet"]


def test_a_missing_day_names_the_days_around_it(market: Market) -> None:
    rows = to_table("impressions", make_rows(DAY)["impressions"])
    for offset in (-2, -1, 4):
        write_partition(market.logs, "impressions", DAY + timedelta(days=offset), rows)
    with pytest.raises(MissingPartition, match="2026-03-03, 2026-03-04, 2026-03-09"):
        read_partition(market.logs, "impressions", DAY)


def test_files_in_other_folders_are_no_part_of_a_day(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    key = partition_key("product_clicks", DAY)
    rows = market.logs.read(key)
    for other in (f"product_clicks/old/dt={DAY}/part-0.parquet", f"product_clicks/dt={DAY}/_tries/part-0.parquet"):
        market.logs.write(other, rows)
    assert list_files(market.logs, "product_clicks") == {DAY: [key]}
    assert read_partition(market.logs, "product_clicks", DAY).num_rows == 120
    assert read_days(market.logs, "product_clicks", [DAY]).table.num_rows == 120


def test_a_missing_first_file_is_a_gap(market: Market) -> None:
    keys = [f"impressions/dt={DAY}/part-{number}.parquet" for number in (1, 2)]
    gap = find_gap(market.logs, "impressions", DAY, keys=keys)
    assert gap is not None
    assert gap.found == "1 of the day's files are missing: part-0.parquet"


def test_a_corrupt_file_is_named(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    market.logs.write(KEY, market.logs.read(KEY)[:-20])
    with pytest.raises(DataError, match=KEY):
        read_partition(market.logs, "impressions", DAY)


def test_every_wrong_column_is_named_with_found_and_expected_type(market: Market) -> None:
    rows = to_table("impressions", make_rows(DAY)["impressions"])
    rows = rows.set_column(0, "user_id", rows["user_id"].cast(pa.string())).drop_columns(["clicked"])
    market.logs.write(KEY, encode(rows))
    with pytest.raises(SchemaMismatch) as caught:
        read_partition(market.logs, "impressions", DAY)
    assert caught.value.found == "column 'user_id' has type string, such as '1'; column 'clicked' is missing"
    assert caught.value.expected == "user_id: int64; clicked: bool"
    assert caught.value.where.endswith(KEY)


@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_aware_timestamps_of_another_unit_become_microseconds(market: Market, unit: str) -> None:
    rows = to_table("impressions", make_rows(DAY)["impressions"])
    raw = rows.set_column(2, "shown_at", rows["shown_at"].cast(pa.timestamp(unit, "UTC")))
    market.logs.write(KEY, encode(raw))
    assert read_partition(market.logs, "impressions", DAY).equals(rows)


def test_timestamps_that_would_lose_digits_or_have_no_zone_are_refused(market: Market) -> None:
    rows = to_table("impressions", make_rows(DAY)["impressions"])
    odd = pa.array(np.arange(rows.num_rows) * 1_000 + 1, pa.timestamp("ns", "UTC"))
    for column in (odd, rows["shown_at"].cast(pa.timestamp("us"))):
        market.logs.write(KEY, encode(rows.set_column(2, "shown_at", column)))
        with pytest.raises(SchemaMismatch, match=r"'shown_at' has type timestamp\[(ns, tz=UTC|us)\]"):
            read_partition(market.logs, "impressions", DAY)


def test_float16_covers_null_lists_and_extra_columns_are_read(market: Market) -> None:
    rows = to_table("stories", make_rows(DAY)["stories"])
    halves = [None if c is None else np.array(c, np.float16) for c in rows["cover"].to_pylist()]
    mounted = rows["mounted_product_ids"].to_pylist()
    mounted[3] = None
    raw = (
        rows.set_column(2, "cover", pa.array(halves, pa.list_(pa.float16())))
        .set_column(6, "mounted_product_ids", pa.array(mounted, pa.list_(pa.int64())))
        .append_column("editor", pa.array(["x"] * rows.num_rows))
    )
    market.logs.write(partition_key("stories", DAY), encode(raw))
    read = read_partition(market.logs, "stories", DAY)
    assert read.schema.equals(STORIES)
    assert read["cover"][1].as_py() == halves[1].astype(np.float32).tolist()
    assert read["cover"][0].as_py() is None
    assert read["mounted_product_ids"].to_pylist() == [*mounted[:3], [], *mounted[4:]]
    assert read_days(market.logs, "stories", [DAY]).dropped == ("editor",)


def test_many_days_keep_their_order_though_their_layouts_differ(market: Market) -> None:
    days = [date(2026, 3, 1) + timedelta(days=i) for i in range(4)]
    for day in days:
        rows = to_table("product_clicks", make_rows(day)["product_clicks"])
        if day.day % 2:
            rows = rows.set_column(0, "user_id", rows["user_id"].cast(pa.int32()))
        market.logs.write(partition_key("product_clicks", day), encode(rows))
    read = read_days(market.logs, "product_clicks", days)
    expected = [to_table("product_clicks", make_rows(day)["product_clicks"]) for day in days]
    assert read.table.equals(pa.concat_tables(expected))
    assert read.day_B.tolist() == [day_number(day) for day in days for _ in range(120)]


def test_unreadable_days_are_left_out_and_reported(market: Market) -> None:
    days = market.write_days(date(2026, 3, 1), 4)
    rows = to_table("impressions", make_rows(days[1])["impressions"])
    market.logs.write(partition_key("impressions", days[1]), encode(rows.drop_columns(["clicked"])))
    market.logs.write(partition_key("impressions", days[2]), b"PAR1 or not")
    read = read_days(market.logs, "impressions", days)
    assert set(read.day_B) == {day_number(days[0]), day_number(days[3])}
    assert isinstance(read.problems[days[1]], SchemaMismatch)
    assert "dt=2026-03-02" in str(read.problems[days[1]])
    assert "dt=2026-03-03" in str(read.problems[days[2]])
    assert read.broken_columns == {days[1]: ("clicked",)}
