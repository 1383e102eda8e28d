"""The dataset of one day's run: catalogs, clicks, pairs and instances as arrays in one folder.

Suffixes: C = clicks, M = pairs.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date, timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from storyrec.arrays import array_fields, load_array, load_record, save_record
from storyrec.config import Config
from storyrec.data.catalog import Catalog, mounted_pairs, read_catalog
from storyrec.data.instances import Instances, split_impressions
from storyrec.data.validated import ValidatedLogs
from storyrec.data.windows import ResolvedWindows, resolve_windows
from storyrec.errors import DataError
from storyrec.features.sequences import ClickLog, midnight_us
from storyrec.features.titles import TOKENIZER, UnknownWords, Vocabulary, train_vocabulary
from storyrec.progress import track
from storyrec.schema import Domain
from storyrec.storage import open_storage, write_file, write_folder

__all__ = ["Dataset", "Instances", "ResolvedWindows", "build_dataset"]

Int64s = npt.NDArray[np.int64]

FORMAT = 3


@dataclass(frozen=True)
class Dataset:
    """Everything that the models of one day learn from and are judged on.

    Attributes:
        day: the run's day, the last held-out day.
        windows: which days serve what.
        sequence_length: the most clicks that the instances point to in one domain.
        stories, products: all items published up to and including `day`.
        vocabulary: trained on titles published before the held-out days.
        unknown_words: in the titles published in the held-out days, by "stories" and "products".
        story_clicks, product_clicks: from the start of history to `day`.
        story_click_rows_C, product_click_rows_C: the catalog row of each click, [C] int64; 0 where the
            item is in no catalog.
        pairs_M2: (story row, row of a product it mounts), [M, 2] int64, published before the held-out days.
        holdout_pairs_M2: likewise, of the stories published in the held-out days.
        train: every click of the training days and as many sampled non-clicks.
        validation: the last impressions of the training days, at their natural click rate.
        holdout: all impressions of the held-out days.
        digest: SHA-256 of all this.
    """

    day: date
    windows: ResolvedWindows
    sequence_length: int
    stories: Catalog
    products: Catalog
    vocabulary: Vocabulary
    unknown_words: Mapping[str, UnknownWords]
    story_clicks: ClickLog
    product_clicks: ClickLog
    story_click_rows_C: Int64s
    product_click_rows_C: Int64s
    pairs_M2: Int64s
    holdout_pairs_M2: Int64s
    train: Instances
    validation: Instances
    holdout: Instances
    digest: str

    def save(self, folder: Path) -> None:
        """Write the dataset as a folder that appears whole; dataset.json is written last."""
        with write_folder(folder) as temporary:
            for name in _RECORDS:
                save_record(getattr(self, name), temporary, name=name)
            for name in _ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name), allow_pickle=False)
            self.vocabulary.save(temporary / TOKENIZER)
            write_file(temporary / "dataset.json", json.dumps(self.summary(), indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Open a saved dataset; arrays stay on disk until they are touched.

        Raises:
            DataError: the folder is no dataset, or a file of it is missing or broken.
        """
        try:
            summary = json.loads((folder / "dataset.json").read_bytes())
            if summary["format"] != FORMAT:
                raise ValueError(f"format {summary['format']} instead of {FORMAT}")
            windows = summary["windows"] | {"reasons": tuple(summary["windows"]["reasons"])}
            arrays: dict[str, Any] = {name: load_array(folder / f"{name}.npy") for name in _ARRAYS}
            return cls(
                day=date.fromisoformat(summary["day"]),
                windows=ResolvedWindows(**windows),
                sequence_length=summary["sequence_length"],
                vocabulary=Vocabulary.load(folder / TOKENIZER),
                unknown_words={name: UnknownWords(**counts) for name, counts in summary["unknown_words"].items()},
                digest=summary["digest"],
                **{name: load_record(kind, folder, name=name) for name, kind in _RECORDS.items()},
                **arrays,
            )
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"this is no dataset that can be read: {error}",
                expected="a folder that build_dataset wrote",
                where=str(folder),
                remedy="run build_dataset again",
            ) from error

    @cached_property
    def training_users_U(self) -> Int64s:
        """Users of the training instances, ascending, [U]: those a table of users has rows for."""
        return np.unique(self.train.user_ids_B)

    def user_rows(self, user_ids_B: Int64s) -> Int64s:
        """The row of each user in a table of users, [B]; 0 for one without training instances."""
        places_B = np.minimum(np.searchsorted(self.training_users_U, user_ids_B), len(self.training_users_U) - 1)
        return np.where(self.training_users_U[places_B] == user_ids_B, places_B + 1, 0)

    def instances_for(self, instances: Instances, *, history_days: int) -> Instances:
        """The same impressions with the sequences that another model's history window allows.

        Clicks before this dataset's own start of history are not in it.
        """
        return instances.with_sequences(
            story_clicks=self.story_clicks,
            product_clicks=self.product_clicks,
            history_days=history_days,
            length=self.sequence_length,
        )

    def count_unknown_words(self, vocabulary: Vocabulary, *, max_words: int) -> dict[str, UnknownWords]:
        """What a vocabulary lacks of the titles published in the held-out days, by "stories" and "products"."""
        start_us = midnight_us(self.windows.holdout_start(self.day))
        counts = {}
        for name, catalog in (("stories", self.stories), ("products", self.products)):
            titles = [str(catalog.titles[row]) for row in np.flatnonzero(catalog.published_us_N >= start_us).tolist()]
            counts[name] = vocabulary.count_unknown(titles, max_words=max_words)
        return counts

    def summary(self) -> dict[str, object]:
        """What dataset.json says: the windows with their reasons, counts, and the digest."""
        return {
            "format": FORMAT,
            "day": self.day.isoformat(),
            "windows": asdict(self.windows),
            "sequence_length": self.sequence_length,
            "counts": {
                "stories": len(self.stories) - 1,
                "products": len(self.products) - 1,
                "words": self.vocabulary.size,
                "story_clicks": len(self.story_clicks),
                "product_clicks": len(self.product_clicks),
                "pairs": len(self.pairs_M2),
                "holdout_pairs": len(self.holdout_pairs_M2),
                "train": len(self.train),
                "validation": len(self.validation),
                "holdout": len(self.holdout),
            },
            "unknown_words": {name: asdict(counts) for name, counts in self.unknown_words.items()},
            "digest": self.digest,
        }


