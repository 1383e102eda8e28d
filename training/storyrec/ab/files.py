"""The Parquet files of a test's log, known by their footers."""

from pathlib import Path

import pyarrow as pa

from storyrec.ab.contract import OPTIONAL
from storyrec.errors import DataError, SchemaMismatch
from storyrec.logs.conform import conform
from storyrec.logs.partitions import read_footer
from storyrec.storage import FolderStorage


def source_of(path: Path, schema: pa.Schema, *, name: str) -> str:
    """What DuckDB selects from to have the rows of a log.

    Args:
        path: a Parquet file, or a folder of them at any depth.
        schema: `EXPOSURES` or `OUTCOMES`; every file is checked by its footer.
        name: of the log, for errors.

    Raises:
        SchemaMismatch: a column is missing or has another type.
        DataError: there is no file, one is no Parquet file, or all are empty.
    """
    storage = FolderStorage(path.parent if path.is_file() else path)
    keys = [path.name] if path.is_file() else [key for key in storage.list() if key.endswith(".parquet")]
    if not keys:
        raise DataError(
            f"there are no {name}",
            expected="a Parquet file or a folder of them",
            where=str(path),
            remedy="name the place of the log",
        )
    num_rows = 0
    for key in keys:
        footer = read_footer(storage, key)
        found = footer.schema.to_arrow_schema()
        wanted = pa.schema([field for field in schema if field.name in found.names or field.name not in OPTIONAL])
        try:
            conform(found.empty_table(), wanted, where=f"{storage.url}/{key}")
        except SchemaMismatch as error:
            raise SchemaMismatch(
                error.found,
                expected=error.expected,
                where=error.where,
                remedy="write the log with the columns that docs/online-test.md lists; times as timestamp[us, UTC]",
            ) from error
        num_rows += footer.num_rows
    if not num_rows:
        raise DataError(
            f"the {name} are empty",
            expected="at least one row",
            where=str(path),
            remedy="name the log of a test that has begun",
        )
    quoted = ", ".join("'" + f"{storage.url}/{key}".replace("'", "''") + "'" for key in keys)
    return f"read_parquet([{quoted}], union_by_name = true, hive_partitioning = false)"
