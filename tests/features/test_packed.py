"""Packed values and their merge, against a naive reading of the rule."""

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyrec.errors import DataError
from storyrec.features.merge import (
    NOTHING,
    Recent,
    merge,
    merge_sequences,
    pack_sequence,
    restate,
    settle,
    unpack_sequence,
)
from storyrec.features.packed import Layout, Row

LENGTH = 4
SEQUENCE = Layout("clicks", "user_id", (("ids", "INT64_LIST"), ("times", "INT64_LIST")), LENGTH)
EMBEDDING = Layout("embedding", "story_id", (("embedding", "FLOAT_LIST"), ("model_version", "STRING")), 0)

CLICKS = st.tuples(st.integers(1, 30), st.integers(1, 3))
PUSHES = st.lists(CLICKS, min_size=1, max_size=6).map(lambda clicks: Recent(0, sorted(set(clicks))[-LENGTH:]))


@st.composite
def days(draw: st.DrawFn, *, end: int | None = None) -> Recent:
    """What a day states: clicks before its end only."""
    end = end or draw(st.integers(1, 30))
    clicks = draw(st.lists(st.tuples(st.integers(0, end - 1), st.integers(1, 3)), max_size=6))
    return Recent(end, sorted(clicks)[-LENGTH:])


def naive(arrivals: list[Recent]) -> Recent:
    """The clicks before the latest complete_us as stated last, from it on all of them once."""
    end = max(arrival.complete_us for arrival in arrivals)
    stated = [arrival for arrival in arrivals if arrival.complete_us == end][-1]
    before = [click for click in stated.clicks if click[0] < end]
    after = {click for arrival in arrivals for click in arrival.clicks if click[0] >= end}
    return Recent(end, (before + sorted(after))[-LENGTH:])


def merged(arrivals: list[Recent]) -> Recent:
    """All arrivals one after the other, as a store takes them in."""
    stored = None
    for arrival in arrivals:
        stored = merge(SEQUENCE, stored, pack_sequence(SEQUENCE, arrival))
    return unpack_sequence(SEQUENCE, stored)


@settings(deadline=None)
@given(arrivals=st.lists(PUSHES | days(), min_size=1, max_size=8))
def test_what_arrives_is_merged_as_the_rule_says(arrivals: list[Recent]) -> None:
    assert merged(arrivals) == naive(arrivals)


@settings(deadline=None)
@given(data=st.data(), pushes=st.lists(PUSHES, max_size=5), ends=st.sets(st.integers(1, 30), max_size=3))
def test_the_order_of_arrival_does_not_matter(data: st.DataObject, pushes: list[Recent], ends: set[int]) -> None:
    arrivals = [*pushes, *(data.draw(days(end=end)) for end in ends)]
    if arrivals:
        assert merged(data.draw(st.permutations(arrivals))) == merged(arrivals)


@settings(deadline=None)
@given(first=PUSHES, second=PUSHES, stored=PUSHES | days())
def test_pushes_commute_and_may_be_repeated(first: Recent, second: Recent, stored: Recent) -> None:
    assert merge_sequences(first, second, length=LENGTH) == merge_sequences(second, first, length=LENGTH)
    assert merged([stored, first, second]) == merged([stored, first, second, first, second, first])


@settings(deadline=None)
@given(stored=PUSHES | days())
def test_a_value_merged_with_itself_is_itself(stored: Recent) -> None:
    assert merge_sequences(stored, stored, length=LENGTH) == Recent(
        stored.complete_us,
        [c for c in stored.clicks if c[0] < stored.complete_us]
        + sorted({c for c in stored.clicks if c[0] >= stored.complete_us}),
    )
    assert merge_sequences(NOTHING, stored, length=LENGTH).complete_us == stored.complete_us


@settings(deadline=None)
@given(stored=st.lists(PUSHES | days(), min_size=1, max_size=4), stated=days())
def test_restating_replaces_what_is_before_and_keeps_what_is_after(stored: list[Recent], stated: Recent) -> None:
    before = merged(stored)
    after = unpack_sequence(
        SEQUENCE, restate(SEQUENCE, pack_sequence(SEQUENCE, before), pack_sequence(SEQUENCE, stated))
    )
    fresh = [click for click in before.clicks if click[0] >= stated.complete_us]
    assert after == Recent(max(before.complete_us, stated.complete_us), [*stated.clicks, *fresh][-LENGTH:])


def test_a_restated_day_replaces_its_own_and_keeps_fresh_clicks() -> None:
    first, again = Recent(10, [(3, 1), (8, 2)]), Recent(10, [(3, 1), (5, 7)])
    assert merged([first, Recent(0, [(12, 9)]), again]) == Recent(10, [(3, 1), (5, 7), (12, 9)])


