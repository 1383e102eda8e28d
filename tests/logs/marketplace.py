"""Tiny log tables for the tests of the log rules: every day is clean until a test spoils it."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storyrec.config import Config, Locations, Rules
from storyrec.logs.partitions import write_partition
from storyrec.schema import COVER_WIDTH, TABLES
from storyrec.storage import FolderStorage

DAY = date(2026, 3, 5)
NUM_PRODUCTS, NUM_STORIES, NUM_IMPRESSIONS, NUM_CLICKS = 40, 30, 240, 120

Row = dict[str, Any]


def at(day: date, *, hour: int = 12, second: int = 0) -> datetime:
    """A time of a day, UTC."""
    return datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(hours=hour, seconds=second)


def cover(seed: int) -> list[float]:
    """A vector of unit norm."""
    vector = np.random.default_rng(seed).normal(size=COVER_WIDTH)
    return (vector / np.linalg.norm(vector)).astype(np.float32).tolist()


def make_rows(day: date, *, first_id: int = 1) -> dict[str, list[Row]]:
    """One clean day: products and stories with ids from `first_id`, impressions and clicks of them."""
    products = [
        {
            "product_id": first_id + i,
            "title": f"kettle {i}",
            "cover": cover(i) if i % 4 else None,
            "cover_uri": None,
            "category_id": 1 + i % 5,
            "published_at": at(day, hour=1) - timedelta(days=i % 3),
        }
        for i in range(NUM_PRODUCTS)
    ]
    stories = [
        {
            "story_id": first_id + i,
            "title": f"tea at home {i}",
            "cover": cover(100 + i) if i % 3 else None,
            "cover_uri": None,
            "source": ("ugv", "mgi", "other")[i % 3],
            "published_at": at(day, hour=2),
            "mounted_product_ids": [first_id + i, first_id + i + 1] if i % 5 else [],
        }
        for i in range(NUM_STORIES)
    ]
    impressions = [
        {
            "user_id": 1 + i % 20,
            "story_id": first_id + i % NUM_STORIES,
            "shown_at": at(day, hour=3, second=i),
            "clicked": i % 8 == 0,
            "request_id": f"r{i // 4}" if i % 2 else None,
        }
        for i in range(NUM_IMPRESSIONS)
    ]
    clicks = [
        {"user_id": 1 + i % 20, "product_id": first_id + i % NUM_PRODUCTS, "clicked_at": at(day, second=i)}
        for i in range(NUM_CLICKS)
    ]
    return {"products": products, "stories": stories, "impressions": impressions, "product_clicks": clicks}


def to_table(table: str, rows: list[Row]) -> pa.Table:
    """Rows in the contract's types."""
    return pa.Table.from_pylist(rows, schema=TABLES[table])


class Market:
    """A log and a work location in a folder, with settings to match."""

    def __init__(self, folder: Path, **rules: Any) -> None:
        self.logs, self.work = FolderStorage(folder / "logs"), FolderStorage(folder / "work")
        locations = Locations(logs=self.logs.url, work=self.work.url, registry=str(folder / "registry"))
        self.config = Config(locations=locations, rules=Rules(**rules))

    def write(self, day: date, rows: dict[str, list[Row]]) -> None:
        """Write raw partitions of a day."""
        for table, some in rows.items():
            write_partition(self.logs, table, day, to_table(table, some))

    def write_days(self, first: date, num_days: int) -> list[date]:
        """Clean days in a row, each with its own ids."""
        days = [first + timedelta(days=i) for i in range(num_days)]
        for i, day in enumerate(days):
            self.write(day, make_rows(day, first_id=1 + 1_000 * i))
        return days

    def files(self) -> dict[str, bytes]:
        """Every file of the work location but the data docs."""
        return {key: self.work.read(key) for key in self.work.list() if not key.startswith("data_docs/")}
