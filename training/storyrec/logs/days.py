"""Which days of a log make sense for a loop of two days."""

from collections.abc import Callable, Sequence
from datetime import date
from statistics import median

from storyrec.errors import MissingPartition
from storyrec.logs.partitions import list_days, read_partition
from storyrec.storage import Storage

THIN_SHARE = 0.2
"""A day with fewer impressions than this share of the trailing median is thin: the log was cut off."""

TRAILING_PARTITIONS = 30


def suggest_days(logs: Storage) -> tuple[date, date]:
    """The last two partitions, one right after the other, that are not thin and have one before them.

    A log often ends in days that are not whole yet. Days are partitions: a log need not have one
    for every date.

    Raises:
        MissingPartition: there are no such two.
        DataError: a partition on the way cannot be read.
    """
    days = list_days(logs, "impressions")
    sizes: dict[date, int] = {}

    def size(day: date) -> int:
        if day not in sizes:
            sizes[day] = read_partition(logs, "impressions", day, columns=["user_id"]).num_rows
        return sizes[day]

    return last_whole_days(days, size=size, where=f"{logs.url}/impressions")


def last_whole_days(days: Sequence[date], *, size: Callable[[date], int], where: str) -> tuple[date, date]:
    """`suggest_days` for partitions whose number of impressions somebody knows.

    Args:
        days: the partitions, ascending.
        size: the number of impressions of one of them.
        where: the table, for the error.

    Raises:
        MissingPartition: there are no such two.
    """

    def whole(index: int) -> bool:
        before = [size(day) for day in days[max(0, index - TRAILING_PARTITIONS) : index] if size(day)]
        return size(days[index]) > 0 and bool(before) and size(days[index]) >= THIN_SHARE * median(before)

    for index in range(len(days) - 1, 1, -1):
        if whole(index) and whole(index - 1):
            return days[index - 1], days[index]
    raise MissingPartition(
        f"the log has {len(days)} days of impressions, and no two of them to run",
        expected="three days with impressions at least: two to run, and one before them to learn from",
        where=where,
        remedy="name another log, or wait for more days",
    )
