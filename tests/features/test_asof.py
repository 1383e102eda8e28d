"""Point-in-time joins against a naive reading: ties, restated rows, lifetimes, strangers, time zones."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from join_world import LATER, Row, seen, write_labels, write_views

from storyrec.features.join import join_labels

USERS = st.integers(1, 3)
MICROSECONDS = st.integers(0, 6)  # few, so that events, labels and restatements meet


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """A row; half of them restated later, sometimes known before they are valid."""
    event = draw(MICROSECONDS)
    known = event if draw(st.booleans()) else draw(MICROSECONDS)
    return Row(draw(USERS), event, known, draw(st.integers(0, 99)))


PARTS = st.lists(st.lists(rows(), max_size=12), min_size=1, max_size=3)
LABELS = st.lists(st.tuples(st.integers(1, 4), st.integers(-1, 8)), min_size=1, max_size=20)
KINDS = st.sampled_from(
    [pa.timestamp("us", "UTC"), pa.timestamp("ns", "America/New_York"), pa.timestamp("us", "+05:30")]
)


def joined(view: list[list[Row]], other: list[list[Row]], labels: list[tuple[int, int]], **how: object) -> pa.Table:
    """Two views joined on disk."""
    kind = how.pop("kind", pa.timestamp("us", "UTC"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalog = write_views(folder / "features", [view, other], **how)  # type: ignore[arg-type]
        file = write_labels(folder / "labels.parquet", labels, kind=kind)  # type: ignore[arg-type]
        join_labels(file, folder / "out.parquet", service="all_v1", catalog=catalog, now=LATER)
        before, after = pq.read_table(file), pq.read_table(folder / "out.parquet")
        assert after.select(before.column_names).equals(before)
        return after


@settings(max_examples=25, deadline=None)
@given(view=PARTS, other=PARTS, labels=LABELS, lifetime=st.integers(0, 4), kind=KINDS)
@example(  # what is known late is not seen before, and hides nothing newer
    view=[[Row(1, 1, 1, 10), Row(1, 3, 3, 30)], [Row(1, 1, 5, 11), Row(1, 3, 4, 31)]],
    other=[[]],
    labels=[(1, us) for us in range(7)],
    lifetime=0,
    kind=pa.timestamp("us", "UTC"),
)
def test_every_label_sees_what_was_known_at_its_moment(
    view: list[list[Row]], other: list[list[Row]], labels: list[tuple[int, int]], lifetime: int, kind: pa.DataType
) -> None:
    found = joined(view, other, labels, lifetime=lifetime, kind=kind)
    for number, parts in enumerate((view, other)):
        flat = [row for part in parts for row in part]
        expected = [seen(flat, user=user, at=at, lifetime=lifetime) for user, at in labels]
        assert found[f"value_{number}"].to_pylist() == expected


@pytest.mark.parametrize(("lifetime", "at", "value"), [(3, 5, 20), (3, 6, None), (0, 6, 20)])
def test_a_value_counts_to_the_end_of_its_lifetime(lifetime: int, at: int, value: int | None) -> None:
    rows = [Row(1, 1, 1, 10), Row(1, 2, 2, 20)]
    assert joined([rows], [[]], [(1, at)], lifetime=lifetime)["value_0"].to_pylist() == [value]


def test_a_label_between_two_microseconds_sees_the_earlier_one() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        catalog = write_views(folder / "features", [[[Row(1, 1, 1, 10), Row(1, 2, 2, 20)]]])
        file = write_labels(folder / "labels.parquet", [(1, 1)])
        table = pq.read_table(file)
        late = pa.array([table["event_timestamp"][0].value * 1000 + 999], pa.timestamp("ns", "UTC"))
        pq.write_table(table.set_column(1, "event_timestamp", late), file)
        join_labels(file, folder / "out.parquet", service="all_v1", catalog=catalog, now=LATER)
        found = pq.read_table(folder / "out.parquet")
    assert found["value_0"].to_pylist() == [10]
    assert found["event_timestamp"].type == late.type
