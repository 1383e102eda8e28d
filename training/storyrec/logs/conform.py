"""Casting what was found in a file to the columns and types of the log contract, where nothing is lost by it."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.errors import SchemaMismatch

MAX_EXAMPLE = 40  # characters of a value, in an error


def conform(rows: pa.Table, schema: pa.Schema, *, where: str, any_lossless: bool = False) -> tuple[pa.Table, set[str]]:
    """Cast rows to a schema where nothing is lost by it.

    Args:
        rows: the table as it was found.
        schema: names and types to arrive at.
        where: the file, for the error.
        any_lossless: also cast between kinds, such as whole floats to integers: a table that went through
            another tool.

    Returns:
        The table in the schema's order, and the names of the columns beyond it.

    Raises:
        SchemaMismatch: names each missing column and each wrong type.
    """
    columns, found, expected, broken = [], [], [], []
    for field in schema:
        count = rows.schema.names.count(field.name)
        reason = "is missing" if count == 0 else "is there more than once"
        if count == 1:
            column = rows.column(field.name)
            reason = f"has type {column.type}"
            if column.type == field.type:
                columns.append(column)
                continue
            if any_lossless or _may_cast(column.type, field.type):
                try:
                    columns.append(column.cast(field.type))
                    continue
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    reason += f" and cannot be cast without loss ({error})"
            elif pa.types.is_timestamp(column.type) and pa.types.is_timestamp(field.type):
                reason += " without a time zone: its times may be anybody's, UTC is wanted"
            else:
                reason += _example(column)
        found.append(f"column '{field.name}' {reason}")
        expected.append(f"{field.name}: {field.type}")
        broken.append(field.name)
    if found:
        raise ColumnsMismatch("; ".join(found), "; ".join(expected), where, tuple(broken))
    table = pa.Table.from_arrays(columns, schema=schema)
    for index, field in enumerate(schema):
        if field.name == "mounted_product_ids" and table.column(index).null_count:
            table = table.set_column(index, field, _empty_for_null(table.column(index), field.type))
    return table, set(rows.schema.names) - set(schema.names)


class ColumnsMismatch(SchemaMismatch):
    """A SchemaMismatch that still knows its columns."""

    def __init__(self, found: str, expected: str, where: str, columns: tuple[str, ...]) -> None:
        super().__init__(
            found,
            expected=expected,
            where=where,
            remedy="write the partition again with the columns of the log contract",
        )
        self.columns = columns


def _may_cast(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pa.types.is_null(found):
        return True
    if pa.types.is_timestamp(wanted):
        return bool(pa.types.is_timestamp(found) and found.tz is not None)
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(found))
    if pa.types.is_string(wanted):
        return bool(
            pa.types.is_large_string(found) or (pa.types.is_dictionary(found) and pa.types.is_string(found.value_type))
        )
    if pa.types.is_float32(wanted):
        return bool(pa.types.is_float16(found) or pa.types.is_float32(found))
    if pa.types.is_float64(wanted):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    if pa.types.is_list(wanted):
        is_list = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        same = is_list and found.value_type == wanted.value_type
        return same or (is_list and _may_cast(found.value_type, wanted.value_type))
    return False


def _example(column: pa.ChunkedArray) -> str:
    values = column.drop_null().slice(0, 1).to_pylist()
    return f", such as {str(values[0])[:MAX_EXAMPLE]!r}" if values else ""


def _empty_for_null(column: pa.ChunkedArray, list_type: pa.DataType) -> pa.Array:
    lists = column.combine_chunks()
    lengths = np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pc.list_flatten(lists)).cast(list_type)
