"""Dataclasses of arrays as .npy files, one a field: `<name>.<field>.npy`; texts as Arrow files."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Record = TypeVar("Record")


class Texts(Sequence[str]):
    """Millions of texts that need not be in memory: an Arrow array as a sequence; `pa.array` takes it as it is."""

    def __init__(self, column: pa.StringArray) -> None:
        self.column = column

    def __len__(self) -> int:
        return len(self.column)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> "Texts": ...
    def __getitem__(self, place: int | slice) -> "str | Texts":
        if isinstance(place, slice):
            return Texts(self.column[place])
        text: str = self.column[int(place)].as_py()
        return text

    def __iter__(self) -> Iterator[str]:
        return iter(self.column.to_pylist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Texts) and self.column.equals(other.column)

    __hash__ = None  # type: ignore[assignment]

    def __arrow_array__(self, type: pa.DataType | None = None) -> pa.Array:
        return self.column if type is None else self.column.cast(type)


def array_fields(record: Any) -> list[tuple[str, npt.NDArray[Any]]]:
    """The arrays of a dataclass with their names, in the order of its fields; texts are left out."""
    named = ((field.name, getattr(record, field.name)) for field in fields(record))
    return [(name, value) for name, value in named if isinstance(value, np.ndarray)]


def save_record(record: Any, folder: Path, *, name: str, without: Collection[str] = ()) -> None:
    """Write the fields of a dataclass, each an array or a sequence of texts; some may be there already."""
    for field in fields(record):
        if field.name in without:
            continue
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.{field.name}.npy", value, allow_pickle=False)
        else:
            write_table(folder / f"{name}.{field.name}.arrow", pa.table({"text": pa.array(value, pa.string())}))


def load_record(kind: type[Record], folder: Path, *, name: str) -> Record:
    """The inverse of `save_record`; arrays are memory-mapped.

    Raises:
        OSError, EOFError, ValueError: a file is missing or is no such file.
    """
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        texts = folder / f"{name}.{field.name}.arrow"
        if texts.exists():
            (column,) = load_table(texts).combine_chunks().columns
            values[field.name] = Texts(column.chunk(0) if column.num_chunks else pa.array([], pa.string()))
        else:
            values[field.name] = load_array(folder / f"{name}.{field.name}.npy")
    return kind(**values)


def write_table(path: Path, table: pa.Table) -> None:
    """Write an Arrow file."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def load_table(path: Path) -> pa.Table:
    """A memory-mapped Arrow file.

    Raises:
        OSError, ValueError: it is missing or no such file.
    """
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def new_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """A file of zeros that has its room on the disk: a map into a hole of a full one would kill the process.

    Raises:
        OSError: the disk is full.
    """
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


def load_array(path: Path) -> npt.NDArray[Any]:
    """A memory-mapped array, as a plain one: indexing a memmap costs more."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
