"""Parts: made once, kept while their files hold the same bytes, and merged to the same log."""

import os
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storyrec.data.events import merged_places
from storyrec.data.parts import SMALL_MONTH_BYTES, Files, Kind, Part, Parts
from storyrec.errors import StorageError
from storyrec.features.sequences import DAY_US, ClickLog
from storyrec.storage import FolderStorage, Storage

FIRST = date(2026, 2, 26)


class Copies:
    """A kind of part that joins its files, and remembers which days it read."""

    def __init__(self) -> None:
        self.read: list[date] = []
        self.kind = Kind("copies", self._write)

    def _write(self, storage: Storage, files: Files, *, folder: Path) -> None:
        self.read += files
        (folder / "all").write_bytes(b"".join(storage.read(key) for keys in files.values() for key in keys))


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    storage = FolderStorage(tmp_path / "work")
    for day in range(6):  # three in February, three in March
        storage.write(f"validated/t/dt={FIRST + timedelta(days=day)}/part-0.parquet", b"%d" % day)
    return storage


def files(storage: Storage) -> dict[date, list[str]]:
    listed: dict[date, list[str]] = {}
    for key in storage.list("validated/"):
        listed.setdefault(date.fromisoformat(key.split("dt=")[1][:10]), []).append(key)
    return listed


def make(storage: FolderStorage, copies: Copies, *, days: Sequence[date] | None = None) -> list[Part]:
    parts = Parts(storage, folder=storage.folder / "parts", prefixes=("validated/",))
    listed = files(storage)
    return parts.make(copies.kind, listed, days=listed if days is None else days)


def fill(storage: FolderStorage, day: int, content: bytes) -> None:
    """A large day, which is a part by itself."""
    storage.write(f"validated/t/dt={FIRST + timedelta(days=day)}/part-0.parquet", content * (SMALL_MONTH_BYTES + 1))


def test_small_months_are_one_part_and_large_days_one_each(storage: FolderStorage) -> None:
    fill(storage, 4, b"x")
    made = make(storage, Copies())
    assert [[day.day for day in part.days] for part in made] == [[26, 27, 28], [1], [2], [3]]
    assert (made[0].folder / "all").read_bytes() == b"012"
    assert made[0].folder.name.startswith("2026-02.")
    assert made[2].folder.name.startswith("2026-03-02.")


def test_a_file_that_moves_to_another_day_makes_another_part(storage: FolderStorage) -> None:
    copies = Copies()
    before = make(storage, copies)[0]
    moved = storage.folder / "validated/t"
    (moved / f"dt={FIRST}").rename(moved / f"dt={FIRST - timedelta(days=1)}")
    after = make(storage, copies)[0]
    assert after.days[0] == FIRST - timedelta(days=1)
    assert (after.folder / "all").read_bytes() == b"012"
    assert after.folder != before.folder


def test_only_the_parts_of_the_days_asked_for_are_made(storage: FolderStorage) -> None:
    copies = Copies()
    (part,) = make(storage, copies, days=[FIRST + timedelta(days=1)])
    assert [day.day for day in copies.read] == [26, 27, 28]
    assert len(part.days) == 3


def test_unchanged_files_are_not_read_again_and_a_changed_day_alone_is(storage: FolderStorage) -> None:
    for day in (3, 4, 5):
        fill(storage, day, b"x")
    first = make(storage, Copies())
    again = Copies()
    assert make(storage, again) == first
    assert again.read == []
    fill(storage, 4, b"y")
    changed = Copies()
    second = make(storage, changed)
    assert [day.day for day in changed.read] == [2]
    assert [old == new for old, new in zip(first, second, strict=True)] == [True, True, False, True]
    assert not first[2].folder.exists(), "what no file makes any more is removed"


def test_the_same_bytes_written_again_are_the_same_part(storage: FolderStorage) -> None:
    first = make(storage, Copies())
    for keys in files(storage).values():
        for key in keys:
            path = storage.folder / key
            storage.write(key, path.read_bytes())
            os.utime(path, ns=(1, 1))
    again = Copies()
    assert make(storage, again) == first
    assert again.read == []


def test_a_part_whose_making_failed_is_not_there_and_the_others_stay(storage: FolderStorage) -> None:
    def fail(storage: Storage, files: Files, *, folder: Path) -> None:
        if FIRST + timedelta(days=3) in files:
            raise StorageError("no space", where="here", remedy="none")
        copies.kind.write(storage, files, folder=folder)

    copies = Copies()
    parts = Parts(storage, folder=storage.folder / "parts", prefixes=("validated/",))
    listed = files(storage)
    with pytest.raises(StorageError):
        parts.make(Kind("copies", fail), listed, days=listed)
    assert [path.name[:7] for path in (storage.folder / "parts/copies").iterdir()] == ["2026-02"]
    assert len(make(storage, copies)) == 2


def test_what_history_has_left_behind_is_forgotten(storage: FolderStorage) -> None:
    for day in (3, 4, 5):
        fill(storage, day, b"x")
    made = make(storage, copies := Copies())
    Parts(storage, folder=storage.folder / "parts", prefixes=()).forget(copies.kind, before=date(2026, 3, 2))
    assert [part.folder.exists() for part in made] == [False, False, True, True]


clicks = st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(1, 3)), max_size=12)


@given(st.lists(clicks, max_size=4))
def test_merged_days_are_the_sorted_log_of_all(days: list[list[tuple[int, int, int]]]) -> None:
    def log(rows: list[tuple[int, int, int]]) -> ClickLog:
        columns = np.array(rows, np.int64).reshape(-1, 3).T
        return ClickLog.from_arrays(columns[0], columns[2], columns[1])

    stamped = [[(user, day * DAY_US + us, item) for user, us, item in rows] for day, rows in enumerate(days)]
    whole = log([row for rows in stamped for row in rows])
    logs = [log(rows) for rows in stamped]
    merged = np.zeros((3, len(whole)), np.int64)
    for own, places_C in zip(logs, merged_places(logs), strict=True):
        merged[:, places_C] = own.user_ids_C, own.item_ids_C, own.clicked_us_C
    assert merged.tolist() == [whole.user_ids_C.tolist(), whole.item_ids_C.tolist(), whole.clicked_us_C.tolist()]
