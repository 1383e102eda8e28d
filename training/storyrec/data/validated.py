"""The files of the validated days up to a run's day."""

import json
from datetime import date

from storyrec.errors import DataError, MissingPartition
from storyrec.features.covers import list_covers
from storyrec.logs.partitions import VALIDATED, list_files
from storyrec.schema import TABLES
from storyrec.storage import Storage


class ValidatedLogs:
    """Files by day, up to and including the run's day; a day counts once its report is written.

    Attributes:
        storage: the work folder or prefix.
        day: the run's day.
        files: of each table of the log contract.
        covers: of each catalog table, what came of its pictures: their prefix and files.
    """

    def __init__(self, storage: Storage, *, day: date) -> None:
        """List the files.

        Raises:
            MissingPartition: the run's day was stopped or is not validated.
        """
        self.day = day
        self.storage = storage
        reports = set(storage.list("reports/dt="))
        self._check_validated(reports)
        self.files = {
            table: {
                d: keys
                for d, keys in list_files(storage, table, prefix=VALIDATED).items()
                if d <= day and f"reports/dt={d}.json" in reports
            }
            for table in TABLES
        }
        if day not in self.files["impressions"]:
            raise self._missing("has no validated impressions")
        self.covers = {table: list_covers(storage, table, day=day) for table in ("stories", "products")}

    def keys(self) -> list[str]:
        """All files."""
        listed = [*self.files.values(), *(files for _, files in self.covers.values())]
        return [key for files in listed for keys in files.values() for key in keys]

    def _check_validated(self, reports: set[str]) -> None:
        key = f"reports/dt={self.day}.json"
        if key not in reports:
            raise self._missing("is not validated")
        try:
            report = json.loads(self.storage.read(key))
        except ValueError as error:
            raise DataError(
                f"the validation report is not JSON: {error}",
                where=f"{self.storage.url}/{key}",
                remedy=f"run validate_logs for {self.day} again",
            ) from error
        if isinstance(report, dict) and report.get("status") == "stopped":
            raise self._missing("was stopped by validation")

    def _missing(self, what: str) -> MissingPartition:
        return MissingPartition(
            f"day {self.day} {what}",
            expected=f"{VALIDATED}impressions/dt={self.day} and reports/dt={self.day}.json of a day that passed",
            where=self.storage.url,
            remedy=f"run validate_logs for {self.day}, mend what its report names, or run another day",
        )
