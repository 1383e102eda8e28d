"""Training sets for other teams: a service's features as they were known at the moment of each label."""

import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storyrec.errors import ConfigError, DataError, MissingPartition, SchemaMismatch
from storyrec.features.asof import MOMENT, Ages, AsofJoin, asof_join
from storyrec.features.catalog import Catalog, CatalogService, CatalogView
from storyrec.features.labels import Labels, read_labels
from storyrec.progress import track
from storyrec.storage import write_file

BATCH_ROWS = 262_144
MANIFEST_SUFFIX = ".manifest.json"
THE_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ViewJoined:
    """What one view gave.

    Attributes:
        name, version: of the view.
        num_nulls: labels without a value, by feature.
        newest_value: the event time of its newest row; labels long after it may miss what came since.
        oldest_age_seconds: the longest time from an event to a label that saw it; None where none did.
        partitions: SHA-256 by file.
    """

    name: str
    version: int
    num_nulls: dict[str, int]
    newest_value: datetime
    oldest_age_seconds: float | None
    partitions: dict[str, str]


@dataclass(frozen=True)
class LabelsJoined:
    """What was joined from what; the manifest beside the output.

    Attributes:
        out, labels: the file written and the file of labels, with their SHA-256.
        num_rows: of both.
        first_label, last_label: the range of the labels' moments.
        service, version: what was joined.
        views: what each view gave, in the order of the added columns.
    """

    out: str
    out_sha256: str
    labels: str
    labels_sha256: str
    num_rows: int
    first_label: datetime
    last_label: datetime
    service: str
    version: int
    views: list[ViewJoined]


def join_labels(file: Path, out: Path, *, service: str, catalog: Catalog, now: datetime) -> LabelsJoined:
    """Write labels with a service's features as they were known at each label's moment.

    A label sees the values whose event time and known time are not later than its own moment: of those, the
    newest event, and of one event what was known last. It equals `FeatureStoreClient.historical`.

    Args:
        file: Parquet, see `read_labels`; all columns are kept, and the order of the rows.
        out: Parquet to write. A feature without a value is null. Beside it comes OUT.manifest.json.
        service: a feature service.
        catalog: of the work folder whose offline partitions are read.
        now: no label may be later.

    Raises:
        ConfigError: the service is unknown, or `out` is there already.
        DataError: labels or partitions cannot be joined, or changed meanwhile.
        MissingPartition: a view of the service has no partition.
        StorageError: the disk is full or a partition unreadable.
    """
    asked = _find_service(catalog, service)
    _require_new(out)
    labels = read_labels(
        file,
        keys=catalog.keys_of(asked),
        features=[name for names in asked.features.values() for name in names],
        now=now,
    )
    parts = {view: _partitions(catalog.views[view]) for view in asked.features}
    stamps = _stamps(file, parts)
    added = [_fields(parts[view], names) for view, names in asked.features.items()]
    schema = pa.schema([*labels.schema, *(column for fields in added for column in fields)], labels.schema.metadata)

    with _scratch(out) as folder, track("join_labels", total=len(parts) + 1) as tracker:
        with asof_join(labels.moments, folder) as join:
            ages = {}
            for view, names in asked.features.items():
                ages[view] = join.add(catalog.views[view], files=parts[view], names=names)
                tracker.advance(note=view)
            num_nulls = _write(join, labels, folder / "out", schema=schema)
        sums = {path: _sha256(path) for path in stamps}
        if _stamps(file, parts) != stamps:
            raise DataError(
                "the labels or partitions changed while they were joined",
                expected="the same files until the end",
                where=f"{file} and {', '.join(catalog.views[view].path for view in parts)}",
                remedy="run the same command again when the day's features are built",
            )
        first, last = (THE_BEGINNING + timedelta(microseconds=us) for us in _range(labels))
        joined = LabelsJoined(
            out=str(out),
            out_sha256=_sha256(str(folder / "out")),
            labels=str(file),
            labels_sha256=sums[str(file)],
            num_rows=len(labels.moments),
            first_label=first,
            last_label=last,
            service=asked.name,
            version=asked.version,
            views=[
                _view_joined(
                    catalog.views[view],
                    ages[view],
                    num_nulls={name: num_nulls[name] for name in names},
                    partitions={path: sums[path] for path in parts[view]},
                )
                for view, names in asked.features.items()
            ],
        )
        content = json.dumps(asdict(joined), indent=2, default=str) + "\n"
        write_file(out.with_name(out.name + MANIFEST_SUFFIX), content.encode())
        (folder / "out").replace(out)
        tracker.advance(note=str(out))
    return joined


def _find_service(catalog: Catalog, name: str) -> CatalogService:
    if name not in catalog.services:
        raise ConfigError(
            f"there is no service '{name}'",
            expected=f"one of {', '.join(catalog.services)}",
            where="--service",
            remedy="choose one from docs/feature-catalog.md",
        )
    return catalog.services[name]


def _require_new(out: Path) -> None:
    if out.exists():
        raise ConfigError(
            "the output is there already",
            expected="a new file",
            where=str(out),
            remedy="name another file, or remove this one and its manifest",
        )


def _partitions(view: CatalogView) -> list[str]:
    found = sorted(glob.glob(view.path))
    if not found:
        raise MissingPartition(
            f"there is nothing of {view.name} yet",
            expected="at least one day",
            where=view.path,
            remedy="run build_features for a day, for embeddings also publish_features; or check locations.work",
        )
    return found


def _fields(files: Sequence[str], names: Sequence[str]) -> list[pa.Field]:
    """The columns of a view's partitions, which must be of one type each."""
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


def _write(join: AsofJoin, labels: Labels, path: Path, *, schema: pa.Schema) -> dict[str, int]:
    """Write the labels with what was joined; returns the nulls of each added column."""
    added = schema.names[len(labels.schema) :]
    num_nulls, written = dict.fromkeys(added, 0), 0
    with pq.ParquetFile(labels.path) as file, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in file.iter_batches(BATCH_ROWS):
            rows = pa.Table.from_batches([batch])
            values = join.read(written, len(rows))
            for name in added:
                rows = rows.append_column(schema.field(name), values[name].cast(schema.field(name).type))
                num_nulls[name] += values[name].null_count
            writer.write_table(rows)
            written += len(rows)
    if written != len(labels.moments):
        raise DataError(
            f"{written} rows came out of {len(labels.moments)} labels",
            expected="every label once",
            where=str(labels.path),
            remedy="check that nobody writes this file, then run the same command again",
        )
    return num_nulls


def _view_joined(view: CatalogView, ages: Ages, *, num_nulls: dict[str, int], partitions: dict[str, str]) -> ViewJoined:
    newest = THE_BEGINNING + timedelta(microseconds=ages.newest_us)
    oldest = None if ages.oldest_us is None else ages.oldest_us / 1e6
    return ViewJoined(view.name, view.version, num_nulls, newest, oldest, partitions)


def _range(labels: Labels) -> tuple[int, int]:
    found = pc.min_max(labels.moments[MOMENT]).as_py()
    return found["min"], found["max"]


def _stamps(file: Path, parts: dict[str, list[str]]) -> dict[str, tuple[int, int, int]]:
    """What changes when a file is written again, by path."""
    paths = [str(file), *(path for files in parts.values() for path in files)]
    found = {path: os.stat(path) for path in paths}
    return {path: (stat.st_ino, stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside the output for what is not finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}.joining-*"):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.joining-") as folder:
        yield Path(folder)
