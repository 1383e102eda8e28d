"""Impressions and clicks of the validated days as sorted arrays, and the days' clicks merged into one log.

Suffixes: B = impressions, C = clicks, U = distinct users.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.arrays import load_record, save_record
from storyrec.data.parts import Files, Kind, Part
from storyrec.data.sampling import is_sampled
from storyrec.features.partitions import CLICK_COLUMNS
from storyrec.features.sequences import ClickLog, event_order, run_starts, to_int64
from storyrec.logs.partitions import VALIDATED, read_days
from storyrec.schema import Domain
from storyrec.storage import Storage

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Impressions:
    """Impressions sorted by (user, time, story, clicked): an order that does not depend on the files'.

    Attributes:
        user_ids_B, story_ids_B: [B] int64.
        shown_us_B: [B] int64, epoch microseconds UTC.
        clicked_B: [B] bool.
    """

    user_ids_B: Int64s
    story_ids_B: Int64s
    shown_us_B: Int64s
    clicked_B: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.user_ids_B)

    @classmethod
    def from_arrays(
        cls, user_ids_B: Int64s, story_ids_B: Int64s, shown_us_B: Int64s, clicked_B: npt.NDArray[np.bool_]
    ) -> "Impressions":
        """Sort impressions that come in any order."""
        order_B = event_order(user_ids_B, shown_us_B, story_ids_B, clicked_B)
        return cls(user_ids_B[order_B], story_ids_B[order_B], shown_us_B[order_B], clicked_B[order_B])

    @classmethod
    def from_table(cls, table: pa.Table) -> "Impressions":
        """Sort rows of the log table."""
        user_ids_B, story_ids_B, shown_us_B = (to_int64(table[name]) for name in ("user_id", "story_id", "shown_at"))
        return cls.from_arrays(user_ids_B, story_ids_B, shown_us_B, np.asarray(table["clicked"].to_numpy(), bool))

    def take(self, index: npt.NDArray[np.bool_]) -> "Impressions":
        """Some of them, by mask."""
        return Impressions(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def between(self, start_us: int, end_us: int) -> "Impressions":
        """Those from a time to before another, epoch microseconds UTC."""
        inside_B = (self.shown_us_B >= start_us) & (self.shown_us_B < end_us)
        return self if inside_B.all() else self.take(inside_B)

    def of_users(self, *, share: float) -> "Impressions":
        """Those of a share of the users."""
        sampled_B = is_sampled(self.user_ids_B, share=share)
        return self if sampled_B.all() else self.take(sampled_B)

    @classmethod
    def concat(cls, some: Sequence["Impressions"]) -> "Impressions":
        """All of them, in order again."""
        if len(some) == 1:
            return some[0]
        user_ids_B, story_ids_B, shown_us_B, clicked_B = (
            np.concatenate([np.empty(0, dtype), *(getattr(part, name) for part in some)])
            for name, dtype in (
                ("user_ids_B", np.int64),
                ("story_ids_B", np.int64),
                ("shown_us_B", np.int64),
                ("clicked_B", bool),
            )
        )
        return cls.from_arrays(user_ids_B, story_ids_B, shown_us_B, clicked_B)


def _write_impressions(storage: Storage, files: Files, *, folder: Path) -> None:
    save_record(Impressions.from_table(_read(storage, Domain.STORY, files)), folder, name="impressions")


def _write_clicks(storage: Storage, files: Files, *, folder: Path, domain: Domain) -> None:
    save_record(ClickLog.from_table(_read(storage, domain, files), domain), folder, name="clicks")


def _read(storage: Storage, domain: Domain, files: Files) -> pa.Table:
    table = {Domain.STORY: "impressions", Domain.PRODUCT: "product_clicks"}[domain]
    rows = read_days(storage, table, files, prefix=VALIDATED, columns=CLICK_COLUMNS[domain], files=files)
    for problem in rows.problems.values():
        raise problem
    return rows.table


IMPRESSIONS = Kind("impressions", _write_impressions)
STORY_CLICKS = Kind("story_clicks", partial(_write_clicks, domain=Domain.STORY))
"""Of the impressions; most days of the history need nothing else of them."""
PRODUCT_CLICKS = Kind("product_clicks", partial(_write_clicks, domain=Domain.PRODUCT))


def load_impressions(part: Part) -> Impressions:
    """The impressions of a part, memory-mapped."""
    return load_record(Impressions, part.folder, name="impressions")


def load_clicks(part: Part) -> ClickLog:
    """The clicks of a part of either domain, memory-mapped."""
    return load_record(ClickLog, part.folder, name="clicks")


def merged_places(logs: Sequence[ClickLog]) -> Iterator[Int64s]:
    """Where the clicks of each log stand in the log of them all.

    Args:
        logs: each later than the one before.

    Yields:
        For each log in turn the place of each of its clicks, ascending; together they are 0, 1, 2 ...
    """
    runs = [(starts_U := run_starts(log.user_ids_C), np.diff(np.append(starts_U, len(log)))) for log in logs]
    own_users = [log.user_ids_C[starts_U] for log, (starts_U, _) in zip(logs, runs, strict=True)]
    users_U = np.unique(np.concatenate([np.empty(0, np.int64), *own_users]))
    rows = [np.searchsorted(users_U, own_U) for own_U in own_users]
    sizes_U = np.zeros(len(users_U), np.int64)
    for rows_U, (_, lengths_U) in zip(rows, runs, strict=True):
        sizes_U[rows_U] += lengths_U
    next_U = np.cumsum(sizes_U) - sizes_U
    for rows_U, (starts_U, lengths_U) in zip(rows, runs, strict=True):
        yield np.repeat(next_U[rows_U] - starts_U, lengths_U) + np.arange(int(lengths_U.sum()))
        next_U[rows_U] += lengths_U
