"""The validated logs as sorted arrays, made once for each day and kept until its files change.

A part holds one table's rows of a day, or of a month whose files are small, and is named after the SHA-256 of the
files that it was made of, so an unchanged day costs nothing and a changed day is made again alone. Below the folder:
    files.json                      the SHA-256 of every file, with the stamp that the file then had
    <kind>/<day or month>.<hash>/   a part; other parts of the same days are removed when it is there
"""

import hashlib
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Protocol

from storyrec.storage import Stamp, Storage, write_file, write_folder

FORMAT = 2
"""Raised whenever the same files give other arrays."""

SMALL_MONTH_BYTES = 8 * 2**20
NUM_READERS = 4
NUM_MAKERS = 2
"""Parts in work at a time; the memory that this takes is that of so many days."""

FILES = "files.json"

Files = Mapping[date, Sequence[str]]


class Writer(Protocol):
    """Writes the arrays of a part."""

    def __call__(self, storage: Storage, files: Files, *, folder: Path) -> None:
        """Read some files, by day, and fill an empty folder."""


@dataclass(frozen=True)
class Kind:
    """One table's parts: how they are called and who writes them."""

    name: str
    write: Writer


@dataclass(frozen=True)
class Part:
    """A part and the days that it holds, ascending."""

    folder: Path
    days: tuple[date, ...]


class Parts:
    """The parts below a folder, made from one storage; one process at a time works with them."""

    def __init__(self, storage: Storage, *, folder: Path, prefixes: Sequence[str]) -> None:
        """List the files.

        Args:
            storage: the validated logs.
            folder: of the parts.
            prefixes: of all files that parts are made of.
        """
        self._storage, self._folder = storage, folder
        self._stamps: dict[str, Stamp] = {}
        for prefix in prefixes:
            self._stamps |= storage.stamps(prefix)
        self._hashes: dict[str, str] = {}

    def version(self, files: Sequence[str], *, of: object) -> str:
        """SHA-256 of the content of some files and of what is made of them."""
        self._hash(files)
        content = [of, [(key, self._hashes[key]) for key in sorted(files)]]
        return hashlib.sha256(json.dumps(content, default=str).encode()).hexdigest()

    def make(self, kind: Kind, files: Files, *, days: Collection[date]) -> list[Part]:
        """The parts that hold some days, oldest first; those that are there are taken as they are.

        Args:
            kind: what they are.
            files: all files of the table, by day.
            days: of the files; a part may hold others as well.

        Raises:
            DataError: a file cannot be read.
            StorageError: the disk is full; finished parts stay.
        """
        parts, tasks = [], []
        for period, held in self._periods(files).items():
            if not set(held).intersection(days):
                continue
            own = {day: files[day] for day in held}
            version = self.version([key for keys in own.values() for key in keys], of=(FORMAT, kind.name))
            part = Part(self._folder / kind.name / f"{period}.{version[:16]}", held)
            parts.append(part)
            if not part.folder.exists():
                tasks.append(partial(self._make, kind, own, part.folder))
        with ThreadPoolExecutor(NUM_MAKERS) as pool:  # sorting and decoding leave the interpreter to the others
            for done in [pool.submit(task) for task in tasks]:
                done.result()
        return parts

    def forget(self, kind: Kind, *, before: date) -> None:
        """Remove the parts that hold earlier days only."""
        for folder in (self._folder / kind.name).glob("[0-9]*.*"):
            period = folder.name.partition(".")[0]
            if period < str(before)[: len(period)]:
                shutil.rmtree(folder)

    def _periods(self, files: Files) -> dict[str, tuple[date, ...]]:
        """Days by part: small months as a whole."""
        months: dict[str, list[date]] = {}
        for day in sorted(files):
            months.setdefault(f"{day:%Y-%m}", []).append(day)
        periods: dict[str, tuple[date, ...]] = {}
        for month, days in months.items():
            size = sum(self._stamps[key].num_bytes for day in days for key in files[day])
            if size <= SMALL_MONTH_BYTES:
                periods[month] = tuple(days)
            else:
                periods |= {f"{day}": (day,) for day in days}
        return periods

    def _hash(self, files: Sequence[str]) -> None:
        """Hash the files whose stamp is not that of their last hash."""
        path = self._folder / FILES
        known = json.loads(path.read_bytes()) if path.exists() else {}
        new = [key for key in files if key not in self._hashes]
        for key in new:
            tag, found = known.get(key, ("", ""))
            if tag == self._stamps[key].tag:
                self._hashes[key] = found
        missing = [key for key in new if key not in self._hashes]
        with ThreadPoolExecutor(NUM_READERS) as pool:
            self._hashes |= zip(missing, pool.map(self._storage.sha256, missing), strict=True)
        if missing:
            known = {key: entry for key, entry in known.items() if key in self._stamps}
            known |= {key: (self._stamps[key].tag, self._hashes[key]) for key in missing}
            write_file(path, json.dumps(known, indent=0).encode())

    def _make(self, kind: Kind, files: Files, folder: Path) -> None:
        with write_folder(folder) as temporary:
            kind.write(self._storage, files, folder=temporary)
        own = folder.name.partition(".")[0]
        for other in folder.parent.glob("[0-9]*.*"):
            period = other.name.partition(".")[0]
            if other != folder and (period.startswith(own) or own.startswith(period)):  # a month and its days
                shutil.rmtree(other, ignore_errors=True)  # another day may be at it too
