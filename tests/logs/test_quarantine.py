from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import spoil
from marketplace import DAY, Market, make_rows

from storyrec.errors import ConfigError, DataError, SchemaMismatch
from storyrec.logs.known import read_pairs
from storyrec.logs.partitions import QUARANTINE, VALIDATED, partition_key, quarantine_schema, read_partition
from storyrec.logs.quarantine import list_quarantine, replay
from storyrec.logs.reports import read_report, write_report
from storyrec.logs.validate import validate_logs


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A validated day: one story without a title, four impressions of it, and a duplicate impression."""
    market = Market(tmp_path_factory.mktemp("market"))
    rows = make_rows(DAY)
    rows["stories"].append(spoil("stories", lambda row: row.update(title=None)))
    new = [spoil("impressions", lambda row, u=u: row.update(user_id=u, story_id=900)) for u in range(901, 905)]
    rows["impressions"] += [*new, rows["impressions"][1]]
    market.write(DAY, rows)
    validate_logs(market.config, day=DAY)
    return {key: market.work.read(key) for key in market.work.list()}


@pytest.fixture
def market(validated: dict[str, bytes], tmp_path: Path) -> Market:
    market = Market(tmp_path)
    for key, content in validated.items():
        market.work.write(key, content)
    return market


def held(market: Market, table: str) -> pa.Table:
    return read_partition(market.work, table, DAY, prefix=QUARANTINE, schema=quarantine_schema(table))


def clean(market: Market, table: str) -> pa.Table:
    return read_partition(market.work, table, DAY, prefix=VALIDATED)


def save_corrected(market: Market, path: Path, table: str, **values: Any) -> Path:
    """Correct the quarantined rows with pandas, as a person would."""
    frame = pd.read_parquet(Path(market.work.url) / partition_key(table, DAY, prefix=QUARANTINE))
    frame.assign(**values).to_parquet(path)
    return path


def test_the_list_names_day_table_rule_and_examples(market: Market) -> None:
    found = list_quarantine(market.work)
    assert [(rows.day, rows.table, rows.rule, rows.count) for rows in found] == [
        (DAY, "stories", "title_present", 1),
        (DAY, "impressions", "impression_once", 1),
        (DAY, "impressions", "story_id_known", 4),
    ]
    assert found[0].says == "title is not null"
    assert found[0].examples[0]["story_id"] == 900
    assert "cover" not in found[0].examples[0]
    assert [row["user_id"] for row in found[2].examples] == [901, 902, 903]
    assert list_quarantine(market.work, day=DAY + timedelta(days=1)) == []


def test_corrected_rows_go_back_and_what_depends_on_them_follows(market: Market, tmp_path: Path) -> None:
    corrected = save_corrected(market, tmp_path / "corrected.parquet", "stories", title="now it has one")
    done = replay(market.config, day=DAY, table="stories", corrected=corrected)
    assert (done.accepted, done.rejected) == (1, {})
    assert "build_features" in done.next_step
    assert clean(market, "stories").num_rows == 31
    assert clean(market, "stories")["title"][-1].as_py() == "now it has one"
    assert not market.work.exists(partition_key("stories", DAY, prefix=QUARANTINE))
    assert 900 in read_pairs(market.work, "stories")[0]

    # the story is known now; the duplicate stays one
    done = replay(market.config, day=DAY, table="impressions")
    assert (done.accepted, done.rejected) == (4, {"impression_once": 1})
    assert clean(market, "impressions")["user_id"].to_pylist()[-4:] == [901, 902, 903, 904]
    assert held(market, "impressions")["rule"].to_pylist() == ["impression_once"]
    report = read_report(market.work, DAY)
    assert report is not None
    assert (report.tables["impressions"].rows, report.tables["impressions"].valid) == (245, 244)
    assert report.tables["impressions"].quarantined == {"impression_once": 1}
    assert report.tables["impressions"].rules["story_id_known"].status == "passed"

    # once more changes nothing
    before = market.files()
    again = replay(market.config, day=DAY, table="impressions")
    assert (again.accepted, again.next_step) == (0, "nothing changed")
    assert market.files() == before


def test_rows_that_are_still_bad_stay_with_their_new_rule(market: Market, tmp_path: Path) -> None:
    before = clean(market, "stories")
    corrected = save_corrected(market, tmp_path / "c.parquet", "stories", title="a title", source="tv")
    done = replay(market.config, day=DAY, table="stories", corrected=corrected)
    assert (done.accepted, done.rejected) == (0, {"source_known": 1})
    assert clean(market, "stories").equals(before)
    assert held(market, "stories").select(["title", "source", "rule"]).to_pylist() == [
        {"title": "a title", "source": "tv", "rule": "source_known"}
    ]


def test_a_row_that_is_already_there_is_no_second_time_put_back(market: Market, tmp_path: Path) -> None:
    corrected = save_corrected(market, tmp_path / "c.parquet", "stories", title="a title", story_id=2)
    done = replay(market.config, day=DAY, table="stories", corrected=corrected)
    assert (done.accepted, done.rejected) == (0, {"story_once": 1})


def test_rows_that_are_put_back_one_after_the_other_are_all_there(market: Market, tmp_path: Path) -> None:
    num_clean = clean(market, "impressions").num_rows
    for number, user in enumerate((902, 904)):
        frame = pd.read_parquet(Path(market.work.url) / partition_key("impressions", DAY, prefix=QUARANTINE))
        frame.loc[frame.user_id == user, "story_id"] = 1
        frame.to_parquet(tmp_path / "c.parquet")
        assert replay(market.config, day=DAY, table="impressions", corrected=tmp_path / "c.parquet").accepted == 1
        assert clean(market, "impressions").num_rows == num_clean + number + 1
    assert {902, 904} <= set(clean(market, "impressions")["user_id"].to_pylist())


def test_a_stopped_days_rows_are_not_put_back(market: Market) -> None:
    report = read_report(market.work, DAY)
    assert report is not None
    write_report(market.work, report.model_copy(update={"status": "stopped", "reasons": ("too few rows",)}))
    before = market.files()
    with pytest.raises(DataError, match="2026-03-05 is stopped: too few rows"):
        replay(market.config, day=DAY, table="impressions")
    assert market.files() == before


def _without_title(path: Path, market: Market) -> None:
    pq.write_table(held(market, "stories").drop_columns(["title"]), path)


def _too_few(path: Path, market: Market) -> None:
    pq.write_table(held(market, "stories").slice(0, 0), path)


def _no_parquet(path: Path, market: Market) -> None:
    path.write_text("story_id,title\n900,tea\n")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_without_title, SchemaMismatch, "column 'title' is missing"),
        (_too_few, DataError, "the file holds 0 rows, the quarantine 1"),
        (_no_parquet, DataError, "the corrected rows cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_changes(
    market: Market, tmp_path: Path, make: Callable[[Path, Market], None], error: type[Exception], message: str
) -> None:
    path = tmp_path / "corrected.parquet"
    make(path, market)
    before = market.files()
    with pytest.raises(error, match=message):
        replay(market.config, day=DAY, table="stories", corrected=path)
    assert market.files() == before


def test_only_validated_days_and_known_tables_can_be_replayed(market: Market) -> None:
    with pytest.raises(DataError, match="2026-03-04 was not validated"):
        replay(market.config, day=DAY - timedelta(days=1), table="stories")
    with pytest.raises(DataError, match="no row of 'products' is quarantined on 2026-03-05"):
        replay(market.config, day=DAY, table="products")
    with pytest.raises(ConfigError, match="'story' is no table"):
        replay(market.config, day=DAY, table="story")
