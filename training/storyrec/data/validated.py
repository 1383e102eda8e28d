"""The validated days up to a run's day, read no further back than somebody asks.

Suffix: B = impressions.
"""

import json
from datetime import date

import numpy as np
import pyarrow as pa

from storyrec.data.windows import DayCounts
from storyrec.errors import DataError, MissingPartition
from storyrec.features.covers import read_covers
from storyrec.features.sequences import DAY_US, to_int64
from storyrec.logs.partitions import Partitions, day_number, list_files, read_days
from storyrec.storage import Storage

_PREFIX = "validated/"
_IMPRESSION_COLUMNS = ("user_id", "story_id", "shown_at", "clicked")


class ValidatedLogs:
    """Validated days up to and including the run's day; a day counts once its report is written."""

    def __init__(self, storage: Storage, *, day: date) -> None:
        """List the days.

        Raises:
            MissingPartition: the run's day was stopped or is not validated.
        """
        self.day = day
        self._storage = storage
        self._reports = set(storage.list("reports/dt="))
        self._check_validated()
        self._impression_files = self._files("impressions")
        self.days = sorted(self._impression_files)
        if day not in self._impression_files:
            raise self._missing("has no validated impressions")
        self._impressions: dict[date, pa.Table] = {}

    def read(self, table: str, *, since: date | None = None) -> Partitions:
        """All rows of a table with their days up to the run's day, oldest day first.

        Raises:
            DataError: a partition cannot be read.
        """
        files = self._files(table)
        return self._read(table, {d: keys for d, keys in files.items() if since is None or d >= since})

    def covers(self, table: str) -> Partitions:
        """What came of the pictures of a catalog table up to the run's day.

        Raises:
            DataError: a file of them cannot be read.
        """
        return read_covers(self._storage, table, day=self.day)

    def impressions(self, *, since: date) -> pa.Table:
        """User, story, time and label of the impressions up to the run's day, oldest day first."""
        wanted = [d for d in self.days if d >= since]
        self._fetch([d for d in wanted if d not in self._impressions])
        return pa.concat_tables([self._impressions[d] for d in wanted])

    def count(self, day: date) -> DayCounts:
        """What the windows need to know of one of `days`; days just before it are fetched along."""
        if day not in self._impressions:
            # twice as many each time: few reads of many small days, few needless reads of big ones
            missing = [d for d in self.days if d <= day and d not in self._impressions]
            self._fetch(missing[-max(1, len(self._impressions)) :])
        table = self._impressions[day]
        clicked_B = table["clicked"].to_numpy()
        user_ids_B = to_int64(table["user_id"])
        return DayCounts(
            num_clicked=int(clicked_B.sum()),
            clicked_users_U=np.unique(user_ids_B[clicked_B]),
            passed_users_U=np.unique(user_ids_B[~clicked_B]),
            is_fine=bool((to_int64(table["shown_at"]) % DAY_US).any()),
        )

    def _fetch(self, days: list[date]) -> None:
        files = {d: self._impression_files[d] for d in days}
        rows = self._read("impressions", files, columns=_IMPRESSION_COLUMNS)
        numbers = [day_number(d) for d in days]
        starts, stops = np.searchsorted(rows.day_B, numbers), np.searchsorted(rows.day_B, numbers, side="right")
        table = rows.table.combine_chunks()  # cutting a day out of thousands of chunks is slow
        for d, start, stop in zip(days, starts.tolist(), stops.tolist(), strict=True):
            self._impressions[d] = table.slice(start, stop - start)

    def _files(self, table: str) -> dict[date, list[str]]:
        files = list_files(self._storage, table, prefix=_PREFIX)
        return {d: files[d] for d in files if d <= self.day and f"reports/dt={d}.json" in self._reports}

    def _read(self, table: str, files: dict[date, list[str]], *, columns: tuple[str, ...] | None = None) -> Partitions:
        rows = read_days(self._storage, table, files, prefix=_PREFIX, columns=columns, files=files)
        for problem in rows.problems.values():
            raise problem
        return rows

    def _check_validated(self) -> None:
        key = f"reports/dt={self.day}.json"
        if key not in self._reports:
            raise self._missing("is not validated")
        try:
            report = json.loads(self._storage.read(key))
        except ValueError as error:
            raise DataError(
                f"the validation report is not JSON: {error}",
                where=f"{self._storage.url}/{key}",
                remedy=f"run validate_logs for {self.day} again",
            ) from error
        if isinstance(report, dict) and report.get("status") == "stopped":
            raise self._missing("was stopped by validation")

    def _missing(self, what: str) -> MissingPartition:
        return MissingPartition(
            f"day {self.day} {what}",
            expected=f"{_PREFIX}impressions/dt={self.day} and reports/dt={self.day}.json of a day that passed",
            where=self._storage.url,
            remedy=f"run validate_logs for {self.day}, mend what its report names, or run another day",
        )
