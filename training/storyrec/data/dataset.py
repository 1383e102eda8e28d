"""The dataset of one day's run: catalogs, clicks, pairs and instances as arrays in one folder.

Suffixes: C = clicks, M = pairs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import date
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.arrays import load_array, load_record, save_record
from storyrec.data.catalog import Catalog
from storyrec.data.instances import Instances
from storyrec.data.windows import ResolvedWindows
from storyrec.errors import DataError
from storyrec.features.sequences import ClickLog, midnight_us
from storyrec.features.titles import TOKENIZER, UnknownWords, Vocabulary
from storyrec.storage import write_file, write_folder

Int64s = npt.NDArray[np.int64]

FORMAT = 3
SUMMARY = "dataset.json"
BLOCK_BYTES = 2**22
TEXTS_AT_A_TIME = 100_000


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
        left_out: impressions of the training and held-out days that are in no part, by the reason.
        made_of: SHA-256 of the files and settings it was made of.
        digest: SHA-256 of all but what was counted and `made_of`.
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
    left_out: Mapping[str, int]
    made_of: str
    digest: str

    def save(self, folder: Path) -> None:
        """Write the dataset as a folder that appears whole; dataset.json is written last."""
        with write_folder(folder) as temporary:
            for name in RECORDS:
                save_record(getattr(self, name), temporary, name=name)
            for name in ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name), allow_pickle=False)
            self.vocabulary.save(temporary / TOKENIZER)
            write_file(temporary / SUMMARY, json.dumps(self.summary(), indent=2).encode())

    @classmethod
    def load(cls, folder: Path) -> "Dataset":
        """Open a saved dataset; arrays stay on disk until they are touched.

        Raises:
            DataError: the folder is no dataset, or a file of it is missing or broken.
        """
        try:
            summary = json.loads((folder / SUMMARY).read_bytes())
            if summary["format"] != FORMAT:
                raise ValueError(f"format {summary['format']} instead of {FORMAT}")
            windows = summary["windows"] | {"reasons": tuple(summary["windows"]["reasons"])}
            arrays: dict[str, Any] = {name: load_array(folder / f"{name}.npy") for name in ARRAYS}
            return cls(
                day=date.fromisoformat(summary["day"]),
                windows=ResolvedWindows(**windows),
                sequence_length=summary["sequence_length"],
                vocabulary=Vocabulary.load(folder / TOKENIZER),
                left_out=summary["left_out"],
                made_of=summary["made_of"],
                unknown_words={name: UnknownWords(**counts) for name, counts in summary["unknown_words"].items()},
                digest=summary["digest"],
                **{name: load_record(kind, folder, name=name) for name, kind in RECORDS.items()},
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
            titles = pa.array(catalog.titles, pa.string()).filter(pa.array(catalog.published_us_N >= start_us))
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
            "left_out": dict(self.left_out),
            "made_of": self.made_of,
            "unknown_words": {name: asdict(counts) for name, counts in self.unknown_words.items()},
            "digest": self.digest,
        }


class Digest:
    """SHA-256 of a dataset's content, in a fixed order."""

    def __init__(self, *, day: date, windows: ResolvedWindows, sequence_length: int, vocabulary: Vocabulary) -> None:
        numbers = asdict(replace(windows, reasons=()))  # the same numbers are the same, why ever they are so
        self._digest = hashlib.sha256(
            json.dumps((day.isoformat(), numbers, sequence_length, vocabulary.words)).encode()
        )

    def of_folder(self, folder: Path) -> str:
        """Add the arrays and titles in a dataset's folder, block by block."""
        for name, kind in RECORDS.items():
            for field in fields(kind):
                self._add_array(folder, f"{name}.{field.name}", name=f"{name}.{field.name}")
        for name in ARRAYS:
            self._add_array(folder, name, name=f"{name}.")
        for name in ("stories", "products"):
            self._add_texts(load_record(Catalog, folder, name=name).titles)
        return self._digest.hexdigest()

    def _add_array(self, folder: Path, file: str, *, name: str) -> None:
        path = folder / f"{file}.npy"
        if not path.exists():  # texts
            return
        array = np.load(path, mmap_mode="r")
        self._digest.update(f"{name} {array.dtype} {array.shape}".encode())
        with path.open("rb") as content:
            content.seek(array.offset)
            while block := content.read(BLOCK_BYTES):
                self._digest.update(block)

    def _add_texts(self, texts: Sequence[str]) -> None:
        """As one JSON list."""
        between = "["
        for start in range(0, len(texts), TEXTS_AT_A_TIME):
            self._digest.update((between + json.dumps(list(texts[start : start + TEXTS_AT_A_TIME]))[1:-1]).encode())
            between = ", "
        self._digest.update(b"]")


RECORDS: Mapping[str, type] = MappingProxyType(
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
ARRAYS = ("story_click_rows_C", "product_click_rows_C", "pairs_M2", "holdout_pairs_M2")
