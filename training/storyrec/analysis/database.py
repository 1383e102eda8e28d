"""The logs as DuckDB tables: usable rows as views over the files, each item once; covers are never read.

Usable are rows that validation would not set aside for what they are: ids and times are there, and events lie
inside their partition's day. Days are numbers since 1970-01-01.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.analysis.files import TableFiles
from storyrec.errors import DataError, StorageError
from storyrec.features.sequences import DAY_US
from storyrec.logs.partitions import day_number
from storyrec.schema import TABLES

MEMORY = "4GB"

_EVENTS = """
CREATE VIEW impressions AS
SELECT day, user_id, story_id, us, clicked,
       CASE WHEN request_id IS NULL THEN us::UBIGINT ELSE hash(request_id) END AS occasion
FROM (SELECT *, epoch_us(shown_at::TIMESTAMPTZ) AS us FROM {impressions})
WHERE user_id >= 1 AND story_id >= 1 AND clicked IS NOT NULL AND us // {day_us} = day;

CREATE VIEW product_clicks AS
SELECT day, user_id, product_id, us
FROM (SELECT *, epoch_us(clicked_at::TIMESTAMPTZ) AS us FROM {product_clicks})
WHERE user_id >= 1 AND product_id >= 1 AND us // {day_us} = day;
"""
_CATALOGS = """
CREATE TABLE products AS
SELECT row_number() OVER (ORDER BY product_id)::INTEGER AS product_row, * FROM (
    SELECT product_id, min(day) AS first_day, count(*) AS num_rows,
           unnest(arg_max({{title: title, category_id: category_id}}, {newest}))
    FROM {products} WHERE product_id >= 1 AND {published} GROUP BY product_id);

CREATE TABLE stories AS
SELECT row_number() OVER (ORDER BY story_id)::INTEGER AS story_row, * FROM (
    SELECT story_id, min(day) AS first_day, count(*) AS num_rows,
           unnest(arg_max({{title: title, source: source, mounted: mounted_product_ids,
                            published_day: epoch_us(published_at::TIMESTAMPTZ) // {day_us}}}, {newest}))
    FROM {stories} WHERE story_id >= 1 AND {published} GROUP BY story_id);

CREATE TABLE mounts AS
SELECT DISTINCT story_row, product_id FROM (SELECT story_row, unnest(mounted) AS product_id FROM stories);

CREATE TABLE pairs AS
SELECT story_row, product_row FROM mounts JOIN products USING (product_id);
"""
_NEWEST = "row(day, -file_index::BIGINT, -file_row_number)"
_PUBLISHED = "epoch_us(published_at::TIMESTAMPTZ) // {day_us} <= day"


@contextmanager
def open_database(files: Mapping[str, TableFiles]) -> Iterator[duckdb.DuckDBPyConnection]:
    """The tables within a memory limit; what does not fit goes to a temporary folder.

    Views `impressions` (day, user_id, story_id, us, clicked, occasion: the request, or the time without one) and
    `product_clicks` (day, user_id, product_id, us). Tables `stories` and `products`: each item once, as its
    newest row has it, in order of id, numbered from 1 on; `mounts` with products of any id, `pairs` with known ones.

    Raises:
        DataError: a file is damaged behind its footer.
        StorageError: memory or disk is full, or a file that was read is gone.
    """
    with open_scratch() as connection, _whole_files(files):
        sources = {table: _source(table, found) for table, found in files.items()}
        connection.execute(_EVENTS.format(day_us=DAY_US, **sources))
        published = _PUBLISHED.format(day_us=DAY_US)
        connection.execute(_CATALOGS.format(day_us=DAY_US, newest=_NEWEST, published=published, **sources))
        yield connection


@contextmanager
def open_scratch() -> Iterator[duckdb.DuckDBPyConnection]:
    """An empty database within a memory limit; what does not fit goes to a temporary folder.

    Raises:
        StorageError: memory or disk is full, or a file that was read is gone.
    """
    with _spill_folder() as spill:
        settings: dict[str, str | bool | int | float | list[str]] = {
            "memory_limit": MEMORY,
            "temp_directory": spill,
            "preserve_insertion_order": False,
        }
        with duckdb.connect(config=settings) as connection:
            connection.execute("SET enable_progress_bar = false")
            yield connection


@contextmanager
def _whole_files(files: Mapping[str, TableFiles]) -> Iterator[None]:
    try:
        yield
    except duckdb.OperationalError:
        raise
    except duckdb.Error as error:  # damage has no class of its own, and its message seldom the file
        raise DataError(
            f"a file of the logs is damaged: {str(error).splitlines()[0]}",
            expected="whole Parquet files, and text in UTF-8",
            where=os.path.commonpath([path for table in files.values() for path in table.paths]),
            remedy="`storyrec validate-logs` names the file; write its partition again from its source",
        ) from error


@contextmanager
def _spill_folder() -> Iterator[str]:
    try:
        with tempfile.TemporaryDirectory(prefix="storyrec-analyze-") as spill:
            yield spill
    except (OSError, duckdb.OperationalError) as error:  # out of disk or memory, or a file of the logs is gone
        raise StorageError(
            f"cannot measure the logs: {str(error).splitlines()[0]}",
            expected="files that stay while they are read, and room for temporary ones",
            where=tempfile.gettempdir(),
            remedy="free space there or name another folder in TMPDIR, then run the same command again",
        ) from error


def read_columns(
    connection: duckdb.DuckDBPyConnection, query: str, parameters: Sequence[object] = ()
) -> dict[str, npt.NDArray[Any]]:
    """The columns of a query's answer that has no nulls, by name."""
    found = connection.execute(query, parameters).fetchnumpy()
    return {name: np.asarray(column) for name, column in found.items()}


def _source(table: str, files: TableFiles) -> str:
    """The rows of the files with the day of their partition."""
    paths = ", ".join("'" + path.replace("'", "''") + "'" for path in files.paths)
    days = ", ".join(str(day_number(day)) for day in files.days)
    # files may differ in the unit of their times, and of signed and unsigned ids together DuckDB makes floats
    ids = ", ".join(f"{field.name}::BIGINT AS {field.name}" for field in TABLES[table] if field.type == pa.int64())
    return f"""(SELECT * REPLACE ({ids}), ([{days}])[file_index::BIGINT + 1] AS day, file_index, file_row_number
                FROM read_parquet([{paths}], union_by_name = true))"""
