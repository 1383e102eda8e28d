"""Faults that real logs have, added to the simulated ones so that the quarantine has work.

Faults are *added* rows: the marketplace's own rows are never touched, and no true impression or
click points at a faulty item. About 0.2 % of the rows; never enough to stop a day.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.logs.simulate.wants import DAY_US
from storyrec.schema import COVER_WIDTH, TABLES

FAULT_SHARES: dict[str, dict[str, float]] = {
    "impressions": {"duplicate": 0.0006, "unknown_item": 0.0004, "outside_day": 0.0004, "no_user": 0.0002},
    "product_clicks": {"unknown_item": 0.0006, "outside_day": 0.0006, "no_user": 0.0002},
    "stories": {
        "blank_title": 0.001,
        "short_cover": 0.0005,
        "infinite_cover": 0.0005,
        "unknown_source": 0.0005,
        "unknown_mount": 0.0005,
    },
    "products": {"blank_title": 0.0005, "short_cover": 0.0005, "long_cover": 0.0005, "outside_day": 0.0005},
}
"""Faults of each table, as shares of its rows."""

FIRST_FAULTY_ID = 900_000_000
"""Items with faults, and items that never were, have ids from here on."""


@dataclass(frozen=True)
class Counts:
    """How many rows were written, and how many of them with which fault, by table."""

    rows: dict[str, int] = field(default_factory=dict)
    faults: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, table: str, *, rows: int, faults: Mapping[str, int]) -> None:
        """Count some rows of a table."""
        self.rows[table] = self.rows.get(table, 0) + rows
        known = self.faults.setdefault(table, {})
        for fault, count in faults.items():
            known[fault] = known.get(fault, 0) + count

    def merge(self, other: "Counts") -> None:
        """Count what another has counted."""
        for table, rows in other.rows.items():
            self.add(table, rows=rows, faults=other.faults[table])


def add_faults(table: pa.Table, *, name: str, rng: np.random.Generator) -> tuple[pa.Table, dict[str, int]]:
    """Append faulty rows to a day of a table; returns it with how many rows of each fault were added."""
    counts: dict[str, int] = {}
    parts = [table]
    next_id = FIRST_FAULTY_ID + int(rng.integers(0, 90_000_000))
    for fault, share in FAULT_SHARES[name].items():
        counts[fault] = int(rng.binomial(table.num_rows, share))
        rows = np.sort(rng.integers(0, max(table.num_rows, 1), counts[fault]))
        new_ids = np.arange(next_id, next_id + len(rows))
        next_id += len(rows)
        parts.append(_faulty(table.take(pa.array(rows)), name=name, fault=fault, new_ids=new_ids))
    return pa.concat_tables(parts), counts


def _faulty(rows: pa.Table, *, name: str, fault: str, new_ids: npt.NDArray[np.int64]) -> pa.Table:
    item = {"impressions": "story_id", "product_clicks": "product_id", "stories": "story_id", "products": "product_id"}
    time = {
        "impressions": "shown_at",
        "product_clicks": "clicked_at",
        "stories": "published_at",
        "products": "published_at",
    }
    if name in ("stories", "products"):
        rows = _set(rows, name, item[name], new_ids)
    elif name == "impressions" and fault != "duplicate":
        rows = _set(rows, name, "request_id", [f"{fault}-{new_id}" for new_id in new_ids])
    if fault == "unknown_item":
        rows = _set(rows, name, item[name], new_ids)
    elif fault == "outside_day":
        # an item from the start is old, and is to be published after its partition all the same
        days_off = 2 if name in ("impressions", "product_clicks") else 200
        late = pc.cast(rows[time[name]], pa.int64()).to_numpy() + days_off * DAY_US
        rows = _set(rows, name, time[name], late)
    elif fault == "no_user":
        rows = _set(rows, name, "user_id", np.zeros(len(new_ids), np.int64))
    elif fault == "blank_title":
        rows = _set(rows, name, "title", ["  "] * len(new_ids))
    elif fault == "unknown_source":
        rows = _set(rows, name, "source", ["ugx"] * len(new_ids))
    elif fault == "unknown_mount":
        rows = _set(rows, name, "mounted_product_ids", [[int(new_id)] for new_id in new_ids])
    elif fault == "short_cover":
        rows = _set(rows, name, "cover", [[0.5] * 4] * len(new_ids))
    elif fault == "long_cover":
        rows = _set(rows, name, "cover", [[1.0] * COVER_WIDTH] * len(new_ids))
    elif fault == "infinite_cover":
        rows = _set(rows, name, "cover", [[float("inf")] * COVER_WIDTH] * len(new_ids))
    return rows


def _set(rows: pa.Table, name: str, column: str, values: Sequence[object] | npt.NDArray[np.int64]) -> pa.Table:
    field = TABLES[name].field(column)
    return rows.set_column(rows.schema.get_field_index(column), field, pa.array(values, field.type))
