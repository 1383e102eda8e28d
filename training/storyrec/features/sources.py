"""The offline files of a view: what they hold, and whether they stay as they are while they are read."""

import glob
import hashlib
import os
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.errors import DataError, MissingPartition, SchemaMismatch
from storyrec.features.catalog import CatalogView

FileStamp = tuple[int, int, int]


def partition_files(view: CatalogView) -> list[str]:
    """The files of a view's partitions, in the order of the days.

    Raises:
        MissingPartition: there is none.
    """
    found = sorted(glob.glob(view.path))
    if not found:
        raise MissingPartition(
            f"there is nothing of {view.name} yet",
            expected="at least one day",
            where=view.path,
            remedy="run build_features for a day, for embeddings also publish_features; or check locations.work",
        )
    return found


def column_types(files: Sequence[str], names: Sequence[str]) -> list[pa.Field]:
    """Some columns of a view's partitions.

    Raises:
        DataError: a file cannot be read.
        SchemaMismatch: a file lacks a column or has another type than the first one.
    """
    schemas = {}
    for file in files:
        try:
            schemas[file] = pq.read_schema(file)
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"a partition cannot be read ({error})", where=file, remedy="build this day's features again"
            ) from error
    first = schemas[files[0]]
    for file, schema in schemas.items():
        differ = [n for n in names if n not in schema.names or schema.field(n).type != first.field(n).type]
        if differ:
            raise SchemaMismatch(
                f"a partition has {', '.join(differ)} of another type, or not at all",
                expected=f"the same columns in every partition, as in {files[0]}",
                where=file,
                remedy="build this day's features again",
            )
    return [pa.field(name, first.field(name).type) for name in names]


def stamp(path: str) -> FileStamp:
    """What changes when a file is written again."""
    found = os.stat(path)
    return found.st_ino, found.st_mtime_ns, found.st_size


def unchanged_sums(stamps: Mapping[str, FileStamp]) -> dict[str, str]:
    """SHA-256 of files, by path.

    Raises:
        DataError: a file was written again or removed since its stamp was taken.
    """
    sums = {path: sha256_of(path) for path in stamps if os.path.exists(path)}
    changed = [path for path, before in stamps.items() if path not in sums or stamp(path) != before]
    if changed:
        raise DataError(
            "labels or partitions changed while they were joined",
            expected="the same files until the end",
            where=", ".join(changed),
            remedy="run the same command again when the day's features are built",
        )
    return sums


def sha256_of(path: str) -> str:
    """SHA-256 of a file, which may be larger than memory."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
