"""What every scenario does to the logs, and what the log rules make of it."""

from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pyarrow.dataset as ds
import pytest

from storyrec.config import Config, Locations
from storyrec.errors import DayStopped
from storyrec.logs.reports import ValidationReport, read_report
from storyrec.logs.simulate import simulate
from storyrec.logs.simulate.scenarios import BOT_EVENTS_AN_HOUR, FIRST_BOT_ID, NUM_BOTS, SCENARIOS
from storyrec.logs.validate import validate_logs
from storyrec.storage import FolderStorage

FIRST_DAY, NUM_DAYS = date(2026, 3, 1), 5
LAST, BEFORE = FIRST_DAY + timedelta(days=NUM_DAYS - 1), FIRST_DAY + timedelta(days=NUM_DAYS - 2)

Make = Callable[[str], Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    made: dict[str, Path] = {}

    def logs_of(scenario: str) -> Path:
        if scenario not in made:
            folder = tmp_path_factory.mktemp(scenario)
            simulate(
                out_logs=folder / "logs",
                out_truth=folder / "truth",
                num_users=60,
                num_days=NUM_DAYS,
                first_day=FIRST_DAY,
                seed=4,
                scenario=scenario,
            )
            made[scenario] = folder
        return made[scenario] / "logs"

    return logs_of


def rows(logs: Path, table: str, day: date) -> pd.DataFrame:
    return ds.dataset(logs / table / f"dt={day}").to_table().to_pandas()


def validate(logs: Path, day: date = LAST) -> ValidationReport:
    """The report of a day, stopped or not."""
    work = logs.parent / "work"
    config = Config(locations=Locations(logs=str(logs), work=str(work), registry=str(logs.parent / "registry")))
    try:
        return validate_logs(config, day=day)
    except DayStopped:
        report = read_report(FolderStorage(work), day)
        assert report is not None
        return report


def violated(report: ValidationReport, table: str) -> dict[str, int]:
    """Rules that the day's own trouble broke, the few rows of the usual faults left out."""
    found = report.tables[table]
    return {
        name: rule.count
        for name, rule in found.rules.items()
        if rule.status == "violated" and rule.count > 0.05 * found.rows
    }


def test_the_unchanged_marketplace_passes(make: Make) -> None:
    report = validate(make("none"))
    assert report.status == "valid"
    assert all(not violated(report, table) for table in report.tables)


def test_a_shifted_click_rate_stops_the_day(make: Make) -> None:
    logs = make("click-rate-shift")
    assert rows(logs, "impressions", BEFORE).clicked.mean() == pytest.approx(
        rows(make("none"), "impressions", BEFORE).clicked.mean()
    )
    report = validate(logs)
    assert report.status == "stopped"
    assert report.tables["impressions"].rules["click_rate_in_band"].status == "violated"


def test_a_new_category_is_no_fault(make: Make) -> None:
    logs = make("new-category")
    last = max(rows(make("none"), "products", FIRST_DAY).category_id)
    earlier = pd.concat([rows(logs, "products", FIRST_DAY + timedelta(days=day)) for day in range(NUM_DAYS - 1)])
    assert last not in set(earlier.category_id)
    assert last in set(rows(logs, "products", LAST).category_id)
    assert validate(logs).status == "valid"


@pytest.mark.parametrize(
    ("scenario", "table", "rule"),
    [
        ("late-rows", "impressions", "shown_at_inside_day"),
        ("late-rows", "product_clicks", "clicked_at_inside_day"),
        ("repeated-rows", "impressions", "impression_once"),
        ("repeated-rows", "product_clicks", "click_once"),
        ("broken-covers", "stories", "cover_width"),
        ("broken-covers", "products", "cover_width"),
        ("bots", "impressions", "user_at_human_pace"),
        ("bots", "product_clicks", "user_at_human_pace"),
    ],
)
def test_broken_rows_are_named_by_their_rule_alone(make: Make, scenario: str, table: str, rule: str) -> None:
    logs = make(scenario)
    report = validate(logs)
    broken = violated(report, table)
    assert set(broken) == {rule}
    usual = len(rows(make("none"), table, LAST))
    if scenario == "bots":
        assert broken[rule] == NUM_BOTS * BOT_EVENTS_AN_HOUR
        assert (rows(logs, table, LAST).user_id >= FIRST_BOT_ID).sum() == NUM_BOTS * BOT_EVENTS_AN_HOUR
    elif scenario == "broken-covers":
        assert broken[rule] > 0.9 * usual
    else:
        assert broken[rule] == pytest.approx(0.1 * usual, rel=0.5)
    assert report.status == "stopped"
    assert report.tables[table].rules["quarantined_share"].status == "violated"


def test_late_rows_are_the_ones_that_the_day_before_lacks(make: Make) -> None:
    logs, whole = make("late-rows"), make("none")
    expected = pd.concat([rows(whole, "impressions", day) for day in (BEFORE, LAST)])
    found = pd.concat([rows(logs, "impressions", day) for day in (BEFORE, LAST)])
    key = list(expected.columns)
    pd.testing.assert_frame_equal(
        found.sort_values(key, ignore_index=True), expected.sort_values(key, ignore_index=True)
    )


def test_a_missing_day_is_missing_and_the_next_goes_on(make: Make) -> None:
    logs = make("missing-day")
    assert not (logs / "impressions" / f"dt={BEFORE}").exists()
    assert not (logs / "product_clicks" / f"dt={BEFORE}").exists()
    assert (logs / "stories" / f"dt={BEFORE}").exists()
    assert validate(logs).status == "valid"


def test_shuffled_clicks_keep_the_rate_and_lose_the_truth(make: Make) -> None:
    logs, whole = make("shuffled-clicks"), make("none")
    shuffled, true = rows(logs, "impressions", BEFORE), rows(whole, "impressions", BEFORE)
    assert len(shuffled) == len(true)
    assert shuffled.clicked.mean() == pytest.approx(true.clicked.mean(), abs=0.005)
    truth = rows(logs.parent / "truth", "impressions", BEFORE)
    key = ["user_id", "story_id", "request_id"]
    likely = truth.merge(shuffled.drop_duplicates(key), on=key).groupby("clicked").probability.mean()
    assert likely[True] == pytest.approx(likely[False], abs=0.02)
    assert validate(logs).status == "valid"


def test_the_table_of_the_docs_names_every_scenario() -> None:
    text = (Path(__file__).parents[2] / "docs" / "logs.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in SCENARIOS if name != "none")
