"""The catalog so far: which story and product ids validated partitions hold, and since which day.

Its store is one small file per catalog table, `validated/_ids/<table>.parquet`, so that thousands of
partitions need not be opened. It is derived: where it is missing it is made from the partitions.
"""

import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storyrec.errors import Conflict
from storyrec.logs.partitions import VALIDATED, day_number, encode, list_files, read_days
from storyrec.storage import Storage

CATALOG_IDS: Mapping[str, str] = {"products": "product_id", "stories": "story_id"}
MAX_ATTEMPTS = 20

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class KnownIds:
    """Ids of one catalog with the first day each is valid on.

    `only_on` holds ids of days that were stopped: known to that day's own rows and to no other day.
    """

    ids_N: Int64s
    first_day_N: Int64s
    only_on: Mapping[int, Int64s] = field(default_factory=dict)

    @classmethod
    def from_pairs(cls, ids_M: Int64s, day_M: Int64s, *, only_on: Mapping[int, Int64s] | None = None) -> "KnownIds":
        """Build from (id, day) pairs in any order, ids repeated where several days hold them."""
        order = np.lexsort((day_M, ids_M))
        ids_N, first = np.unique(ids_M[order], return_index=True)
        return cls(ids_N, day_M[order][first], only_on or {})

    def has(self, ids_B: Int64s, *, day_B: Int64s) -> NDArray[np.bool_]:
        """Whether each id is in the catalog on the day, days ascending. [B], [B] -> [B] bool."""
        known_B = np.zeros(len(ids_B), bool)
        if len(self.ids_N):
            place_B = np.minimum(np.searchsorted(self.ids_N, ids_B), len(self.ids_N) - 1)
            known_B = (self.ids_N[place_B] == ids_B) & (self.first_day_N[place_B] <= day_B)
        for day, ids in self.only_on.items():
            own = slice(*np.searchsorted(day_B, [day, day + 1]))
            known_B[own] |= np.isin(ids_B[own], ids)
        return known_B


def read_pairs(storage: Storage, table: str) -> tuple[Int64s, Int64s]:
    """The (id, day) pairs of every validated partition of a catalog table. -> [M], [M] int64."""
    return _read_pairs(storage, table, without=())[:2]


def replace_pairs(storage: Storage, table: str, *, days: Iterable[date], ids_M: Int64s, day_M: Int64s) -> None:
    """Put the pairs of some days in place of those that the index holds for them.

    Two processes may do this at once: the write is conditional and tried again.
    """
    replaced = set(days)
    numbers = [day_number(day) for day in replaced]
    for attempt in range(MAX_ATTEMPTS):
        old_ids, old_days, version = _read_pairs(storage, table, without=replaced)
        keep = ~np.isin(old_days, numbers)
        pairs = pa.table({"id": np.concatenate([old_ids[keep], ids_M]), "day": np.concatenate([old_days[keep], day_M])})
        try:
            storage.write_if(
                _key(table), encode(pairs.sort_by([("day", "ascending"), ("id", "ascending")])), version=version
            )
            return
        except Conflict:
            if attempt == MAX_ATTEMPTS - 1:
                raise


def _key(table: str) -> str:
    return f"{VALIDATED}_ids/{table}.parquet"


def _read_pairs(storage: Storage, table: str, *, without: Collection[date]) -> tuple[Int64s, Int64s, str | None]:
    found = storage.read_versioned(_key(table))
    if found is not None:
        try:
            pairs = pq.read_table(io.BytesIO(found[0]), schema=pa.schema([("id", pa.int64()), ("day", pa.int64())]))
            return pairs["id"].to_numpy(), pairs["day"].to_numpy(), found[1]
        except (pa.ArrowException, OSError):
            pass  # damaged: it can be made again
    column = CATALOG_IDS[table]
    files = list_files(storage, table, prefix=VALIDATED)
    rows = read_days(storage, table, set(files) - set(without), columns=[column], files=files)
    for problem in rows.problems.values():
        raise problem
    return rows.table[column].to_numpy(), rows.day_B, found[1] if found else None
