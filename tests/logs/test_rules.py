from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
from faults import FAULTS, spoil
from marketplace import DAY, Row, at, make_rows, to_table

from storyrec.logs.known import KnownIds
from storyrec.logs.partitions import day_number
from storyrec.logs.rows import Mask, Rows, measure_covers
from storyrec.logs.rules import MAX_EVENTS_AN_HOUR, RULES, DayFacts

KNOWN = {
    "products": KnownIds(np.arange(1, 41), np.full(40, day_number(DAY))),
    "stories": KnownIds(np.arange(1, 31), np.full(30, day_number(DAY) - 1)),
}


def masks_of(table: str, rows: list[Row]) -> dict[str, Mask]:
    return RULES[table].masks(Rows(measure_covers(to_table(table, rows)), np.full(len(rows), day_number(DAY)), KNOWN))


@pytest.mark.parametrize("table", RULES)
def test_clean_rows_keep_every_rule(table: str) -> None:
    for name, mask in masks_of(table, make_rows(DAY)[table]).items():
        assert mask.all(), name


@pytest.mark.parametrize(("table", "rule"), [(table, rule) for table in FAULTS for rule in FAULTS[table]])
def test_a_fault_is_caught_by_its_rule_alone(table: str, rule: str) -> None:
    for fault in FAULTS[table][rule]:
        rows = [*make_rows(DAY)[table], spoil(table, fault)]
        for name, mask in masks_of(table, rows).items():
            broken = np.flatnonzero(~mask).tolist()
            assert broken == ([len(rows) - 1] if name == rule else []), name


def test_every_row_rule_has_a_fault() -> None:
    assert {table: set(faults) for table, faults in FAULTS.items()} == {
        table: {rule.name for rule in rules.row} - {"user_at_human_pace"} for table, rules in RULES.items()
    }


@pytest.mark.parametrize(("table", "time"), [("impressions", "shown_at"), ("product_clicks", "clicked_at")])
def test_an_hour_with_too_many_events_is_a_bots_and_set_aside_whole(table: str, time: str) -> None:
    start = at(DAY, hour=6)

    def events(user_id: int, number: int) -> list[Row]:
        row = make_rows(DAY)[table][0]
        return [{**row, "user_id": user_id, time: start + timedelta(seconds=i * 3_600 / number)} for i in range(number)]

    person, bot = events(700, MAX_EVENTS_AN_HOUR), events(701, MAX_EVENTS_AN_HOUR + 1)
    nobody = [{**row, "user_id": None} for row in bot]  # has a rule of its own
    later = {**bot[0], time: start + timedelta(hours=1)}
    mask = masks_of(table, [*person, *nobody, later, *bot])["user_at_human_pace"]
    assert np.flatnonzero(~mask).tolist() == list(range(len(person) + len(nobody) + 1, len(mask)))


def test_float16_covers_count_as_unit_norm() -> None:
    rows = make_rows(DAY)["stories"]
    for row in rows:
        if row["cover"]:
            row["cover"] = np.array(row["cover"], np.float16).astype(np.float32).tolist()
    assert masks_of("stories", rows)["cover_unit_norm"].all()


def test_the_first_of_duplicates_stays() -> None:
    rows = make_rows(DAY)["impressions"]
    copies = [rows[1], rows[0], {**rows[0], "shown_at": rows[0]["shown_at"] + timedelta(seconds=1)}, rows[1]]
    mask = masks_of("impressions", rows + copies)["impression_once"]
    # a request id decides alone; without one the time does
    assert np.flatnonzero(~mask).tolist() == [len(rows), len(rows) + 1, len(rows) + 3]


def test_the_catalog_so_far_ends_with_the_row_s_own_day() -> None:
    known = KnownIds(np.array([5, 9]), np.array([10, 12]), {11: np.array([7])})
    found = known.has(np.array([5, 9, 5, 7, 9, 5, 7, 9]), day_B=np.array([9, 9, 10, 11, 11, 12, 12, 12]))
    assert found.tolist() == [False, False, True, True, False, True, False, True]


def test_an_id_s_first_day_counts() -> None:
    known = KnownIds.from_pairs(np.array([8, 3, 8]), np.array([4, 6, 2]))
    assert known.ids_N.tolist() == [3, 8]
    assert known.first_day_N.tolist() == [6, 2]


def test_the_first_broken_rule_names_the_row() -> None:
    rows = [*make_rows(DAY)["stories"], spoil("stories", lambda row: row.update(story_id=-1, source="tv"))]
    masks = masks_of("stories", rows)
    first_B = RULES["stories"].first_broken(masks, num_rows=len(rows))
    assert set(first_B[:-1]) == {-1}
    assert RULES["stories"].row[first_B[-1]].name == "story_id_positive"


def test_rules_judge_an_empty_table() -> None:
    for table, rules in RULES.items():
        masks = rules.masks(Rows(measure_covers(to_table(table, [])), np.empty(0, np.int64), KNOWN))
        assert {len(mask) for mask in masks.values()} == {0}


@pytest.mark.parametrize(
    ("rule", "facts", "holds"),
    [
        ("not_empty", DayFacts(0), False),
        ("not_empty", DayFacts(1), True),
        ("quarantined_share", DayFacts(100, quarantined_share=0.05, max_quarantined_share=0.05), True),
        ("quarantined_share", DayFacts(100, quarantined_share=0.06, max_quarantined_share=0.05), False),
        ("quarantined_share", DayFacts(0), None),
        ("row_count_in_band", DayFacts(39, row_count_bounds=(40, 250)), False),
        ("row_count_in_band", DayFacts(40, row_count_bounds=(40, 250)), True),
        ("row_count_in_band", DayFacts(251, row_count_bounds=(40, 250)), False),
        ("row_count_in_band", DayFacts(39), None),
        ("click_rate_in_band", DayFacts(9, click_rate=0.3, click_rate_bounds=(0.1, 0.2)), False),
        ("click_rate_in_band", DayFacts(9, click_rate=0.2, click_rate_bounds=(0.1, 0.2)), True),
        ("click_rate_in_band", DayFacts(9, click_rate=0.2), None),
    ],
)
def test_day_rules(rule: str, facts: DayFacts, holds: bool | None) -> None:
    (found,) = [day_rule for day_rule in RULES["impressions"].day if day_rule.name == rule]
    assert found.holds(facts) is holds


def test_covers_are_judged_in_chunks_as_in_one() -> None:
    rows = to_table("products", [make_rows(DAY)["products"][1]]).take(np.zeros(5_000, np.int64))
    rows = rows.set_column(rows.schema.get_field_index("product_id"), "product_id", pa.array(range(1, 5_001)))
    bad = pa.array([[2.0] * 512], pa.list_(pa.float32()))
    cover = pa.chunked_array(
        [rows["cover"].slice(0, 4_500).combine_chunks(), bad, rows["cover"].slice(4_501).combine_chunks()]
    )
    judged = Rows(measure_covers(rows.set_column(2, "cover", cover)), np.full(5_000, day_number(DAY)), KNOWN)
    masks = RULES["products"].masks(judged)
    assert np.flatnonzero(~masks["cover_unit_norm"]).tolist() == [4_500]
