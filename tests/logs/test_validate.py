import time
from collections.abc import Callable
from datetime import date, timedelta

import pytest
from faults import FAULTS, spoil
from marketplace import DAY, Market, Row, at, make_rows, to_table

from full_disk import full_disk
from s3_server import S3Server
from storyrec.config import Config, Locations
from storyrec.errors import DataError, DayStopped, MissingPartition, SchemaMismatch, StorageError
from storyrec.logs.known import CATALOG_IDS, read_pairs
from storyrec.logs.partitions import (
    QUARANTINE,
    VALIDATED,
    encode,
    list_days,
    partition_key,
    quarantine_schema,
    read_partition,
    write_partition,
)
from storyrec.logs.reports import ValidationReport, read_report
from storyrec.logs.validate import catch_up, validate_logs
from storyrec.schema import TABLES

FIRST = DAY - timedelta(days=4)


def report_of(market: Market, day: date) -> ValidationReport:
    report = read_report(market.work, day)
    assert report is not None
    return report


def test_clean_days_pass_whole_and_a_rerun_changes_nothing(market: Market) -> None:
    days = market.write_days(FIRST, 5)
    report = validate_logs(market.config, day=days[-1])
    assert report.status == "valid"
    assert not report.caught_up
    assert report == report_of(market, days[-1])
    assert {t: (r.rows, r.valid) for t, r in report.tables.items()} == {
        "products": (40, 40),
        "stories": (30, 30),
        "impressions": (240, 240),
        "product_clicks": (120, 120),
    }
    assert report.tables["impressions"].click_rate == 30 / 240
    assert not report.day_resolution
    statuses = {name: rule.status for t in report.tables.values() for name, rule in t.rules.items()}
    assert set(statuses.values()) == {"passed", "not judged"}
    # impressions have enough rows a day to be compared with the trailing days, product clicks have not
    assert report.tables["impressions"].rules["row_count_in_band"].status == "passed"
    assert report.tables["product_clicks"].rules["row_count_in_band"].status == "not judged"
    assert [report_of(market, day).caught_up for day in days] == [True] * 4 + [False]
    assert market.work.list(QUARANTINE) == []
    for table in TABLES:
        assert list_days(market.work, table, prefix=VALIDATED) == days
        for day in days:
            raw = read_partition(market.logs, table, day)
            assert read_partition(market.work, table, day, prefix=VALIDATED).equals(raw)
    assert len(read_pairs(market.work, "stories")[0]) == 5 * 30
    docs = market.work.list("data_docs/")
    assert "data_docs/dt=2026-03-05/index.html" in docs
    assert b"catch-up-2026-03-01-to-2026-03-04/index.html" in market.work.read("data_docs/index.html")
    assert b'href="index.html/' not in market.work.read("data_docs/index.html")

    files = market.files()
    validate_logs(market.config, day=days[-1])
    assert market.files() == files
    assert market.work.list("data_docs/") == docs


def test_bad_rows_are_set_aside_with_all_columns_and_their_rule(make_market: Callable[..., Market]) -> None:
    market = make_market(max_quarantined_share=0.5)
    rows = make_rows(DAY)
    expected: dict[str, dict[str, int]] = {}
    for table, faults in FAULTS.items():
        key = {"products": "product_id", "stories": "story_id"}.get(table, "user_id")
        for place, (rule, some) in enumerate(faults.items()):
            bad = spoil(table, some[0])
            bad[key] = 900 + place if bad[key] == 900 else bad[key]
            rows[table].append(bad)
            expected.setdefault(table, {})[rule] = 1
    market.write(DAY, rows)
    report = validate_logs(market.config, day=DAY)
    assert {table: dict(part.quarantined) for table, part in report.tables.items()} == expected
    for table, part in report.tables.items():
        raw = read_partition(market.logs, table, DAY)
        clean = raw.num_rows - len(FAULTS[table])
        assert read_partition(market.work, table, DAY, prefix=VALIDATED).equals(raw.slice(0, clean))
        bad_rows = read_partition(market.work, table, DAY, prefix=QUARANTINE, schema=quarantine_schema(table))
        assert bad_rows["rule"].to_pylist() == list(FAULTS[table])
        assert repr(bad_rows.drop_columns(["rule"]).to_pylist()) == repr(
            raw.slice(clean).to_pylist()
        )  # nan is not itself
        assert part.valid == clean
        assert {part.rules[rule].status for rule in FAULTS[table]} == {"violated"}


