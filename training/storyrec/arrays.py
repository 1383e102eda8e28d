"""Dataclasses of arrays as .npy files, one a field: `<name>.<field>.npy`; texts as JSON."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from storyrec.storage import write_file

Record = TypeVar("Record")


def array_fields(record: Any) -> list[tuple[str, npt.NDArray[Any]]]:
    """The arrays of a dataclass with their names, in the order of its fields; texts are left out."""
    named = ((field.name, getattr(record, field.name)) for field in fields(record))
    return [(name, value) for name, value in named if isinstance(value, np.ndarray)]


def save_record(record: Any, folder: Path, *, name: str) -> None:
    """Write every field of a dataclass, each an array or a list of texts."""
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.{field.name}.npy", value, allow_pickle=False)
        else:
            write_file(folder / f"{name}.{field.name}.json", json.dumps(list(value)).encode())


def load_record(kind: type[Record], folder: Path, *, name: str) -> Record:
    """The inverse of `save_record`; arrays are memory-mapped.

    Raises:
        OSError, EOFError, ValueError: a file is missing or is no such file.
    """
    values: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        text = folder / f"{name}.{field.name}.json"
        if text.exists():
            values[field.name] = json.loads(text.read_bytes())
        else:
            values[field.name] = load_array(folder / f"{name}.{field.name}.npy")
    return kind(**values)


def load_array(path: Path) -> npt.NDArray[Any]:
    """A memory-mapped array, as a plain one: indexing a memmap costs more."""
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
