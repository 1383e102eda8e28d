"""Training sets for other teams: a service's features as they were known at the moment of each label."""

import json
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

from storyrec.errors import ConfigError, DataError
from storyrec.features.asof import MOMENT, AsofJoin, asof_join
from storyrec.features.catalog import Catalog, CatalogService
from storyrec.features.labels import Labels, read_labels
from storyrec.features.sources import column_types, partition_files, sha256_of, stamp, unchanged_sums
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
    newest_value: datetime | None
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
    _require_places(file, out)
    parts = {view: partition_files(catalog.views[view]) for view in asked.features}
    stamps = {path: stamp(path) for path in (str(file), *(path for paths in parts.values() for path in paths))}
    names = [name for features in asked.features.values() for name in features]
    labels = read_labels(file, keys=catalog.keys_of(asked), features=names, now=now)
    added = [field for view, features in asked.features.items() for field in column_types(parts[view], features)]

    with _scratch(out) as folder, track("join_labels", total=len(parts) + 1) as tracker:
        ages = {}
        with asof_join(labels.moments, folder) as join:
            for view, features in asked.features.items():
                ages[view] = join.add(catalog.views[view], files=parts[view], names=features)
                tracker.advance(note=view)
            num_nulls = _write(join, labels, folder / "out", added=added)
        sums = unchanged_sums(stamps)
        views = [
            ViewJoined(
                name=view,
                version=catalog.views[view].version,
                num_nulls={name: num_nulls[name] for name in features},
                newest_value=None if (newest_us := ages[view].newest_us) is None else _moment(newest_us),
                oldest_age_seconds=None if (oldest_us := ages[view].oldest_us) is None else oldest_us / 1e6,
                partitions={path: sums[path] for path in parts[view]},
            )
            for view, features in asked.features.items()
        ]
        joined = LabelsJoined(
            out=str(out),
            out_sha256=sha256_of(str(folder / "out")),
            labels=str(file),
            labels_sha256=sums[str(file)],
            num_rows=len(labels.moments),
            first_label=_moment(pc.min(labels.moments[MOMENT]).as_py()),
            last_label=_moment(pc.max(labels.moments[MOMENT]).as_py()),
            service=asked.name,
            version=asked.version,
            views=views,
        )
        manifest = json.dumps(asdict(joined), indent=2, default=str) + "\n"
        write_file(out.with_name(out.name + MANIFEST_SUFFIX), manifest.encode())
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


def _require_places(file: Path, out: Path) -> None:
    if not file.is_file():
        raise DataError(
            "there is no such file", expected="a Parquet file of labels", where=str(file), remedy="check the path"
        )
    if out.exists():
        raise ConfigError(
            "the output is there already",
            expected="a new file",
            where=str(out),
            remedy="name another file, or remove this one and its manifest",
        )


def _write(join: AsofJoin, labels: Labels, path: Path, *, added: Sequence[pa.Field]) -> dict[str, int]:
    """Write the labels with what was joined; returns the nulls of each added column."""
    schema = pa.schema([*labels.schema, *added], labels.schema.metadata)
    num_nulls, written = {column.name: 0 for column in added}, 0
    with pq.ParquetFile(labels.path) as file, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in file.iter_batches(BATCH_ROWS):
            rows = pa.Table.from_batches([batch])
            values = join.read(written, len(rows))
            for column in added:
                rows = rows.append_column(column, values[column.name].cast(column.type))
                num_nulls[column.name] += values[column.name].null_count
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


def _moment(us: int) -> datetime:
    return THE_BEGINNING + timedelta(microseconds=us)


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder beside the output for what is not finished."""
    out.parent.mkdir(parents=True, exist_ok=True)
    for leftover in out.parent.glob(f".{out.name}.joining-*"):  # of a killed run
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.joining-") as folder:
        yield Path(folder)
