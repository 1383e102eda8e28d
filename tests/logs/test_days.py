"""Which two days of a log are run when nobody names them."""

from datetime import date, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyrec.errors import DataError, MissingPartition
from storyrec.logs.days import suggest_days
from storyrec.schema import IMPRESSIONS
from storyrec.storage import FolderStorage

START = date(2026, 3, 1)


def make_log(folder: Path, sizes: dict[int, int]) -> FolderStorage:
    """Impressions with so many rows on so many days after the first of March."""
    for offset, size in sizes.items():
        path = folder / "impressions" / f"dt={START + timedelta(days=offset)}" / "part-0.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table([pa.nulls(size, field.type) for field in IMPRESSIONS], schema=IMPRESSIONS), path)
    return FolderStorage(folder)


def offsets(days: tuple[date, date]) -> tuple[int, int]:
    return (days[0] - START).days, (days[1] - START).days


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({0: 100, 1: 100, 2: 100}, (1, 2)),
        ({0: 100, 1: 110, 2: 90, 3: 19}, (1, 2)),  # the last day has just begun
        ({0: 100, 1: 110, 2: 90, 3: 21}, (2, 3)),
        ({0: 100, 1: 100, 2: 100, 3: 5, 4: 4, 5: 0, 6: 1}, (1, 2)),
        ({0: 100, 7: 100, 90: 100}, (7, 90)),  # partitions, not dates
        ({0: 100, 1: 100, 2: 100, 3: 1, 4: 100}, (1, 2)),  # both days are run, so both must be whole
        ({0: 100, 1: 100, 2: 100, 3: 1, 4: 100, 5: 100}, (4, 5)),
        ({0: 50, 1: 60, 2: 9_000}, (1, 2)),
    ],
)
def test_last_two_whole_partitions(tmp_path: Path, sizes: dict[int, int], expected: tuple[int, int]) -> None:
    assert offsets(suggest_days(make_log(tmp_path, sizes))) == expected


@pytest.mark.parametrize("sizes", [{}, {0: 100}, {0: 100, 1: 100}, {0: 100, 1: 100, 2: 3}])
def test_too_few_days_are_said_to_be(tmp_path: Path, sizes: dict[int, int]) -> None:
    with pytest.raises(MissingPartition, match=f"{len(sizes)} days of impressions"):
        suggest_days(make_log(tmp_path, sizes))


def test_a_partition_that_cannot_be_read_is_no_reason_to_take_other_days(tmp_path: Path) -> None:
    logs = make_log(tmp_path, {0: 100, 1: 100, 2: 100, 3: 100})
    (tmp_path / "impressions" / "dt=2026-03-04" / "part-0.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="2026-03-04"):
        suggest_days(logs)
