"""The step build_dataset: validated logs become the arrays that training and evaluation read.

What is made of one day's files alone is kept from run to run (`parts`). Here the days are put together, array by
array straight into the dataset's folder, so that memory holds one day and never the covers.

Suffixes: C = clicks, M = pairs, N = items with the padding row.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.arrays import Texts, load_array, load_record, save_record
from storyrec.config import Config
from storyrec.data.catalog import Catalog, mounted_pairs, newest_rows
from storyrec.data.catalog_parts import CatalogRows, catalog_kind, covers_kind, load_rows
from storyrec.data.dataset import ARRAYS, FORMAT, RECORDS, SUMMARY, Dataset, Digest
from storyrec.data.events import IMPRESSIONS, PRODUCT_CLICKS, Impressions, load_clicks, load_impressions, merged_places
from storyrec.data.instances import Instances, split_training
from storyrec.data.parts import Part, Parts
from storyrec.data.spark import PARTS, Rules, open_session, read_instances, write_instances
from storyrec.data.validated import ValidatedLogs
from storyrec.data.windows import DayCounts, ResolvedWindows, resolve_windows
from storyrec.errors import DataError
from storyrec.features.covers import COVERS, OUTCOMES
from storyrec.features.partitions import work_folder
from storyrec.features.sequences import DAY_US, ClickLog, distinct, midnight_us, to_int64
from storyrec.features.titles import TOKENIZER, train_vocabulary
from storyrec.logs.partitions import VALIDATED, day_number
from storyrec.progress import track
from storyrec.schema import COVER_WIDTH, TABLES
from storyrec.storage import FolderStorage, Storage, one_writer, open_storage, write_file, write_folder

Int64s = npt.NDArray[np.int64]

UNKNOWN_STORY, NOT_DRAWN = "unknown story", "non-click that was not drawn"


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
    day = logs.day
    with track("build_dataset", total=6) as progress:
        windows = resolve_windows(
            day=day,
            days=sorted(logs.files["impressions"]),
            count=_Counter(logs, parts).count,
            num_time_blocks=config.model.num_time_blocks,
            **config.windows.model_dump(),
        )
        progress.advance(note="catalogs")
        holdout_start, history_start = windows.holdout_start(day), windows.history_start(day)
        products, known_products = _write_catalog(logs, parts, "products", folder, holdout_start=holdout_start)
        stories, known_stories = _write_catalog(
            logs, parts, "stories", folder, holdout_start=holdout_start, products=products
        )
        progress.advance(note="words")
        titles = [*known_stories["title"].chunks, *known_products["title"].chunks]
        vocabulary = train_vocabulary(
            Texts(pa.concat_arrays(titles)),
            size=config.features.vocabulary_size,
            min_count=config.features.min_word_count,
        )
        vocabulary.save(folder / TOKENIZER)
        del known_stories, known_products, titles
        progress.advance(note="clicks")
        for kind, catalog, domain in ((IMPRESSIONS, stories, "story"), (PRODUCT_CLICKS, products, "product")):
            files = logs.files[kind.name]
            made = parts.make(kind, files, days=[d for d in files if d >= history_start])
            logs_since = [_since(load_clicks(part), midnight_us(history_start)) for part in made]
            _write_clicks(logs_since, folder, domain=domain, catalog=catalog)
            parts.forget(kind, before=history_start)
        progress.advance(note="instances")
        if config.spark.master:
            left_out = _write_instances_by_spark(config, logs, stories, windows, folder)
        else:
            left_out = _write_instances(config, logs, parts, stories, windows, folder)
        progress.advance(note="digest")
        digest = Digest(
            day=day,
            windows=windows,
            sequence_length=config.features.sequence_length,
            vocabulary=vocabulary,
        ).of_folder(folder)
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
            digest=digest,
            **content,
        )
        unknown = dataset.count_unknown_words(vocabulary, max_words=config.features.max_title_words)
        dataset = replace(dataset, unknown_words=unknown)
        write_file(folder / SUMMARY, json.dumps(dataset.summary(), indent=2).encode())
        progress.advance()


class _Counter:
    """Counts of the days of impressions, as windows ask for them."""

    def __init__(self, logs: ValidatedLogs, parts: Parts) -> None:
        self._logs, self._parts = logs, parts
        self._last: tuple[Part, Impressions] | None = None

    def count(self, day: date) -> DayCounts:
        """What the windows need to know of a day."""
        (part,) = self._parts.make(IMPRESSIONS, self._logs.files["impressions"], days=[day])
        if self._last is None or self._last[0] != part:
            self._last = part, load_impressions(part)
        some = self._last[1]
        if len(part.days) > 1:
            some = some.take(some.shown_us_B // DAY_US == day_number(day))
        return DayCounts(
            num_clicked=int(some.clicked_B.sum()),
            clicked_users_U=distinct(some.user_ids_B[some.clicked_B]),
            passed_users_U=distinct(some.user_ids_B[~some.clicked_B]),
            is_fine=bool((some.shown_us_B % DAY_US).any()),
        )


def _write_catalog(
    logs: ValidatedLogs, parts: Parts, name: str, folder: Path, *, holdout_start: date, products: Catalog | None = None
) -> tuple[Catalog, pa.Table]:
    """Write the catalog at the end of the run's day, stories with their pairs.

    Returns:
        The catalog, and the log row of each item as the days before the held-out ones knew it.
    """
    files = logs.files[name]
    rows = load_rows(parts.make(catalog_kind(name), files, days=files), schema=TABLES[name])
    newest_N = newest_rows(rows.table, before_us=midnight_us(logs.day + timedelta(days=1)))
    visual = folder / f"{name}.visual_raw_NV.npy"
    _new_array(visual, (len(newest_N) + 1, COVER_WIDTH), np.float16)
    catalog = Catalog.from_table(rows.table, newest_N=newest_N, visual_raw_NV=load_array(visual))
    if not pc.any(pc.not_equal(pa.array(catalog.titles), "")).as_py():
        raise DataError(
            f"the catalog of {name} has {len(newest_N)} items and no title",
            expected="at least one item with a title, published up to the run's day",
            where=f"validated/{name}",
            remedy=f"look into quarantine/{name} and the validation reports",
        )
    rows_R = np.zeros(rows.table.num_rows, np.int64)
    rows_R[newest_N] = np.arange(1, len(newest_N) + 1)
    rows.put_covers(visual, rows_R=rows_R)
    prefix, files = logs.covers[name]
    embedded = load_rows(parts.make(covers_kind(name, prefix=prefix), files, days=files), schema=OUTCOMES)
    embedded.put_covers(visual, rows_R=_embedded_rows(embedded, catalog=catalog, log=rows, newest_N=newest_N))

    before = rows.table.slice(0, int(np.searchsorted(rows.day_R, day_number(holdout_start))))
    known = before.take(pa.array(newest_rows(before, before_us=midnight_us(holdout_start))))
    if products is not None:
        end_us, start_us = midnight_us(logs.day + timedelta(days=1)), midnight_us(holdout_start)
        newest = rows.table.take(pa.array(newest_N))
        all_pairs_M2, pairs_M2 = (
            mounted_pairs(table, story_catalog=catalog, product_catalog=products, products_before_us=before_us)
            for table, before_us in ((newest, end_us), (known, start_us))
        )
        catalog = catalog.with_mounted_categories(all_pairs_M2, products=products)
        is_new_M = catalog.published_us_N[all_pairs_M2[:, 0]] >= start_us
        np.save(folder / "pairs_M2.npy", pairs_M2)
        np.save(folder / "holdout_pairs_M2.npy", all_pairs_M2[is_new_M])
    save_record(catalog, folder, name=name, without=("visual_raw_NV",))
    return catalog, known


def _embedded_rows(embedded: CatalogRows, *, catalog: Catalog, log: CatalogRows, newest_N: Int64s) -> Int64s:
    """The catalog row that takes each embedded cover; 0 where the item's newest log row is not what was embedded."""
    rows_R = catalog.rows(to_int64(embedded.table["item_id"]))
    (known,) = np.nonzero(rows_R)
    place = newest_N[rows_R[known] - 1]
    same_uri = pc.equal(log.table["cover_uri"].take(pa.array(place)), embedded.table["cover_uri"].take(pa.array(known)))
    is_same = np.asarray(pc.fill_null(same_uri, False).to_numpy(), bool) & (log.day_R[place] == embedded.day_R[known])
    is_same &= ~log.has_cover_R[place]
    rows_R[known[~is_same]] = 0
    return rows_R


