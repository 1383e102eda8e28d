"""Cover vectors made from pictures, as they lie on disk beside the validated catalogs.

Below locations.work:
    covers/<network>/<table>/dt=D/part-*.parquet   a row per tried picture: its vector, or the rule it broke
    covers/dt=D.json                               the manifest, written last: the days up to D are whole
    quarantine/covers/<table>/dt=D/part-0.parquet  the pictures without a vector, with the reason
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.logs.known import CATALOG_IDS
from storyrec.logs.partitions import (
    QUARANTINE,
    VALIDATED,
    Partitions,
    encode,
    list_days,
    list_files,
    partition_key,
    read_days,
    read_partition,
    write_partition,
)
from storyrec.logs.quarantine import NUM_EXAMPLES, QuarantinedRows
from storyrec.schema import COVER_WIDTH
from storyrec.storage import Storage

COVERS = "covers/"
BROKEN = f"{QUARANTINE}{COVERS}"
TRIED = pa.schema([("item_id", pa.int64()), ("cover_uri", pa.string()), ("rule", pa.string()), ("found", pa.string())])
OUTCOMES = TRIED.append(pa.field("cover", pa.list_(pa.float16())))

PICTURE_RULES: Mapping[str, str] = MappingProxyType(
    {
        "picture_location": "a path below covers.picture_folder, file:///path or s3://bucket/key",
        "picture_there": "the file or object exists",
        "picture_readable": "the file or object may be read",
        "picture_file_size": "the file is not larger than covers.max_megabytes",
        "picture_format": "a JPEG, PNG, WebP, GIF or BMP picture",
        "picture_pixels": "the picture is not larger than covers.max_pixels",
        "picture_whole": "the picture can be decoded to its end",
        "cover_finite": "the network makes finite numbers of it, not all of them zero",
    }
)
"""Why a picture goes to quarantine: the rule it broke, and what was expected."""

Picture = tuple[int, str]  # item id, URI
Reason = tuple[str, str]  # rule, what was found


@dataclass(frozen=True)
class PictureCounts:
    """Pictures of items without a vector: those tried are embedded or quarantined.

    Attributes:
        pictures: to be read.
        embedded, quarantined: of them.
        not_fetched: further ones, whose URI is neither a file nor in S3.
    """

    pictures: int
    embedded: int
    quarantined: int
    not_fetched: int


@dataclass(frozen=True)
class CoverManifest:
    """What covers/dt=D.json says.

    Attributes:
        day: up to and including which all days are embedded.
        network: version of the network that embedded them.
        model_sha256: of its ONNX file.
        tables: counts of the day by catalog table.
    """

    day: date
    network: str
    model_sha256: str
    tables: Mapping[str, PictureCounts]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of one picture.

    Attributes:
        picture: item id and URI.
        cover_V: the vector, [512] of unit norm; None where there is none.
        reason: the rule that the picture broke and what was found, where there is no vector.
    """

    picture: Picture
    cover_V: npt.NDArray[np.float16] | None
    reason: Reason | None


def read_pictures(storage: Storage, table: str, day: date) -> tuple[list[Picture], int]:
    """The pictures of a validated day's items that have no vector, and how many more are not to be fetched.

    Raises:
        DataError: the partition cannot be read.
    """
    columns = (CATALOG_IDS[table], "cover", "cover_uri")
    found = read_days(storage, table, [day], prefix=VALIDATED, columns=columns, prepare=_without_vector)
    for problem in found.problems.values():
        raise problem
    rows = found.table
    pairs = list(zip(rows[CATALOG_IDS[table]].to_pylist(), rows["cover_uri"].to_pylist(), strict=True))
    pictures = [(item_id, uri) for item_id, uri in pairs if "://" not in uri or uri.startswith(("file://", "s3://"))]
    return pictures, len(pairs) - len(pictures)


def read_tried(storage: Storage, table: str, day: date, *, network: str) -> dict[Picture, Reason | None]:
    """Every picture of a day that a network has tried: None for a vector, else rule and what was found."""
    prefix = f"{COVERS}{network}/"
    rows = _read_day(storage, table, day, prefix=prefix, schema=OUTCOMES, columns=TRIED.names).to_pydict()
    pictures = zip(rows["item_id"], rows["cover_uri"], strict=True)
    broken = ((rule, found) if rule else None for rule, found in zip(rows["rule"], rows["found"], strict=True))
    return dict(zip(pictures, broken, strict=True))  # parts in their order: the last try of a picture counts


