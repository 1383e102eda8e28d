"""Point-in-time joins in DuckDB: which value of a view was known at which moment.

Feast joins a label with every earlier row of its user, values and all, before it picks one; that outgrows
a machine. Here ids and times alone are joined, and the values read once, for the rows that were picked.

A row is visible from its event time or from the time it was known, whichever is later. A row that becomes
visible after a newer event is never seen. Of the others, a moment sees the one that became visible last.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.errors import StorageError
from storyrec.features.catalog import CatalogView

MEMORY = "4GB"
MOMENT = "moment_us"
"""Column of the moments: epoch microseconds UTC."""
# a row among all rows of a view: which file, and which row of it
PLACE = "(file_index::BIGINT << 40) + file_row_number"


@dataclass(frozen=True)
class Ages:
    """Of the values of a view.

    Attributes:
        newest_us: the newest event time of all rows, epoch microseconds; None without rows.
        oldest_us: the longest time from an event to a moment that saw it, microseconds; None where none did.
    """

    newest_us: int | None
    oldest_us: int | None


class AsofJoin:
    """Moments, and the values that were known at them."""

    def __init__(self, engine: duckdb.DuckDBPyConnection, moments: pa.Table) -> None:
        self._engine, self._num_views, self._last_us = engine, 0, pc.max(moments[MOMENT]).as_py()
        self._engine.register("given", moments.append_column("row", pa.array(np.arange(len(moments)))))
        self._engine.execute("CREATE TABLE moments AS FROM given")
        self._engine.unregister("given")

    def add(self, view: CatalogView, *, files: Sequence[str], names: Sequence[str]) -> Ages:
        """Find what each moment sees of a view.

        Args:
            view: its keys are columns of the moments.
            files: its partitions; of equal rows of one event and one time it was known, the last one counts.
            names: columns of the view, each name once in all views.
        """
        keys = ", ".join(f'"{key}"' for key in view.keys)
        same = " AND ".join(f'moments."{key}" = visible."{key}"' for key in view.keys)
        self._engine.execute(
            f"""
            CREATE OR REPLACE TABLE picked AS
            WITH stored AS (
                SELECT {keys}, {PLACE} AS place,
                    epoch_us("{view.event_time}") AS event_us, epoch_us("{view.known_time}") AS known_us
                FROM read_parquet($files)
            ), visible AS (
                SELECT {keys}, place, event_us, greatest(event_us, known_us) AS visible_us
                FROM stored SEMI JOIN moments USING ({keys})
                WHERE event_us <= $last_us AND known_us <= $last_us
                WINDOW by_time AS (PARTITION BY {keys} ORDER BY visible_us, event_us, known_us, place)
                QUALIFY event_us = max(event_us) OVER by_time
                    AND lead(visible_us) OVER by_time IS DISTINCT FROM visible_us
            )
            SELECT row, place, {MOMENT} - event_us AS age_us
            FROM moments ASOF JOIN visible ON {same} AND {MOMENT} >= visible_us
            WHERE $lifetime_us = 0 OR age_us <= $lifetime_us
            """,
            {
                "files": files,
                "last_us": self._last_us,
                "lifetime_us": view.lifetime // timedelta(microseconds=1),
            },
        )
        columns = ", ".join(f'"{name}"' for name in names)
        self._engine.execute(
            f"""
            CREATE TABLE view_{self._num_views} AS
            SELECT row, {columns}
            FROM (SELECT {columns}, {PLACE} AS place FROM read_parquet($files)) JOIN picked USING (place)
            ORDER BY row
            """,
            {"files": files},
        )
        self._num_views += 1
        newest = f'SELECT max(epoch_us("{view.event_time}")) FROM read_parquet($files)'
        return Ages(
            self._engine.execute(newest, {"files": files}).fetchall()[0][0],
            self._engine.execute("SELECT max(age_us) FROM picked").fetchall()[0][0],
        )

    def read(self, first: int, num_rows: int) -> pa.Table:
        """The values of some moments, a column a name; null where a moment sees none.

        Args:
            first: row of the moments.
            num_rows: how many rows from there.
        """
        joins = " ".join(f"LEFT JOIN view_{number} USING (row)" for number in range(self._num_views))
        rows = self._engine.sql(
            f"SELECT * FROM range({first}, {first + num_rows}) AS rows(row) {joins} ORDER BY row"
        ).to_arrow_table()
        return rows.drop_columns("row")


@contextmanager
def asof_join(moments: pa.Table, folder: Path) -> Iterator[AsofJoin]:
    """A join that keeps what outgrows its memory in a folder.

    Args:
        moments: the join keys and MOMENT, int64 without nulls; at least one row.
        folder: an empty one, with room for the values.

    Raises:
        StorageError: the join or its output ran out of room, or met an unreadable file.
    """
    settings: dict[str, Any] = {"memory_limit": MEMORY, "preserve_insertion_order": "false"}
    try:
        with duckdb.connect(str(folder / "join.duckdb"), config=settings) as engine:
            yield AsofJoin(engine, moments)
    except (duckdb.Error, OSError) as error:
        raise StorageError(
            f"the join stopped: {error}",
            expected=f"readable partitions, {MEMORY} of memory, and room on the disk for the values that are joined",
            where=str(folder.parent),
            remedy="free space or build the partitions again, then run the same command again",
        ) from error