def build_dataset(config: Config, *, day: date, out: Path) -> Dataset:
    """Step: turn the validated logs up to a day into the arrays that training and evaluation read.

    Args:
        config: `locations.work` holds the validated logs; `windows`, `features` and seeds are settings.
        day: the last held-out day.
        out: the folder to write.

    Raises:
        MissingPartition: the day is not validated or was stopped.
        DataError: there is nothing to train on.
    """
    storage = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    with track("build_dataset", total=5) as progress:
        logs = ValidatedLogs(storage, day=day)
        windows = resolve_windows(
            day=day,
            days=logs.days,
            count=logs.count,
            num_time_blocks=config.model.num_time_blocks,
            **config.windows.model_dump(),
        )
        holdout_start, history_start = windows.holdout_start(day), windows.history_start(day)
        progress.advance(note="catalogs")
        story_log = read_catalog(logs, "stories", holdout_start=holdout_start)
        product_log = read_catalog(logs, "products", holdout_start=holdout_start)
        vocabulary = train_vocabulary(
            [*story_log.earlier["title"].to_pylist(), *product_log.earlier["title"].to_pylist()],
            size=config.features.vocabulary_size,
            min_count=config.features.min_word_count,
        )
        products = product_log.catalog
        all_pairs_M2, pairs_M2 = (
            mounted_pairs(
                rows, story_catalog=story_log.catalog, product_catalog=products, products_before_us=midnight_us(end)
            )
            for rows, end in ((story_log.newest, day + timedelta(days=1)), (story_log.earlier, holdout_start))
        )
        stories = story_log.catalog.with_mounted_categories(all_pairs_M2, products=products)
        is_new_M = stories.published_us_N[all_pairs_M2[:, 0]] >= midnight_us(holdout_start)
        progress.advance(note="clicks")
        story_clicks = ClickLog.from_table(logs.impressions(since=history_start), Domain.STORY)
        product_clicks = ClickLog.from_table(logs.read("product_clicks", since=history_start).table, Domain.PRODUCT)
        progress.advance(note="instances")
        parts = split_impressions(
            Instances.from_table(logs.impressions(since=windows.training_start(day)), stories=stories),
            holdout_us=midnight_us(holdout_start),
            validation_share=windows.validation_share,
            seed=config.aden.seed,
        )
        train, validation, holdout = (
            part.with_sequences(
                story_clicks=story_clicks,
                product_clicks=product_clicks,
                history_days=windows.history_days,
                length=config.features.sequence_length,
            )
            for part in parts
        )
        dataset = Dataset(
            day=day,
            windows=windows,
            sequence_length=config.features.sequence_length,
            stories=stories,
            products=products,
            vocabulary=vocabulary,
            unknown_words={},
            story_clicks=story_clicks,
            product_clicks=product_clicks,
            story_click_rows_C=stories.rows(story_clicks.item_ids_C),
            product_click_rows_C=products.rows(product_clicks.item_ids_C),
            pairs_M2=pairs_M2,
            holdout_pairs_M2=all_pairs_M2[is_new_M],
            train=train,
            validation=validation,
            holdout=holdout,
            digest="",
        )
        dataset = replace(
            dataset,
            unknown_words=dataset.count_unknown_words(vocabulary, max_words=config.features.max_title_words),
            digest=_digest(dataset),
        )
        progress.advance(note="writing")
        dataset.save(out)
        progress.advance()
    return dataset


_RECORDS: Mapping[str, type] = MappingProxyType(
    {
        "stories": Catalog,
        "products": Catalog,
        "story_clicks": ClickLog,
        "product_clicks": ClickLog,
        "train": Instances,
        "validation": Instances,
        "holdout": Instances,
    }
)
_ARRAYS = ("story_click_rows_C", "product_click_rows_C", "pairs_M2", "holdout_pairs_M2")


def _digest(dataset: Dataset) -> str:
    """SHA-256 of the content, in a fixed order."""
    windows = asdict(replace(dataset.windows, reasons=()))  # the same numbers are the same, why ever they are so
    settings = (dataset.day.isoformat(), windows, dataset.sequence_length, dataset.vocabulary.words)
    digest = hashlib.sha256(json.dumps(settings).encode())
    for name in (*_RECORDS, *_ARRAYS):
        value = getattr(dataset, name)
        for field, array in array_fields(value) if name in _RECORDS else [("", value)]:
            digest.update(f"{name}.{field} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    for catalog in (dataset.stories, dataset.products):
        digest.update(json.dumps(list(catalog.titles)).encode())
    return digest.hexdigest()
