"""The offline partitions of a view as the online store takes them in: each key's newest row.

Suffixes: N = rows.
"""

from collections.abc import Iterator
from datetime import datetime

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.errors import DataError
from storyrec.features.events import EVENT_TIME, KNOWN_TIME
from storyrec.features.packed import Layout

ROWS_AT_A_TIME = 10_000

Int64s = npt.NDArray[np.int64]


def newest_rows(
    path: str, layout: Layout, *, start: datetime, end: datetime, model: str | None = None
) -> Iterator[tuple[Int64s, Int64s, pa.RecordBatch]]:
    """Each key's newest row of `start` < event time <= `end`; of equal event times the one known last.

    Args:
        path: of the Parquet files, a glob.
        layout: of the view.
        start, end: aware.
        model: only the rows of this one, in a view that is by model.

    Yields:
        Keys, event times (epoch microseconds) and the features of some rows.

    Raises:
        DataError: a sequence is longer than its view says.
    """
    columns = ", ".join(f'"{name}"' for name in layout.names)
    with duckdb.connect() as connection:
        found = connection.sql(
            f"""
            SELECT "{layout.key}" AS id, epoch_us({EVENT_TIME}) AS event_us, {columns}
            FROM read_parquet(?, hive_partitioning = false)
            WHERE {EVENT_TIME} > ? AND {EVENT_TIME} <= ?{" AND model = ?" if model else ""}
            QUALIFY row_number() OVER (PARTITION BY "{layout.key}" ORDER BY {EVENT_TIME} DESC, {KNOWN_TIME} DESC) = 1
            """,
            params=[path, start, end, *([model] if model else [])],
        )
        for rows in found.to_arrow_reader(ROWS_AT_A_TIME):
            if layout.length:
                _require_length(rows, layout)
            yield rows["id"].to_numpy(), rows["event_us"].to_numpy(), rows


def _require_length(rows: pa.RecordBatch, layout: Layout) -> None:
    longest = int(np.diff(rows[layout.names[0]].offsets.to_numpy()).max(initial=0))
    if longest > layout.length:
        raise DataError(
            f"a sequence of {longest} clicks",
            expected=f"{layout.length} at most, what the view keeps online",
            where=f"the offline rows of {layout.view}",
            remedy="lower features.sequence_length, or raise SEQUENCE_LENGTH in feature_repo/definitions.py",
        )
