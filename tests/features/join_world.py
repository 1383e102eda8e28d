"""Views of a few rows written by hand, and a naive reading of what a label sees of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.features.catalog import Catalog, CatalogField, CatalogService, CatalogView
from storyrec.schema import TIMESTAMP

START = datetime(2026, 3, 1, tzinfo=UTC)
LATER = START + timedelta(days=1)


@dataclass(frozen=True)
class Row:
    """A value of a user; times count from START, microseconds."""

    user: int
    event: int
    known: int
    value: int


def moment(us: int) -> datetime:
    """A time of the world."""
    return START + timedelta(microseconds=us)


def seen(rows: Sequence[Row], *, user: int, at: int, lifetime: int = 0) -> int | None:
    """The value that a label sees, looked for one by one.

    Args:
        rows: in the order of the partitions.
        user, at: the label's.
        lifetime: microseconds, 0: for ever.
    """
    mine = [row for row in rows if row.user == user and row.event <= at and row.known <= at]
    mine = [row for row in mine if not lifetime or at <= row.event + lifetime]
    best = None
    for row in mine:
        if best is None or (row.event, row.known) >= (best.event, best.known):
            best = row
    return None if best is None else best.value


def write_views(folder: Path, views: Sequence[Sequence[Sequence[Row]]], *, lifetime: int = 0) -> Catalog:
    """Write views named view_0, view_1 ... of one feature each, value_0, value_1 ..., and a service of all.

    Args:
        folder: an empty one.
        views: of each view its partitions.
        lifetime: of all values, microseconds.
    """
    declared = {}
    for number, parts in enumerate(views):
        name = f"view_{number}"
        for part, rows in enumerate(parts):
            path = folder / f"{name}/dt={(START + timedelta(days=part)).date()}/part-0.parquet"
            path.parent.mkdir(parents=True)
            pq.write_table(_table(rows, f"value_{number}"), path)
        declared[name] = CatalogView(
            name=name,
            keys=("user_id",),
            fields=(CatalogField("user_id", "Int64", "", "", "", ""),),
            meaning="",
            owner="",
            kind="",
            freshness="",
            max_age="",
            lineage=(),
            lifetime=timedelta(microseconds=lifetime),
            path=f"{folder}/{name}/dt=*/*.parquet",
            event_time="event_timestamp",
            known_time="known_at",
        )
    features = {f"view_{number}": (f"value_{number}",) for number in range(len(views))}
    return Catalog({}, declared, {"all_v1": CatalogService("all_v1", features, "", "", "")})


def write_labels(path: Path, labels: Sequence[tuple[int, int]], *, kind: pa.DataType = TIMESTAMP) -> Path:
    """Labels of (user, time), numbered in a column of their own."""
    users, times = ([row[column] for row in labels] for column in (0, 1))
    columns = {
        "number": pa.array(range(len(labels)), pa.int32()),
        "event_timestamp": pa.array([moment(us) for us in times], TIMESTAMP).cast(kind),
        "user_id": pa.array(users, pa.int64()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def _table(rows: Sequence[Row], name: str) -> pa.Table:
    return pa.table(
        {
            "user_id": pa.array([row.user for row in rows], pa.int64()),
            name: pa.array([row.value for row in rows], pa.int64()),
            "event_timestamp": pa.array([moment(row.event) for row in rows], TIMESTAMP),
            "known_at": pa.array([moment(row.known) for row in rows], TIMESTAMP),
        }
    )