def write_outcomes(storage: Storage, table: str, day: date, outcomes: Sequence[Outcome], *, network: str) -> None:
    """Add a part to a day."""
    there = np.array([outcome.cover_V is not None for outcome in outcomes])
    cover_MV = [outcome.cover_V for outcome in outcomes if outcome.cover_V is not None]
    ends = np.concatenate([[0], np.cumsum(there * COVER_WIDTH)]).astype(np.int32)
    values = np.concatenate([np.empty(0, np.float16), *cover_MV])
    covers = pa.ListArray.from_arrays(pa.array(ends), pa.array(values), mask=pa.array(~there))
    rows = _tried_table([(outcome.picture, outcome.reason) for outcome in outcomes])
    prefix = f"{COVERS}{network}/{table}/dt={day}/"
    key = f"{prefix}part-{len(storage.list(prefix)):05}.parquet"
    storage.write(key, encode(rows.append_column(OUTCOMES.field("cover"), covers)))


def write_broken(storage: Storage, table: str, day: date, broken: Mapping[Picture, Reason]) -> None:
    """Put the pictures without a vector into the quarantine, in place of those that were there."""
    if broken:
        write_partition(storage, table, day, _tried_table(list(broken.items())), prefix=BROKEN, schema=TRIED)
    else:
        storage.delete(partition_key(table, day, prefix=BROKEN))


def read_manifest(storage: Storage, day: date) -> CoverManifest | None:
    """A day's manifest; None where its pictures are not embedded."""
    found = storage.read_versioned(_manifest_key(day))
    if found is None:
        return None
    read = json.loads(found[0])
    tables = {table: PictureCounts(**counts) for table, counts in read["tables"].items()}
    return CoverManifest(**{**read, "day": date.fromisoformat(read["day"]), "tables": tables})


def write_manifest(storage: Storage, manifest: CoverManifest) -> None:
    """Say that the days up to one are embedded; the last thing that is written of it."""
    storage.write(_manifest_key(manifest.day), json.dumps(asdict(manifest), indent=2, default=str).encode())


def list_covers(storage: Storage, table: str, *, day: date) -> tuple[str, dict[date, list[str]]]:
    """The files of a table's days up to one, by the network of the newest manifest up to then, and their prefix."""
    keys = storage.list(f"{COVERS}dt=")
    days = {date.fromisoformat(key.removeprefix(f"{COVERS}dt=").removesuffix(".json")) for key in keys}
    days = {d for d in days if d <= day}
    manifest = read_manifest(storage, max(days)) if days else None
    if manifest is None:
        return COVERS, {}
    prefix = f"{COVERS}{manifest.network}/"
    files = list_files(storage, table, prefix=prefix)
    return prefix, {d: files[d] for d in files if d in days}


def read_covers(storage: Storage, table: str, *, day: date) -> Partitions:
    """All outcomes of a table's days up to one, by the network of the newest manifest up to then.

    Raises:
        DataError: a file of them cannot be read.
    """
    prefix, files = list_covers(storage, table, day=day)
    outcomes = read_days(storage, table, files, prefix=prefix, files=files, schema=OUTCOMES)
    for problem in outcomes.problems.values():
        raise problem
    return outcomes


def list_broken_covers(storage: Storage, *, day: date | None = None) -> list[QuarantinedRows]:
    """Summarise the quarantined pictures of a day, or of all days: by day, table and rule."""
    found = []
    for table in CATALOG_IDS:
        for held in list_days(storage, table, prefix=BROKEN):
            if day in (None, held):
                rows = _read_day(storage, table, held, prefix=BROKEN, schema=TRIED)
                for rule, says in PICTURE_RULES.items():
                    some = rows.filter(pc.equal(rows["rule"], rule)).drop_columns(["rule"])
                    if some.num_rows:
                        examples = tuple(some.slice(0, NUM_EXAMPLES).to_pylist())
                        found.append(QuarantinedRows(held, f"{COVERS}{table}", rule, says, some.num_rows, examples))
    return sorted(found, key=lambda rows: rows.day)


def _without_vector(rows: pa.Table) -> pa.Table:
    """The rows that have a URI only, their cover column left out: a day's vectors need not be in memory at once."""
    has_uri = pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(rows["cover_uri"]), ""), False)
    return rows.filter(pc.and_(rows["cover"].is_null(), has_uri)).drop_columns(["cover"])


def _read_day(
    storage: Storage, table: str, day: date, *, prefix: str, schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """One day, which may have no file."""
    if not storage.list(f"{prefix}{table}/dt={day}/"):
        return schema.empty_table()
    return read_partition(storage, table, day, prefix=prefix, schema=schema, columns=columns)


def _tried_table(tried: Sequence[tuple[Picture, Reason | None]]) -> pa.Table:
    rows = [(*picture, *(reason or (None, None))) for picture, reason in tried]
    return pa.Table.from_pylist([dict(zip(TRIED.names, row, strict=True)) for row in rows], schema=TRIED)


def _manifest_key(day: date) -> str:
    return f"{COVERS}dt={day}.json"
