"""A small validated world, and a naive reading of what its sequences are."""

import json
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa

from storyrec.config import Config, Features, Locations
from storyrec.logs.partitions import write_partition
from storyrec.schema import IMPRESSIONS, PRODUCT_CLICKS
from storyrec.storage import FolderStorage

FIRST_DAY = date(2026, 3, 1)
LENGTH = 4
NOW = datetime(2026, 4, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)

Click = tuple[int, int, datetime]  # user, item, when


def day_of(number: int) -> date:
    """The world's days, counted from 0."""
    return FIRST_DAY + timedelta(days=number)


def at(number: int, *, second: int = 0) -> datetime:
    """A moment of a day."""
    return datetime.combine(day_of(number), datetime.min.time(), UTC) + timedelta(seconds=second)


@dataclass
class World:
    """Validated logs below one work folder; what was written is kept to be read naively."""

    folder: Path
    impressions: dict[int, list[tuple[int, int, datetime, bool]]] = field(default_factory=dict)
    product_clicks: dict[int, list[Click]] = field(default_factory=dict)
    length: int = LENGTH

    @property
    def storage(self) -> FolderStorage:
        return FolderStorage(self.folder / "work")

    @property
    def config(self) -> Config:
        locations = Locations(work=str(self.folder / "work"), registry=str(self.folder / "registry"))
        return Config(locations=locations, features=Features(sequence_length=self.length))

    def write(self, number: int, *, status: str = "valid") -> None:
        """Write the day's partitions and report as validation leaves them."""
        day = day_of(number)
        rows = [(*row, None) for row in self.impressions.get(number, [])]
        write_partition(self.storage, "impressions", day, _table(rows, IMPRESSIONS), prefix="validated/")
        clicks = self.product_clicks.get(number, [])
        write_partition(self.storage, "product_clicks", day, _table(clicks, PRODUCT_CLICKS), prefix="validated/")
        self.storage.write(f"reports/dt={day}.json", json.dumps({"status": status}).encode())

    def clicks(self, domain: str) -> list[Click]:
        """All clicks of a domain, in the order of (user, time, item)."""
        if domain == "product":
            found = [click for clicks in self.product_clicks.values() for click in clicks]
        else:
            rows = [row for rows in self.impressions.values() for row in rows]
            found = [(user, story, when) for user, story, when, clicked in rows if clicked]
        return sorted(found, key=lambda click: (click[0], click[2], click[1]))

    def sequence(self, domain: str, *, user: int, before: datetime) -> list[tuple[int, int]]:
        """A user's last clicks strictly before a moment, as (item, epoch microseconds), oldest first."""
        mine = [(item, microseconds(when)) for who, item, when in self.clicks(domain) if who == user and when < before]
        return mine[-self.length :]


def microseconds(when: datetime) -> int:
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // MOMENT


def fill(world: World, *, num_days: int, num_users: int = 12, seed: int = 0) -> World:
    """Random days: many clicks of a user at one moment, some at the first and the last microsecond of a day."""
    random = np.random.default_rng(seed)
    for number in range(num_days):
        seconds = [0, 1, 2, 3, 40_000, 86_399]

        def moment(number: int = number, seconds: list[int] = seconds) -> datetime:
            late = timedelta(microseconds=999_999) if random.random() < 0.2 else timedelta(0)
            return at(number, second=int(random.choice(seconds))) + late

        world.impressions[number] = [
            (int(random.integers(1, num_users)), int(random.integers(1, 30)), moment(), bool(random.random() < 0.4))
            for _ in range(60)
        ]
        world.product_clicks[number] = [
            (int(random.integers(1, num_users)), int(random.integers(1, 30)), moment()) for _ in range(50)
        ]
        world.write(number)
    return world


def _table(rows: list[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = [[row[i] for row in rows] for i in range(len(schema))]
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema)