def _write_clicks(logs: Sequence[ClickLog], folder: Path, *, domain: str, catalog: Catalog) -> None:
    """Write one log of all, and the catalog row of each click."""
    total = sum(map(len, logs))
    names = [f"{domain}_clicks.{name}" for name in ("user_ids_C", "item_ids_C", "clicked_us_C")]
    paths = [folder / f"{name}.npy" for name in (*names, f"{domain}_click_rows_C")]
    for path in paths:
        _new_array(path, (total,), np.int64)
    for log, places_C in zip(logs, merged_places(logs), strict=True):
        columns = (log.user_ids_C, log.item_ids_C, log.clicked_us_C, catalog.rows(log.item_ids_C))
        for path, values_C in zip(paths, columns, strict=True):
            if total:
                np.load(path, mmap_mode="r+")[places_C] = values_C  # mapped anew, so that it leaves the memory


def _since(log: ClickLog, since_us: int) -> ClickLog:
    """A month's part may hold days before the history."""
    later_C = log.clicked_us_C >= since_us
    if later_C.all():
        return log
    return ClickLog(log.user_ids_C[later_C], log.item_ids_C[later_C], log.clicked_us_C[later_C])


def _write_instances(
    config: Config, logs: ValidatedLogs, parts: Parts, stories: Catalog, windows: ResolvedWindows, folder: Path
) -> dict[str, int]:
    """Write training, validation and held-out instances; returns how many impressions are in none, by the reason."""
    length, seed = config.features.sequence_length, config.aden.seed
    clicks = {domain: load_record(ClickLog, folder, name=f"{domain}_clicks") for domain in ("story", "product")}
    training_start, holdout_start = windows.training_start(logs.day), windows.holdout_start(logs.day)
    end = logs.day + timedelta(days=1)

    def write(name: str, instances: Instances) -> int:
        pointed = instances.with_sequences(
            story_clicks=clicks["story"],
            product_clicks=clicks["product"],
            history_days=windows.history_days,
            length=length,
        )
        save_record(pointed, folder, name=name)
        return len(pointed)

    impressions = _impressions(logs, parts, training_start, holdout_start)
    known = Instances.of(impressions, stories=stories)
    unknown = len(impressions) - len(known)
    training, validation = split_training(known, validation_share=windows.validation_share, seed=seed)
    not_drawn = len(known) - write("train", training) - write("validation", validation)
    del training, validation, known
    impressions = _impressions(logs, parts, holdout_start, end)
    unknown += len(impressions) - write("holdout", Instances.of(impressions, stories=stories))
    return {UNKNOWN_STORY: unknown, NOT_DRAWN: not_drawn}