def test_a_rerun_forgets_ids_that_the_day_no_longer_has(market: Market) -> None:
    rows = make_rows(DAY)
    market.write(DAY, rows)
    validate_logs(market.config, day=DAY)
    market.write(DAY, {"products": rows["products"][:-1]})
    report = validate_logs(market.config, day=DAY)
    assert report.tables["product_clicks"].quarantined == {"product_id_known": 3}
    assert report.tables["stories"].quarantined == {}
    assert 40 not in read_pairs(market.work, "products")[0]


def test_a_stopped_day_leaves_the_valid_version_and_is_reported(market: Market) -> None:
    market.write_days(FIRST, 1)
    validate_logs(market.config, day=FIRST)
    before = {key: content for key, content in market.files().items() if key.startswith(VALIDATED)}
    market.write(FIRST, {"impressions": []})
    with pytest.raises(DayStopped, match="impressions: not_empty: the day has rows: 0, allowed: at least 1"):
        validate_logs(market.config, day=FIRST)
    report = report_of(market, FIRST)
    assert (report.status, report.tables["impressions"].rules["not_empty"].status) == ("stopped", "violated")
    assert {key: content for key, content in market.files().items() if key.startswith(VALIDATED)} == before


def test_a_day_far_from_the_trailing_days_is_stopped(market: Market) -> None:
    days = market.write_days(FIRST, 5)
    rows = make_rows(DAY, first_id=4_001)
    rows["impressions"] = [{**row, "clicked": True} for row in rows["impressions"][:90]]
    market.write(DAY, rows)
    with pytest.raises(DayStopped) as caught:
        validate_logs(market.config, day=DAY)
    assert "row_count_in_band: the number of rows is near that of the trailing days: 90, allowed: 96 to 600" in str(
        caught.value
    )
    assert "click_rate_in_band: the click rate is near that of the trailing days: 1, allowed: 0.0625 to 0.25" in str(
        caught.value
    )
    assert [day for day in days if report_of(market, day).status == "valid"] == days[:4]
    assert list_days(market.work, "impressions", prefix=VALIDATED) == days[:4]


