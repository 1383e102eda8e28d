"""Step `embed_covers`: pictures of items without a vector become cover vectors, by a network that the user names.

Pictures are read and decoded by threads ahead of the network. What is done is written in parts, and a
run that was stopped anywhere goes on with the rest.

Suffixes: B = pictures, V = cover, 512.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from datetime import date
from functools import partial
from itertools import islice

import numpy as np

from storyrec.ahead import read_ahead
from storyrec.config import Config
from storyrec.errors import DataError, StoryrecError
from storyrec.features.cover_network import CoverNetwork, Floats, load_network
from storyrec.features.covers import (
    CoverManifest,
    Outcome,
    Picture,
    PictureCounts,
    read_manifest,
    read_pictures,
    read_tried,
    write_broken,
    write_manifest,
    write_outcomes,
)
from storyrec.features.partitions import require_validated, validated_days, work_folder
from storyrec.features.picture_files import PictureFiles
from storyrec.features.pictures import BrokenPicture, UInt8s, decode_picture
from storyrec.logs.known import CATALOG_IDS
from storyrec.progress import Tracker, track
from storyrec.storage import FolderStorage, Storage, one_writer

NUM_READERS = 4
PART_SIZE = 1_024

log = logging.getLogger(__name__)

Pixels = UInt8s | BrokenPicture


@dataclass(frozen=True)
class CoversEmbedded:
    """What a run of `embed_covers` did.

    Attributes:
        day: the day asked for.
        network: version of the network.
        days: the days gone through, oldest first: this one, and earlier ones that this network had not embedded.
        tables: counts of these days by catalog table.
    """

    day: date
    network: str
    days: tuple[date, ...]
    tables: dict[str, PictureCounts]


def embed_covers(config: Config, *, day: date) -> CoversEmbedded | None:
    """Embed the pictures of a validated day, and of the validated days before it that this network has not embedded.

    A picture is read once; those of this day that are quarantined are tried again by every run. Another
    network, or another way to standardize pixels, embeds everything anew beside the vectors that are there.

    Args:
        config: settings; covers and locations.
        day: partition key.

    Returns:
        None where the settings name no model: nothing is done.

    Raises:
        MissingPartition, DayStopped: the day was not validated, or was stopped.
        ConfigError: the model does not fit.
        StorageError: disk or S3 fails; what is embedded so far is kept.
    """
    settings, locations = config.covers, config.locations
    if not settings.model:
        return None
    storage = FolderStorage(work_folder(locations.work))
    require_validated(storage, day)
    network = load_network(
        settings.model,
        s3_endpoint=locations.s3_endpoint,
        size=settings.picture_size,
        pixel_mean=settings.pixel_mean,
        pixel_std=settings.pixel_std,
    )
    folder = settings.picture_folder or locations.logs
    files = PictureFiles(
        folder=None if folder.startswith("s3://") else work_folder(folder),
        s3_endpoint=locations.s3_endpoint,
        max_bytes=int(settings.max_megabytes * 2**20),
    )
    read = partial(
        _read_picture, files=files, height=network.height, width=network.width, max_pixels=settings.max_pixels
    )
    with one_writer(storage.folder / "covers/.lock"):
        manifests = {d: read_manifest(storage, d) for d in validated_days(storage) if d <= day}
        days = [d for d, found in manifests.items() if d == day or not found or found.network != network.version]
        counts = []
        with track("embed_covers", total=len(days)) as tracker:
            for each in days:
                known = manifests[each]
                counts.append(
                    _embed_day(
                        storage,
                        each,
                        network=network,
                        read=read,
                        batch_size=settings.batch_size,
                        again=known is not None and known.network == network.version,
                        tracker=tracker,
                    )
                )
    tables = {table: _sum(day_counts[table] for day_counts in counts) for table in CATALOG_IDS}
    return CoversEmbedded(day, network.version, tuple(days), tables)


def _embed_day(
    storage: Storage,
    day: date,
    *,
    network: CoverNetwork,
    read: Callable[[str], Pixels],
    batch_size: int,
    again: bool,
    tracker: Tracker,
) -> dict[str, PictureCounts]:
    """Embed what a day still lacks, `again` with its quarantined pictures, and check that none got lost."""
    counts = {}
    for table in CATALOG_IDS:
        pictures, not_fetched = read_pictures(storage, table, day)
        tried = read_tried(storage, table, day, network=network.version)
        rest = [picture for picture in pictures if picture not in tried or (again and tried[picture])]
        outcomes = _watched(_outcomes(rest, network=network, read=read, batch_size=batch_size), rest, tracker=tracker)
        news = (found for found in outcomes if found.picture not in tried or tried[found.picture] != found.reason)
        for part in _parts(news):
            write_outcomes(storage, table, day, part, network=network.version)
        counts[table] = _close_table(
            storage, table, day, pictures=pictures, not_fetched=not_fetched, network=network.version
        )
    write_manifest(storage, CoverManifest(day, network.version, network.sha256, counts))
    return counts


def _outcomes(
    pictures: Sequence[Picture], *, network: CoverNetwork, read: Callable[[str], Pixels], batch_size: int
) -> Iterator[Outcome]:
    """What comes of each picture, in order; the next batch is read while the network has one."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        pixels = read_ahead(pool, read, (uri for _, uri in pictures), num_ahead=2 * batch_size)
        for start in range(0, len(pictures), batch_size):
            batch = pictures[start : start + batch_size]
            found = list(islice(pixels, len(batch)))
            whole = [each for each in found if not isinstance(each, BrokenPicture)]
            vectors = iter(network.embed(np.stack(whole)) if whole else ())
            for picture, each in zip(batch, found, strict=True):
                yield _broken(picture, each) if isinstance(each, BrokenPicture) else _embedded(picture, next(vectors))