def test_other_values_the_newest_event_time_stays_and_an_equal_one_replaces() -> None:
    old, new, same = (EMBEDDING.pack(Row(us, 0, (b"", text))) for us, text in ((1, b"a"), (2, b"b"), (2, b"c")))
    assert merge(EMBEDDING, old, new) == merge(EMBEDDING, new, old) == new
    assert merge(EMBEDDING, new, same) == same


def test_the_bytes_are_as_documented() -> None:
    value = SEQUENCE.pack(Row(7, 5, (np.array([3], "<i8").tobytes(), np.array([4], "<i8").tobytes())))
    assert value[0] == 1
    assert value[5:] == b"".join(
        number.to_bytes(width, "little") for number, width in ((7, 8), (5, 8), (8, 4), (8, 4), (3, 8), (4, 8))
    )


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.lists(st.floats(width=32, allow_nan=False), max_size=3), st.text(max_size=5))),
    skipped=st.integers(0, 2),
)
def test_many_rows_are_packed_as_each_by_itself(rows: list[tuple[list[float], str]], skipped: int) -> None:
    columns = [pa.array([row[i] for row in rows], kind) for i, kind in enumerate((pa.list_(pa.float32()), pa.string()))]
    batch = pa.record_batch(columns, names=EMBEDDING.names).slice(skipped)
    event_us = np.arange(batch.num_rows) + 1
    packed = EMBEDDING.pack_rows(batch, event_us_N=event_us, complete_us=99)
    expected = [Row(us, 99, (np.array(e, "<f4").tobytes(), t.encode())) for us, (e, t) in enumerate(rows[skipped:], 1)]
    assert [EMBEDDING.unpack(value) for value in packed] == expected
    assert packed == [EMBEDDING.pack(row) for row in expected]
    for value, (numbers, text) in zip(packed, rows[skipped:], strict=True):
        row = EMBEDDING.unpack(value)
        assert row is not None
        assert EMBEDDING.value(row, "embedding").tolist() == np.array(numbers, np.float32).tolist()
        assert EMBEDDING.value(row, "model_version") == text


@pytest.mark.parametrize("embedding", [[None], [[1.0, None]]])
def test_a_missing_value_is_not_packed(embedding: list[list[float | None] | None]) -> None:
    batch = pa.record_batch([pa.array(embedding, pa.list_(pa.float32())), pa.array(["v"])], names=EMBEDDING.names)
    with pytest.raises(DataError, match=r"embedding is missing in 1 rows"):
        EMBEDDING.pack_rows(batch, event_us_N=np.zeros(1, np.int64), complete_us=0)


@pytest.mark.parametrize("damage", [lambda v: v[:10], lambda v: b"\x02" + v[1:], lambda v: b"", lambda v: None])
def test_bytes_of_another_kind_are_no_value(damage: object) -> None:
    value = EMBEDDING.pack(Row(1, 0, (b"", b"v")))
    assert EMBEDDING.unpack(damage(value)) is None  # type: ignore[operator]
    other = Layout("embedding", "story_id", (("vector", "FLOAT_LIST"), ("model_version", "STRING")), 0)
    assert other.unpack(value) is None
    newer = other.pack(Row(0, 0, (b"", b"w")))
    assert merge(other, value, newer) == newer  # whatever its event time


def test_the_event_time_of_a_sequence_is_the_moment_after_its_last_click() -> None:
    when = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
    assert SEQUENCE.times(pack_sequence(SEQUENCE, Recent(0, [(when, 3)]))) == (when + 1, 0)
    assert SEQUENCE.times(pack_sequence(SEQUENCE, Recent(when, []))) == (when, when)


@settings(deadline=None)
@given(arrivals=st.lists(PUSHES | days(), min_size=1, max_size=8), until=st.integers(0, 31))
def test_what_the_logs_do_not_hold_is_settled(arrivals: list[Recent], until: int) -> None:
    stored, value = naive(arrivals), None
    for arrival in arrivals:
        value = merge(SEQUENCE, value, pack_sequence(SEQUENCE, arrival))
    assert value is not None
    found = settle(SEQUENCE, value, until_us=until)
    expected = [(us, item) for us, item in stored.clicks if us < stored.complete_us or us >= until]
    assert unpack_sequence(SEQUENCE, found) == Recent(stored.complete_us, expected)
    assert (found is None) == (not expected and stored.complete_us == 0)
    assert (found is value) == (expected == stored.clicks) or found == value


def test_the_first_field_is_that_of_the_row_and_nothing_of_another_layout() -> None:
    whole = EMBEDDING.pack(Row(1, 2, (np.arange(3, dtype=np.float32).tobytes(), b"version")))
    for value in (whole, EMBEDDING.pack(Row(1, 2, (b"", b"")))):
        row = EMBEDDING.unpack(value)
        assert row is not None
        assert EMBEDDING.first_field(value) == row.fields[0]
    for value in (None, b"", whole[:10], SEQUENCE.pack(Row(1, 2, (b"12345678", b"12345678"))), b"\2" + whole[1:]):
        assert EMBEDDING.unpack(value) is EMBEDDING.first_field(value) is None
