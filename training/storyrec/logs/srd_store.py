"""What waits on disk while the published files are read: items seen, rows by user, first days of use.

The files are far larger than memory. An item is kept once, as it was first seen; rows are sorted into
buckets of users, so that later one bucket at a time is enough.

Suffix: N = items.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.logs.srd_files import Floats
from storyrec.logs.srd_times import Clicks, Row
from storyrec.schema import COVER_WIDTH

Ints = npt.NDArray[np.int64]

ITEMS_HELD = 8_192
ROWS_HELD = 4_096
USERS_OF_A_BUCKET = 8_192
DAYS_HELD = 1 << 22

_ITEMS = pa.schema([("id", pa.int64()), ("title", pa.string()), ("cover", pa.list_(pa.float32()))])


class ItemStore:
    """The items of one domain, each once: those seen first win.

    Holds the ids of all of them in memory, titles and covers on disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[int] = set()
        self.num_without_cover = 0
        self._ids: list[int] = []
        self._titles: list[str] = []
        self._covers: list[Floats | None] = []
        self._writer = pq.ParquetWriter(path, _ITEMS, compression="zstd")

    def add(self, item_id: int, *, title: str, cover: Floats | None) -> None:
        """Keep an item that is not yet `seen`."""
        self.seen.add(item_id)
        self.num_without_cover += cover is None
        self._ids.append(item_id)
        self._titles.append(title)
        self._covers.append(cover)
        if len(self._ids) >= ITEMS_HELD:
            self._flush()

    def close(self) -> None:
        """Nothing more comes; needed before `tables`."""
        if self._ids:
            self._flush()
        self._writer.close()

    def tables(self) -> Iterator[pa.Table]:
        """The items with `id`, `title` and `cover`, some thousands at a time, in the order of their first sight."""
        with pq.ParquetFile(self.path) as file:
            for group in range(file.num_row_groups):
                yield file.read_row_group(group)

    def _flush(self) -> None:
        real = [cover for cover in self._covers if cover is not None]
        values = np.concatenate(real) if real else np.empty(0, np.float32)
        ends = np.cumsum([0, *(0 if cover is None else COVER_WIDTH for cover in self._covers)], dtype=np.int32)
        missing = pa.array([cover is None for cover in self._covers])
        covers = pa.ListArray.from_arrays(pa.array(ends), pa.array(values), mask=missing)
        table = pa.table([pa.array(self._ids, pa.int64()), pa.array(self._titles), covers], schema=_ITEMS)
        self._writer.write_table(table)
        self._ids, self._titles, self._covers = [], [], []


class RowStore:
    """Rows of all users; given back by buckets of users, each user's in the order they came."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.users: dict[bytes, int] = {}
        self.num_rows = 0
        self._held: dict[int, list[int]] = {}
        folder.mkdir()

    def add(self, user: bytes, row: Row) -> None:
        """Keep a row of a user, whose number becomes the place of the first row, from 1."""
        number = self.users.setdefault(user, len(self.users) + 1)
        record = [number, row.day_us, row.file, row.line, row.story, int(row.clicked)]
        for clicks in row.sequences:
            record += [len(clicks.items), len(clicks.times), *clicks.items, *clicks.times, *clicks.blocks]
        self._held.setdefault((number - 1) // USERS_OF_A_BUCKET, []).extend(record)
        self.num_rows += 1
        if self.num_rows % ROWS_HELD == 0:
            self.close()

    def close(self) -> None:
        """Write what is held; needed before `buckets`."""
        for bucket, values in self._held.items():
            with (self.folder / f"{bucket:06d}.bin").open("ab") as file:
                np.array(values, np.int64).tofile(file)
        self._held = {}

    def buckets(self) -> Iterator[dict[int, list[Row]]]:
        """The rows of some thousand users at a time, by user."""
        for path in sorted(self.folder.iterdir()):
            users: dict[int, list[Row]] = {}
            values = np.fromfile(path, np.int64).tolist()
            position = 0
            while position < len(values):
                user, day_us, file, line, story, clicked = values[position : position + 6]
                first, position = _clicks(values, position + 6)
                second, position = _clicks(values, position)
                users.setdefault(user, []).append(Row(day_us, file, line, story, bool(clicked), (first, second)))
            yield users


class FirstDays:
    """The first day on which each item is used."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Ints]] = []

    def add(self, ids: Ints, days: Ints) -> None:
        """Items, and a day on which each was used."""
        self._parts.append(_earliest(ids, days))
        if sum(len(part) for part, _ in self._parts[1:]) > DAYS_HELD:
            self._merge()

    def of(self, ids: Ints, *, default: int) -> Ints:
        """The first day of each item, [N]; `default` where it is never used."""
        self._merge()
        known_N, days_N = self._parts[0]
        if not len(known_N):
            return np.full(len(ids), default, np.int64)
        places_N = np.minimum(np.searchsorted(known_N, ids), len(known_N) - 1)
        return np.where(known_N[places_N] == ids, days_N[places_N], default)

    def _merge(self) -> None:
        empty = np.empty(0, np.int64)
        parts = [(empty, empty), *self._parts]
        self._parts = [_earliest(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))]


class Pairs:
    """Distinct (story, mounted product) pairs, in the order they came."""

    def __init__(self) -> None:
        self.mounted: dict[int, list[int]] = {}

    def add(self, story: int, product: int) -> None:
        """Say that a story mounts a product; saying it again changes nothing."""
        products = self.mounted.setdefault(story, [])
        if product not in products:
            products.append(product)

    def rows(self) -> tuple[Ints, Ints]:
        """Story and product of every pair, [M] each."""
        stories = [story for story, products in self.mounted.items() for _ in products]
        products = [product for products in self.mounted.values() for product in products]
        return np.array(stories, np.int64), np.array(products, np.int64)


def write_user_ids(users: Mapping[bytes, int], path: Path) -> None:
    """Write which number each user of the files has."""
    names = [name.decode("utf-8") for name in users]
    pq.write_table(pa.table({"id": np.arange(1, len(names) + 1), "source_id": pa.array(names, pa.string())}), path)


def _clicks(values: Sequence[int], position: int) -> tuple[Clicks, int]:
    num_items, num_times = values[position : position + 2]
    cuts = np.cumsum([position + 2, num_items, num_times, num_items]).tolist()
    items, times, blocks = (values[start:stop] for start, stop in pairwise(cuts))
    return Clicks(items, times, blocks), cuts[-1]


def _earliest(ids: Ints, days: Ints) -> tuple[Ints, Ints]:
    order = np.lexsort((days, ids))
    distinct_N, first_N = np.unique(ids[order], return_index=True)
    return distinct_N, days[order][first_N]
