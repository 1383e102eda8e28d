"""The step build_dataset: validated logs become the arrays that training and evaluation read.

What is made of one day's files alone is kept from run to run (`parts`). Here the days are put together, array by
array straight into the dataset's folder, so that memory holds one day and never the covers.

Suffixes: C = clicks, M = pairs, N = items with the padding row.
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.arrays import load_array, load_record, new_array
from storyrec.config import Config
from storyrec.data.build_catalog import write_catalog
from storyrec.data.build_instances import write_instances_by_spark, write_instances_here
from storyrec.data.catalog import Catalog
from storyrec.data.dataset import ARRAYS, FORMAT, RECORDS, SUMMARY, Dataset, Digest
from storyrec.data.events import (
    IMPRESSIONS,
    PRODUCT_CLICKS,
    STORY_CLICKS,
    Impressions,
    load_clicks,
    load_impressions,
    merged_places,
)
from storyrec.data.parts import Part, Parts
from storyrec.data.sampling import is_sampled
from storyrec.data.validated import ValidatedLogs
from storyrec.data.windows import DayCounts, resolve_windows
from storyrec.features.covers import COVERS
from storyrec.features.sequences import DAY_US, ClickLog, distinct, midnight_us
from storyrec.features.titles import TOKENIZER, train_vocabulary
from storyrec.logs.partitions import VALIDATED, day_number
from storyrec.progress import track
from storyrec.storage import FolderStorage, Storage, one_writer, open_storage, write_file, write_folder

Int64s = npt.NDArray[np.int64]


def build_dataset(config: Config, *, day: date, out: Path) -> Dataset:
    """Step: turn the validated logs up to a day into the arrays that training and evaluation read.

    Only days that are new or changed since the last run are read. A dataset that was made of the same files with
    the same settings stays as it is.

    Args:
        config: `locations.work` holds the validated logs; `windows`, `features` and seeds are settings.
        day: the last held-out day.
        out: the folder to write.

    Returns:
        The dataset, memory-mapped.

    Raises:
        MissingPartition: the day is not validated or was stopped.
        DataError: there is nothing to train on, or a file cannot be read.
    """
    storage = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    logs = ValidatedLogs(storage, day=day)
    with _parts_folder(storage) as folder, one_writer(folder / ".lock"):
        parts = Parts(storage, folder=folder, prefixes=(VALIDATED, COVERS))
        made_of = parts.version(logs.keys(), of=(FORMAT, day, _settings(config)))
        if not _is_made_of(out, made_of):
            with write_folder(out) as draft:
                _build(config, logs, parts, draft, made_of=made_of)
    return Dataset.load(out)


def _build(config: Config, logs: ValidatedLogs, parts: Parts, folder: Path, *, made_of: str) -> None:
    day, user_share = logs.day, config.windows.user_share
    # covers are copied and words counted while the main thread goes on with the events
    with track("build_dataset", total=6) as progress, ThreadPoolExecutor(1) as pool:
        windows = resolve_windows(
            day=day,
            days=sorted(logs.files["impressions"]),
            count=_Counter(logs, parts, user_share=user_share).count,
            num_time_blocks=config.model.num_time_blocks,
            **config.windows.model_dump(exclude={"user_share"}),
        )
        progress.advance(note="catalogs")
        holdout_start, history_start = windows.holdout_start(day), windows.history_start(day)
        written = partial(write_catalog, logs, parts, folder=folder, holdout_start=holdout_start, pool=pool)
        products = written("products")
        stories = written("stories", products=products.catalog)
        words = pool.submit(
            train_vocabulary,
            pa.chunked_array([*stories.known_titles.chunks, *products.known_titles.chunks], pa.string()),
            size=config.features.vocabulary_size,
            min_count=config.features.min_word_count,
        )
        progress.advance(note="clicks")
        for kind, table, catalog in (
            (STORY_CLICKS, "impressions", stories.catalog),
            (PRODUCT_CLICKS, "product_clicks", products.catalog),
        ):
            files = logs.files[table]
            made = parts.make(kind, files, days=[d for d in files if d >= history_start])
            since = partial(_some, since_us=midnight_us(history_start), user_share=user_share)
            _write_clicks([since(load_clicks(part)) for part in made], folder, name=kind.name, catalog=catalog)
        for kind in (IMPRESSIONS, STORY_CLICKS, PRODUCT_CLICKS):
            parts.forget(kind, before=history_start)
        progress.advance(note="instances")
        if config.spark.master:
            left_out = write_instances_by_spark(config, logs, stories.catalog, windows, folder)
        else:
            left_out = write_instances_here(config, logs, parts, stories.catalog, windows, folder)
        progress.advance(note="words and covers")
        vocabulary = words.result()
        vocabulary.save(folder / TOKENIZER)
        for written_catalog in (products, stories):
            written_catalog.covers.result()
        progress.advance(note="digest")
        content: dict[str, Any] = {name: load_record(kind, folder, name=name) for name, kind in RECORDS.items()}
        content |= {name: load_array(folder / f"{name}.npy") for name in ARRAYS}
        dataset = Dataset(
            day=day,
            windows=windows,
            sequence_length=config.features.sequence_length,
            vocabulary=vocabulary,
            unknown_words={},
            left_out=left_out,
            made_of=made_of,
            digest="",
            **content,
        )
        unknown = pool.submit(dataset.count_unknown_words, vocabulary, max_words=config.features.max_title_words)
        digest = Digest(
            day=day,
            windows=windows,
            sequence_length=config.features.sequence_length,
            vocabulary=vocabulary,
        ).of_folder(folder)
        dataset = replace(dataset, unknown_words=unknown.result(), digest=digest)
        write_file(folder / SUMMARY, json.dumps(dataset.summary(), indent=2).encode())
        progress.advance()


class _Counter:
    """Counts of the days of impressions, as windows ask for them."""

    def __init__(self, logs: ValidatedLogs, parts: Parts, *, user_share: float) -> None:
        self._logs, self._parts, self._user_share = logs, parts, user_share
        self._last: tuple[Part, Impressions] | None = None

    def count(self, day: date) -> DayCounts:
        """What the windows need to know of a day."""
        (part,) = self._parts.make(IMPRESSIONS, self._logs.files["impressions"], days=[day])
        if self._last is None or self._last[0] != part:
            self._last = part, load_impressions(part).of_users(share=self._user_share)
        some = self._last[1]
        if len(part.days) > 1:
            some = some.take(some.shown_us_B // DAY_US == day_number(day))
        return DayCounts(
            num_clicked=int(some.clicked_B.sum()),
            clicked_users_U=distinct(some.user_ids_B[some.clicked_B]),
            passed_users_U=distinct(some.user_ids_B[~some.clicked_B]),
            is_fine=bool((some.shown_us_B % DAY_US).any()),
        )


def _write_clicks(logs: Sequence[ClickLog], folder: Path, *, name: str, catalog: Catalog) -> None:
    """Write one log of all, and the catalog row of each click."""
    total = sum(map(len, logs))
    fields = [f"{name}.{field}" for field in ("user_ids_C", "item_ids_C", "clicked_us_C")]
    paths = [folder / f"{field}.npy" for field in (*fields, f"{name.removesuffix('s')}_rows_C")]
    for path in paths:
        new_array(path, (total,), np.int64)
    for log, places_C in zip(logs, merged_places(logs), strict=True):
        columns = (log.user_ids_C, log.item_ids_C, log.clicked_us_C, catalog.rows(log.item_ids_C))
        for path, values_C in zip(paths, columns, strict=True):
            if total:
                np.load(path, mmap_mode="r+")[places_C] = values_C  # mapped anew, so that it leaves the memory


def _some(log: ClickLog, *, since_us: int, user_share: float) -> ClickLog:
    """Those of sampled users in the history: a month's part may hold days before it."""
    kept_C = (log.clicked_us_C >= since_us) & is_sampled(log.user_ids_C, share=user_share)
    if kept_C.all():
        return log
    return ClickLog(log.user_ids_C[kept_C], log.item_ids_C[kept_C], log.clicked_us_C[kept_C])


def _settings(config: Config) -> object:
    """What decides, besides the files, what a dataset is."""
    sections = (config.windows.model_dump(mode="json"), config.features.model_dump(mode="json"))
    return sections, config.aden.seed, config.model.num_time_blocks


def _is_made_of(folder: Path, made_of: str) -> bool:
    try:
        return bool(json.loads((folder / SUMMARY).read_bytes())["made_of"] == made_of)
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def _parts_folder(storage: Storage) -> Iterator[Path]:
    """Beside the validated logs, where these are in a folder."""
    if isinstance(storage, FolderStorage):
        yield storage.folder / "parts"
        return
    with TemporaryDirectory(prefix="storyrec-parts-") as folder:
        yield Path(folder)
