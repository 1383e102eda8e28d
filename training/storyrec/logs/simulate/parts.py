"""Partitions of a simulated marketplace: columns in the contract's types, written part by part."""

from collections.abc import Mapping
from pathlib import Path

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

Columns = Mapping[str, pa.Array | npt.NDArray | list[str]]  # type: ignore[type-arg]


def to_table(columns: Columns, schema: pa.Schema) -> pa.Table:
    """A table of a schema from columns by name; other columns are left out."""
    arrays = []
    for field in schema:
        column = columns[field.name]
        arrays.append(column.cast(field.type) if isinstance(column, pa.Array) else pa.array(column, field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def write_part(table: pa.Table, folder: Path, *, partition: str, part: int, use_dictionary: bool) -> None:
    """Write one file of a partition: `folder/dt=<partition>/part-<part>.parquet`.

    Args:
        use_dictionary: whether columns repeat few values, as catalogs do; for events it costs time and space.
    """
    path = folder / f"dt={partition}" / f"part-{part}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", use_dictionary=use_dictionary)