def test_a_missing_column_is_a_broken_check_not_a_violated_one(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    rows = read_partition(market.logs, "impressions", DAY)
    market.logs.write(partition_key("impressions", DAY), encode(rows.drop_columns(["clicked"])))
    with pytest.raises(SchemaMismatch, match="column 'clicked' is missing"):
        validate_logs(market.config, day=DAY)
    report = report_of(market, DAY)
    assert report.status == "stopped"
    rules = report.tables["impressions"].rules
    assert {name for name, rule in rules.items() if rule.status == "broken"} == {
        "clicked_present",
        "click_rate_in_band",
    }
    assert {rule.status for rule in rules.values()} == {"broken", "not judged"}
    assert report.tables["stories"].rules["title_present"].status == "passed"
    assert market.work.list(VALIDATED) == []


def test_a_corrupt_file_stops_the_day_and_is_named(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    market.logs.write(partition_key("stories", DAY), b"not Parquet")
    with pytest.raises(DataError, match=r"stories/dt=2026-03-05/part-0\.parquet"):
        validate_logs(market.config, day=DAY)
    assert {rule.status for rule in report_of(market, DAY).tables["stories"].rules.values()} == {"broken"}
    assert market.work.list(VALIDATED) == []


def test_a_missing_day_writes_nothing(market: Market) -> None:
    market.write_days(FIRST, 2)
    with pytest.raises(MissingPartition, match="2026-03-01, 2026-03-02"):
        validate_logs(market.config, day=DAY)
    assert market.work.list() == []


def test_logs_that_are_nowhere_are_named(market: Market) -> None:
    with pytest.raises(MissingPartition, match="has no day at all") as caught:
        validate_logs(market.config, day=DAY)
    assert caught.value.where == market.logs.url


def test_a_catalog_without_titles_stops_the_day(market: Market) -> None:
    rows = make_rows(DAY)
    rows["stories"] = [{**row, "title": " "} for row in rows["stories"]]
    market.write(DAY, rows)
    with pytest.raises(
        DayStopped, match="stories: quarantined_share: few enough rows are quarantined: 1, allowed: at most"
    ):
        validate_logs(market.config, day=DAY)
    assert report_of(market, DAY).tables["stories"].quarantined == {"title_not_blank": 30}
    assert (
        len(read_partition(market.work, "stories", DAY, prefix=QUARANTINE, schema=quarantine_schema("stories"))) == 30
    )


def test_a_full_disk_is_one_clear_error_and_changes_nothing(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    with full_disk(20_000), pytest.raises(StorageError, match="File too large"):
        validate_logs(market.config, day=DAY)
    assert market.work.list() == []


def test_a_write_that_fails_midway_is_mended_by_a_rerun(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    validate_logs(market.config, day=DAY)
    files = market.files()
    blocked = partition_key("product_clicks", DAY, prefix=VALIDATED)
    market.work.delete(blocked)
    (market.work.folder / blocked).parent.rmdir()
    (market.work.folder / blocked).parent.write_text("a file where a folder must go")
    with pytest.raises(StorageError, match="cannot write this path"):
        validate_logs(market.config, day=DAY)
    assert read_report(market.work, DAY) is None  # no report: the day is not done
    (market.work.folder / blocked).parent.unlink()
    validate_logs(market.config, day=DAY)
    assert market.files() == files


def test_a_full_disk_leaves_the_old_partition(market: Market) -> None:
    market.write(DAY, make_rows(DAY))
    before = market.logs.read(partition_key("stories", DAY))
    rows = to_table("stories", make_rows(DAY, first_id=500)["stories"])
    with full_disk(20_000), pytest.raises(StorageError, match="File too large"):
        write_partition(market.logs, "stories", DAY, rows)
    assert market.logs.read(partition_key("stories", DAY)) == before


def tiny_day(day: date, number: int) -> dict[str, list[Row]]:
    """One new item a domain and day, and one event with each item of the last 30 days; all at midnight."""
    item: Row = {"title": "tea", "cover": None, "cover_uri": None, "published_at": at(day, hour=0)}
    recent = range(max(1, number - 29), number + 1)
    return {
        "products": [{**item, "product_id": number, "category_id": 1}],
        "stories": [{**item, "story_id": number, "source": "other", "mounted_product_ids": [number]}],
        "impressions": [
            {"user_id": 1, "story_id": s, "shown_at": at(day, hour=0), "clicked": s == number, "request_id": None}
            for s in recent
        ],
        "product_clicks": [{"user_id": 1, "product_id": s, "clicked_at": at(day, hour=0)} for s in recent],
    }


def test_hundreds_of_small_days_are_caught_up_at_once(market: Market) -> None:
    days = [FIRST - timedelta(days=300 - i) for i in range(300)]
    for number, day in enumerate(days, start=1):
        rows = tiny_day(day, number)
        if number == 100:
            rows = {"impressions": rows["impressions"][:-1]}  # its story and product are never published
        if number == 200:
            rows["stories"][0]["title"] = None  # stops the day
        market.write(day, rows)
    started = time.monotonic()
    assert catch_up(market.config, day=FIRST) == tuple(days)
    assert time.monotonic() - started < 30
    reports = dict(enumerate((report_of(market, day) for day in days), start=1))
    assert [number for number, report in reports.items() if report.status == "stopped"] == [200]
    assert all(report.day_resolution and report.caught_up for report in reports.values())
    assert {n: dict(r.tables["impressions"].quarantined) for n, r in reports.items() if n in (99, 101, 129, 130)} == {
        99: {},
        101: {"story_id_known": 1},
        129: {"story_id_known": 1},
        130: {},
    }
    lost = [n for n, r in reports.items() if r.tables["impressions"].quarantined and n != 200]
    assert lost == [*range(101, 130), *range(201, 230)]
    assert set(reports[100].tables) == {"impressions"}
    for table in CATALOG_IDS:
        assert list_days(market.work, table, prefix=VALIDATED) == [d for d in days if d not in (days[99], days[199])]
        assert sorted(read_pairs(market.work, table)[0]) == [n for n in range(1, 301) if n not in (100, 200)]
    assert catch_up(market.config, day=FIRST) == ()


def test_catching_up_at_once_is_what_day_by_day_gives(
    make_market: Callable[..., Market], tmp_path_factory: pytest.TempPathFactory
) -> None:
    at_once = make_market(max_quarantined_share=0.3)
    one_by_one = Market(tmp_path_factory.mktemp("daily"), max_quarantined_share=0.3)
    days = [FIRST + timedelta(days=i) for i in range(3)]
    for number, day in enumerate(days, start=1):
        rows = tiny_day(day, number)
        if number == 2:
            rows["stories"][0]["source"] = "tv"  # stopped; so a third of day 3's impressions lose their story
        for market in (at_once, one_by_one):
            market.write(day, rows)
    catch_up(at_once.config, day=DAY)
    for day in days:
        catch_up(one_by_one.config, day=day + timedelta(days=1))
    found = {key: content for key, content in at_once.files().items() if not key.startswith("reports/")}
    assert found == {key: content for key, content in one_by_one.files().items() if not key.startswith("reports/")}
    assert [report_of(at_once, day).status for day in days] == ["valid", "stopped", "stopped"]
    for day in days:
        a, b = (report_of(market, day).model_copy(update={"data_docs": ""}) for market in (at_once, one_by_one))
        assert a == b


def test_it_runs_on_s3(s3: S3Server) -> None:
    storage = s3.new_storage("market")
    root = storage.url
    locations = Locations(logs=f"{root}/logs", work=f"{root}/work", s3_endpoint=s3.endpoint)
    for day in (DAY - timedelta(days=1), DAY):
        for table, rows in make_rows(day, first_id=100 * day.day).items():
            write_partition(storage, table, day, to_table(table, rows), prefix="logs/")
    report = validate_logs(Config(locations=locations), day=DAY)
    assert report.status == "valid"
    assert list_days(storage, "stories", prefix="work/validated/") == [DAY - timedelta(days=1), DAY]
    assert storage.exists("work/data_docs/dt=2026-03-05/index.html")


def test_a_stopped_days_report_names_every_table_that_cannot_be_read_and_the_file(market: Market) -> None:
    days = market.write_days(FIRST, 5)
    clicks = to_table("product_clicks", make_rows(days[1])["product_clicks"]).rename_columns({"user_id": "user"})
    market.logs.write(partition_key("product_clicks", days[1]), encode(clicks))
    market.logs.write(partition_key("impressions", days[1]), b"no Parquet")
    catch_up(market.config, day=days[2])
    stopped = report_of(market, days[1])
    assert stopped.status == "stopped"
    impressions, product_clicks = stopped.reasons
    assert impressions.startswith("impressions: this file is no readable Parquet file")
    assert product_clicks.startswith("product_clicks: column 'user_id' is missing")
    assert impressions.endswith(f"; where: {market.logs.url}/{partition_key('impressions', days[1])}")
    assert product_clicks.endswith(f"; where: {market.logs.url}/{partition_key('product_clicks', days[1])}")