def _embedded(picture: Picture, raw_V: Floats) -> Outcome:
    norm = float(np.linalg.norm(raw_V.astype(np.float64)))
    if not np.isfinite(norm) or norm == 0:
        return _broken(picture, BrokenPicture("cover_finite", f"a vector of norm {norm}"))
    return Outcome(picture, cover_V=(raw_V / norm).astype(np.float16), reason=None)


def _broken(picture: Picture, error: BrokenPicture) -> Outcome:
    return Outcome(picture, cover_V=None, reason=(error.rule, error.found))


def _read_picture(uri: str, *, files: PictureFiles, height: int, width: int, max_pixels: int) -> Pixels:
    try:
        return decode_picture(files.read(uri), height=height, width=width, max_pixels=max_pixels)
    except BrokenPicture as error:
        return error


def _watched(outcomes: Iterable[Outcome], pictures: Sequence[Picture], *, tracker: Tracker) -> Iterator[Outcome]:
    for outcome in outcomes:
        tracker.advance(1 / len(pictures) / len(CATALOG_IDS), note=outcome.picture[1])
        yield outcome


def _parts(outcomes: Iterable[Outcome]) -> Iterator[list[Outcome]]:
    """Outcomes in lists of PART_SIZE; where a disk or S3 fails midway, what is done comes before the error."""
    part: list[Outcome] = []
    failure = None
    try:
        for outcome in outcomes:
            part.append(outcome)
            if len(part) == PART_SIZE:
                yield part
                part = []
    except StoryrecError as error:
        failure = error
    if part:
        yield part
    if failure:
        raise failure


def _close_table(
    storage: Storage, table: str, day: date, *, pictures: Sequence[Picture], not_fetched: int, network: str
) -> PictureCounts:
    """Put the pictures without a vector into the quarantine, and check that every picture is accounted for.

    Raises:
        DataError: one is not; what lies on disk is not what was written.
    """
    tried = read_tried(storage, table, day, network=network)
    broken = {picture: reason for picture in pictures if (reason := tried.get(picture))}
    num_embedded = sum(1 for picture in pictures if picture in tried) - len(broken)
    write_broken(storage, table, day, broken)
    if num_embedded + len(broken) != len(pictures):
        raise DataError(
            f"{len(pictures)} pictures of {table} came in, {num_embedded} were embedded and {len(broken)} quarantined",
            expected="every picture in one of the two",
            where=f"{storage.url}/covers/{network}/{table}/dt={day}",
            remedy="run the same command again, and let no other program write there",
        )
    if broken and not num_embedded:
        log.warning(
            "not one of the %d pictures of %s on %s could be embedded; see the quarantine", len(broken), table, day
        )
    return PictureCounts(len(pictures), num_embedded, len(broken), not_fetched)


def _sum(counts: Iterable[PictureCounts]) -> PictureCounts:
    return PictureCounts(*(sum(column) for column in zip(*map(astuple, counts), strict=True)))
