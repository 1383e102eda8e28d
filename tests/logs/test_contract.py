from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from faults import FAULTS, spoil
from marketplace import DAY, Row, make_rows, to_table

from storyrec.logs.contract import Judged, Outcome, check_contract
from storyrec.logs.known import KnownIds
from storyrec.logs.partitions import day_number
from storyrec.logs.rows import Rows, measure_covers
from storyrec.logs.rules import RULES, DayFacts
from storyrec.schema import TABLES

KNOWN = {
    "products": KnownIds(np.arange(1, 41), np.full(40, day_number(DAY))),
    "stories": KnownIds(np.arange(1, 31), np.full(30, day_number(DAY))),
}
RUN_TIME = datetime(DAY.year, DAY.month, DAY.day, tzinfo=UTC)


def judged(table: str, rows: list[Row], facts: DayFacts | None = None) -> Judged:
    judged_rows = Rows(measure_covers(to_table(table, rows)), np.full(len(rows), day_number(DAY)), KNOWN)
    masks = RULES[table].masks(judged_rows)
    return Judged(judged_rows, masks, RULES[table].first_broken(masks, num_rows=len(rows)) >= 0, facts)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Outcome]], Path]:
    """Every fault of every table at once, each in one or two rows of its own; day rules broken too."""
    tables = {}
    for table, faults in FAULTS.items():
        bad = [spoil(table, fault) for some in faults.values() for fault in some]
        key = {"products": "product_id", "stories": "story_id"}.get(table, "user_id")
        for place, row in enumerate(bad):  # each row its own id, unless the id is the fault
            row[key] = 900 + place if row[key] == 900 else row[key]
        rows = make_rows(DAY)[table] + bad
        facts = DayFacts(
            len(rows),
            click_rate=0.125 if table == "impressions" else None,
            quarantined_share=len(bad) / len(rows),
            row_count_bounds=(1.5, 20.5),
            click_rate_bounds=(0.5, 0.9),
            max_quarantined_share=0.01,
        )
        tables[table] = judged(table, rows, facts)
    docs = tmp_path_factory.mktemp("docs")
    return check_contract(tables, name="dt=2026-03-05", run_time=RUN_TIME, docs=docs), docs


@pytest.mark.parametrize("table", TABLES)
def test_great_expectations_counts_every_seeded_fault(
    spoilt: tuple[dict[str, dict[str, Outcome]], Path], table: str
) -> None:
    expected = {rule: Outcome("violated", len(faults)) for rule, faults in FAULTS[table].items()}
    found = {rule: outcome for rule, outcome in spoilt[0][table].items() if rule in expected}
    assert found == expected


def test_great_expectations_judges_the_day_rules(spoilt: tuple[dict[str, dict[str, Outcome]], Path]) -> None:
    found = spoilt[0]["impressions"]
    assert found["not_empty"] == Outcome("passed")
    for rule in ("row_count_in_band", "quarantined_share", "click_rate_in_band"):
        assert found[rule] == Outcome("violated", 1), rule


def test_the_data_docs_show_every_table(spoilt: tuple[dict[str, dict[str, Outcome]], Path]) -> None:
    docs = spoilt[1]
    index = (docs / "index.html").read_text()
    pages = [path.relative_to(docs) for path in (docs / "validations").rglob("*.html")]
    assert {page.parts[1] for page in pages} == set(TABLES)
    assert all(page.parts[2] == "dt=2026-03-05" and quote(page.as_posix()) in index for page in pages)
    (impressions,) = [page for page in pages if page.parts[1] == "impressions"]
    assert "shown_at: days off" in (docs / impressions).read_text()


def test_a_broken_check_is_no_violation(tmp_path: Path) -> None:
    rows = make_rows(DAY)["impressions"]
    rows[0]["clicked"] = None
    without = judged("impressions", rows)
    object.__setattr__(without.rows, "table", without.rows.table.drop_columns(["user_id"]))
    contrary = judged("product_clicks", make_rows(DAY)["product_clicks"])
    contrary.masks["user_id_positive"][:3] = False  # type: ignore[index]
    empty = judged("products", [], DayFacts(0))
    tables = {"impressions": without, "product_clicks": contrary, "products": empty}
    found = check_contract(tables, name="x", run_time=RUN_TIME, docs=tmp_path)
    assert found["impressions"]["user_id_present"].status == "broken"
    assert 'The column "user_id" in BatchData does not exist' in found["impressions"]["user_id_present"].note
    assert found["impressions"]["user_id_positive"].status == "broken"
    assert found["impressions"]["clicked_present"] == Outcome("violated", 1)
    assert found["impressions"]["shown_at_present"] == Outcome("passed")
    assert found["product_clicks"]["user_id_positive"] == Outcome(
        "broken", note="Great Expectations counts 0, the mask counts 3"
    )
    assert {outcome.status for outcome in found["products"].values()} == {"passed"}
