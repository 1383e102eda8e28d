"""An online value: one key's row of a feature view as one string of bytes, little endian.

    format       uint8    FORMAT
    schema       uint32   CRC-32 of the fields' names and types: what other fields were packed into is no value
    event_us     int64    event time, epoch microseconds UTC
    complete_us  int64    until when the logs are in it, epoch microseconds UTC; 0: it was pushed
    sizes        uint32   bytes of each field
    fields       int64 or float32 arrays as they are, text as UTF-8

Suffixes: N = rows.
"""

import struct
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.errors import DataError

FORMAT = 1
ARRAYS: dict[str, np.dtype[Any]] = {"INT64_LIST": np.dtype("<i8"), "FLOAT_LIST": np.dtype("<f4")}
TEXT = "STRING"
FIRST_SIZE = slice(21, 25)
"""Where a value says how many bytes its first field has."""
CURRENT = "current"
"""What a reader asks for who pins no model."""

Int64s = npt.NDArray[np.int64]
Value = npt.NDArray[np.generic] | str


class Row(NamedTuple):
    """An unpacked value; the fields are still bytes.

    Attributes:
        event_us: event time, epoch microseconds.
        complete_us: until when the logs are in it, epoch microseconds; 0: it was pushed.
        fields: in the order of the view.
    """

    event_us: int
    complete_us: int
    fields: tuple[bytes, ...]


@dataclass(frozen=True)
class Layout:
    """How the rows of a view are packed.

    Attributes:
        view: its name.
        key: the column that names an entity, int64 > 0.
        fields: name and type (Feast's) of each feature.
        length: the most clicks of a sequence, whose fields are items and times; 0: the view is none.
        by_model: whether a second key names the model whose row it is.
        widths: how many numbers each feature is said to have; 0: any.
    """

    view: str
    key: str
    fields: tuple[tuple[str, str], ...]
    length: int
    by_model: bool = False
    widths: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The features."""
        return tuple(name for name, _ in self.fields)

    def of_model(self, version: str) -> "Layout":
        """The rows of one model, which stand by themselves."""
        return replace(self, view=f"{self.view}:{version}", by_model=False)

    @cached_property
    def schema(self) -> int:
        """What tells values of these fields from values of others."""
        return zlib.crc32(repr(self.fields).encode())

    @cached_property
    def head(self) -> struct.Struct:
        """What stands before the fields."""
        return struct.Struct(f"<BIqq{len(self.fields)}I")

    @cached_property
    def _start(self) -> bytes:
        return struct.pack("<BI", FORMAT, self.schema)

    def pack(self, row: Row) -> bytes:
        """The bytes of a row."""
        sizes = map(len, row.fields)
        return self.head.pack(FORMAT, self.schema, row.event_us, row.complete_us, *sizes) + b"".join(row.fields)

    def times(self, value: bytes | None) -> tuple[int, int] | None:
        """Event time and complete_us of packed bytes; None where they are no value of this layout."""
        if value is None or len(value) < self.head.size:
            return None
        kind, schema, event_us, complete_us = struct.unpack_from("<BIqq", value)
        return (event_us, complete_us) if (kind, schema) == (FORMAT, self.schema) else None

    def unpack(self, value: bytes | None) -> Row | None:
        """The row of packed bytes; None where they are no value of this layout."""
        if value is None or len(value) < self.head.size:
            return None
        kind, schema, event_us, complete_us, *sizes = self.head.unpack_from(value)
        if kind != FORMAT or schema != self.schema:
            return None
        stop, fields = self.head.size, []
        for size in sizes:
            fields.append(value[stop : stop + size])
            stop += size
        return Row(event_us, complete_us, tuple(fields))

    def first_field(self, value: bytes | None) -> bytes | None:
        """The first field of packed bytes, in a quarter of the time; None where they are no value of this layout."""
        size = self.head.size
        if value is None or len(value) < size or value[:5] != self._start:
            return None
        return value[size : size + int.from_bytes(value[FIRST_SIZE], "little")]

    def value(self, row: Row, name: str) -> Value:
        """A feature of a row: an array or text."""
        number = self.names.index(name)
        kind, content = self.fields[number][1], row.fields[number]
        return content.decode() if kind == TEXT else np.frombuffer(content, ARRAYS[kind])

    def pack_rows(self, rows: pa.RecordBatch, *, event_us_N: Int64s, complete_us: int) -> list[bytes]:
        """The bytes of many rows, straight from the columns' buffers.

        Args:
            rows: a column a field, without nulls.
            event_us_N: event times, [N] epoch microseconds.
            complete_us: the end of the window that the rows come from, epoch microseconds.

        Raises:
            DataError: a value is missing.
        """
        num_rows = rows.num_rows
        columns = [self._buffer(rows.column(name), name, kind) for name, kind in self.fields]
        head = [("format", "u1"), ("schema", "<u4"), ("event_us", "<i8"), ("complete_us", "<i8")]
        heads_N = np.empty(num_rows, [*head, ("sizes", "<u4", (len(columns),))])
        heads_N["format"], heads_N["schema"] = FORMAT, self.schema
        heads_N["event_us"], heads_N["complete_us"] = event_us_N, complete_us
        for number, (_, bounds) in enumerate(columns):
            heads_N["sizes"][:, number] = np.diff(bounds)
        columns.insert(0, (memoryview(heads_N.tobytes()), np.arange(num_rows + 1) * self.head.size))
        slices = [(content, bounds.tolist()) for content, bounds in columns]
        return [b"".join([c[b[row] : b[row + 1]] for c, b in slices]) for row in range(num_rows)]

    def _buffer(self, column: pa.Array, name: str, kind: str) -> tuple[memoryview, Int64s]:
        """The bytes of a whole column, and where each row begins in them."""
        values = column.values if kind in ARRAYS else column
        if column.null_count or values.null_count:
            raise DataError(
                f"{name} is missing in {column.null_count or values.null_count} rows",
                expected="a value in every row",
                where=f"rows of the view {self.view}",
                remedy="look at what wrote these rows",
            )
        if kind in ARRAYS:
            content = np.ascontiguousarray(values.to_numpy(zero_copy_only=False), ARRAYS[kind])
            bounds = column.offsets.to_numpy().astype(np.int64) * content.itemsize
            return content.data.cast("B"), bounds
        _, offsets, text = column.cast(pa.string()).buffers()
        bounds = np.frombuffer(offsets, np.int32)[column.offset : column.offset + len(column) + 1].astype(np.int64)
        return memoryview(text or b""), bounds