def _write_instances_by_spark(
    config: Config, logs: ValidatedLogs, stories: Catalog, windows: ResolvedWindows, folder: Path
) -> dict[str, int]:
    """The same, by Spark."""
    history_start, holdout_start = windows.history_start(logs.day), windows.holdout_start(logs.day)
    clicks = {domain: load_record(ClickLog, folder, name=f"{domain}_clicks") for domain in ("story", "product")}
    work = work_folder(config.locations.work)
    files = {
        table: [str(work / key) for d, keys in logs.files[table].items() if d >= history_start for key in keys]
        for table in ("impressions", "product_clicks")
    }
    rules = Rules(
        history_us=midnight_us(history_start),
        training_us=midnight_us(windows.training_start(logs.day)),
        holdout_us=midnight_us(holdout_start),
        end_us=midnight_us(logs.day + timedelta(days=1)),
        history_days=windows.history_days,
        length=config.features.sequence_length,
        validation_share=windows.validation_share,
        seed=config.aden.seed,
    )
    with (
        TemporaryDirectory(dir=work, prefix=".spark-") as shared,
        open_session(config.spark.master, conf=config.spark.conf) as session,
    ):
        unknown, not_drawn = write_instances(
            session, **files, story_ids=stories.item_ids_N[1:], rules=rules, out=shared
        )
        for name in PARTS:
            instances = read_instances(Path(shared), name, stories=stories, clicks=clicks)
            save_record(instances, folder, name=name)
            not_drawn -= len(instances) if name != "holdout" else 0
    return {UNKNOWN_STORY: unknown, NOT_DRAWN: not_drawn}


def _impressions(logs: ValidatedLogs, parts: Parts, start: date, end: date) -> Impressions:
    """The impressions of the days from `start` to the one before `end`."""
    files = logs.files["impressions"]
    found = [
        load_impressions(part) for part in parts.make(IMPRESSIONS, files, days=[d for d in files if start <= d < end])
    ]
    return Impressions.concat([some.between(midnight_us(start), midnight_us(end)) for some in found])


def _new_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> None:
    """A file of zeros."""
    with path.open("wb") as file:
        descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
        np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)


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
