"""Sequences are slices of a sorted log: strictly before the impression, no older than `since`, the most recent ones."""

from datetime import date

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from storyrec.features.sequences import DAY_US, ClickLog, event_order, history_start_us, midnight_us
from storyrec.schema import IMPRESSIONS, PRODUCT_CLICKS, Domain

# few users and few times, so that ties and empty sequences are common
USERS = st.integers(1, 5)
TIMES = st.integers(0, 12)
CLICKS = st.lists(st.tuples(USERS, st.integers(1, 4), TIMES), max_size=40)
QUERIES = st.lists(st.tuples(st.integers(0, 7), TIMES, TIMES), min_size=1, max_size=20)


def log_of(clicks: list[tuple[int, int, int]]) -> ClickLog:
    user_ids, item_ids, times = np.array(clicks, np.int64).reshape(-1, 3).T
    return ClickLog.from_arrays(user_ids, item_ids, times)


@settings(deadline=None)
@given(clicks=CLICKS, queries=QUERIES, length=st.integers(1, 5))
def test_window_equals_a_loop_over_all_clicks(
    clicks: list[tuple[int, int, int]], queries: list[tuple[int, int, int]], length: int
) -> None:
    log = log_of(clicks)
    users, before, since = np.array(queries, np.int64).T

    start, stop = log.window(users, before_us_B=before, since_us_B=since, length=length)

    for query, (user, before_us, since_us) in enumerate(queries):
        mine = sorted((t, item) for u, item, t in clicks if u == user and since_us <= t < before_us)[-length:]
        found = slice(start[query], stop[query])
        assert list(zip(log.clicked_us_C[found].tolist(), log.item_ids_C[found].tolist(), strict=True)) == mine
        assert (log.user_ids_C[found] == user).all()


def test_window_of_the_first_and_the_last_user() -> None:
    log = log_of([(1, 10, 100), (1, 11, 200), (9, 12, 100), (9, 13, 200)])
    start, stop = log.window(np.array([1, 9, 5, 0, 99]), before_us_B=201, since_us_B=0, length=20)
    assert start.tolist() == [0, 2, 0, 0, 0]
    assert stop.tolist() == [2, 4, 0, 0, 0]


def test_window_leaves_out_the_click_at_the_impression_and_keeps_the_one_at_since() -> None:
    log = log_of([(1, 10, 100), (1, 11, 200), (1, 12, 300)])
    start, stop = log.window(np.array([1]), before_us_B=[300], since_us_B=[100], length=20)
    assert log.item_ids_C[start[0] : stop[0]].tolist() == [10, 11]


def test_window_of_ids_and_times_as_large_as_they_come() -> None:
    last = np.iinfo(np.int64).max
    times = midnight_us(date(2026, 3, 1)) + np.arange(3) * 3_650 * DAY_US
    log = ClickLog.from_arrays(np.array([last, 1, last]), np.array([1, 2, 3]), times)
    start, stop = log.window(np.array([last, 1]), before_us_B=times[-1], since_us_B=0, length=20)
    assert log.item_ids_C[start[0] : stop[0]].tolist() == [1]
    assert log.item_ids_C[start[1] : stop[1]].tolist() == [2]


def test_window_of_an_empty_log() -> None:
    start, stop = log_of([]).window(np.array([1, 2]), before_us_B=5, since_us_B=0, length=3)
    assert start.tolist() == stop.tolist() == [0, 0]


def test_from_table_takes_the_clicked_impressions_sorted_by_user_time_and_item() -> None:
    rows = [(2, 7, 50, True), (1, 9, 60, True), (1, 8, 60, True), (1, 5, 40, False), (2, 6, 10, True)]
    columns = dict(zip(("user_id", "story_id", "shown_at", "clicked"), zip(*rows, strict=True), strict=True))
    log = ClickLog.from_table(pa.table(columns | {"request_id": [None] * 5}, schema=IMPRESSIONS), Domain.STORY)
    assert log.user_ids_C.tolist() == [1, 1, 2, 2]
    assert log.item_ids_C.tolist() == [8, 9, 6, 7]
    assert log.clicked_us_C.tolist() == [60, 60, 10, 50]


def test_from_table_reads_product_clicks() -> None:
    table = pa.table({"user_id": [3, 1], "product_id": [4, 5], "clicked_at": [2, 1]}, schema=PRODUCT_CLICKS)
    log = ClickLog.from_table(table, Domain.PRODUCT)
    assert (log.user_ids_C.tolist(), log.item_ids_C.tolist(), log.clicked_us_C.tolist()) == ([1, 3], [5, 4], [1, 2])


def test_history_starts_at_a_midnight() -> None:
    noon = midnight_us(date(2026, 3, 9)) + DAY_US // 2
    midnight = midnight_us(date(2026, 3, 9))
    assert history_start_us(np.array([noon, midnight]), history_days=7).tolist() == [midnight_us(date(2026, 3, 2))] * 2
    assert midnight_us(date(1970, 1, 2)) == DAY_US


@given(
    rows=st.lists(st.tuples(USERS, TIMES, st.integers(1, 3), st.booleans()), max_size=30),
    first_user=st.sampled_from([0, 2**62]),
    unit_us=st.sampled_from([1, 2**58]),
)
def test_event_order_is_that_of_lexsort(rows: list[tuple[int, int, int, bool]], first_user: int, unit_us: int) -> None:
    users, times, items, flags = np.array(rows, np.int64).reshape(-1, 4).T
    users, times = users * (first_user // 8 + 1), times * unit_us
    expected = np.lexsort((flags, items, times, users))
    assert event_order(users, times, items, flags.astype(bool)).tolist() == expected.tolist()
