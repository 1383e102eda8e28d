"""Another team's labels: a Parquet file of ids and moments, to which features are joined.

Only the ids and moments are read here; whatever else the file holds goes through untouched.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storyrec.errors import DataError, SchemaMismatch
from storyrec.features.asof import MOMENT
from storyrec.features.events import EVENT_TIME
from storyrec.features.packed import CURRENT
from storyrec.schema import TIMESTAMP

INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Labels:
    """A file of labels that can be joined.

    Attributes:
        path: the file.
        schema: of all its columns.
        moments: the join keys, int64 or text, and MOMENT, int64, in the order of the rows.
    """

    path: Path
    schema: pa.Schema
    moments: pa.Table


def read_labels(path: Path, *, keys: Mapping[str, str], features: Sequence[str], now: datetime) -> Labels:
    """Check a file of labels and read its ids and moments.

    Args:
        path: Parquet; the join keys and `event_timestamp`, aware, among its columns.
        keys: the join keys of the features, and their types: Int64 or String.
        features: the columns that will be added.
        now: no label may be later.

    Raises:
        DataError: the file is unreadable or empty; an id or moment is missing, out of range or in the future.
        SchemaMismatch: a column is missing, doubled, in the way or of another type.
    """
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"the labels cannot be read ({error})",
            expected="one Parquet file",
            where=str(path),
            remedy="write it anew, in pandas: labels.to_parquet(...)",
        ) from error
    _require_columns(schema, keys=keys, features=features, where=str(path))
    table = pq.read_table(path, columns=[*keys, EVENT_TIME])
    if not len(table):
        raise DataError(
            "there are no labels", expected="at least one row", where=str(path), remedy="check how the file is made"
        )
    columns = {
        key: (_ids if kind == "Int64" else _models)(table[key], where=f"{path}, column '{key}'")
        for key, kind in keys.items()
    }
    columns[MOMENT] = _moments(table[EVENT_TIME], now=now, where=f"{path}, column '{EVENT_TIME}'")
    return Labels(path, schema, pa.table(columns))


def _require_columns(schema: pa.Schema, *, keys: Mapping[str, str], features: Sequence[str], where: str) -> None:
    missing = [name for name in (*keys, EVENT_TIME) if name not in schema.names]
    if missing:
        raise SchemaMismatch(
            f"the labels have no column {', '.join(missing)}, but {', '.join(schema.names)}",
            expected=f"{', '.join(keys)} and {EVENT_TIME} (aware)",
            where=where,
            remedy="rename the columns, or choose a service with another key: docs/feature-catalog.md",
        )
    doubled = [name for name, count in Counter([*schema.names, *features]).items() if count > 1]
    if doubled:
        raise SchemaMismatch(
            f"column {', '.join(doubled)} would be there twice",
            expected=f"each label column once, and none named as a feature: {', '.join(features)}",
            where=where,
            remedy="rename these columns of the labels",
        )
    for key, expected in keys.items():
        kind = schema.field(key).type
        if expected == "String" and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise SchemaMismatch(
                f"the models are of type {kind}",
                expected="text: the version of the model whose row each label shall have",
                where=f"{where}, column '{key}'",
                remedy="write versions, as `storyrec features models` prints them",
            )
        if expected == "Int64" and not pa.types.is_integer(kind):
            raise SchemaMismatch(
                f"the ids are of type {kind}",
                expected="integers: a float above 2**53 is another id",
                where=f"{where}, column '{key}'",
                remedy=f"drop rows without an id, then, in pandas: labels['{key}'].astype('int64')",
            )
    kind = schema.field(EVENT_TIME).type
    if not pa.types.is_timestamp(kind) or kind.tz is None:
        raise SchemaMismatch(
            f"the moments are of type {kind}" + (", without a time zone" if pa.types.is_timestamp(kind) else ""),
            expected="timestamps with a time zone: a guessed one would shift what was known",
            where=f"{where}, column '{EVENT_TIME}'",
            remedy=f"say which it is, in pandas: labels['{EVENT_TIME}'].dt.tz_localize('UTC')",
        )


def _ids(column: pa.ChunkedArray, *, where: str) -> pa.ChunkedArray:
    _require_present(column, what="an id", where=where)
    largest = pc.max(column).as_py()
    if largest > INT64_MAX:
        raise DataError(
            f"the id {largest} in row {pc.index(column, pc.max(column)).as_py()}",
            expected=f"ids up to {INT64_MAX}",
            where=where,
            remedy="use the ids of the logs",
        )
    return column.cast(pa.int64())


def _models(column: pa.ChunkedArray, *, where: str) -> pa.ChunkedArray:
    _require_present(column, what="a model", where=where)
    row = pc.index(column, CURRENT).as_py()
    if row >= 0:
        raise DataError(
            f"a label asks for the {CURRENT} model, the first one in row {row}",
            expected="the version of a model: which one was current changes with the moment",
            where=where,
            remedy="name a version, as `storyrec features models` prints them, or choose the service's version 1",
        )
    return column.cast(pa.string())


def _moments(column: pa.ChunkedArray, *, now: datetime, where: str) -> pa.ChunkedArray:
    _require_present(column, what="a moment", where=where)
    if column.type.unit == "ns":
        column = pc.floor_temporal(column, unit="microsecond")
    try:
        moments = column.cast(TIMESTAMP)
    except pa.ArrowInvalid as error:
        raise DataError(
            f"a moment is beyond the calendar ({error})", expected="moments up to now", where=where
        ) from error
    late = pc.greater(moments, pa.scalar(now, TIMESTAMP))
    if pc.any(late).as_py():
        row = pc.index(late, True).as_py()
        raise DataError(
            f"{pc.sum(late).as_py()} labels are in the future, the first one in row {row}",
            expected=f"moments up to now, {now:%Y-%m-%d %H:%M:%S} UTC",
            where=where,
            remedy="check the unit and the time zone of the column",
        )
    return moments.cast(pa.int64())


def _require_present(column: pa.ChunkedArray, *, what: str, where: str) -> None:
    if column.null_count:
        row = pc.index(column.is_null(), True).as_py()
        raise DataError(
            f"{column.null_count} labels without {what}, the first one in row {row}",
            expected=f"{what} in every row",
            where=where,
            remedy="fill them in or drop these rows",
        )
