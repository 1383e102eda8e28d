"""Drift and trouble on demand: named scenarios that befall the last day of a simulated marketplace, or the one before.

A scenario changes what the users do (`base_shift`, `late_category`, `shuffled_clicks`) or what of it reaches the logs
(the functions). Every one is drawn from the marketplace's seed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.logs.simulate.wants import DAY_US, HOUR_US
from storyrec.schema import COVER_WIDTH, EVENT_TIME, TABLES

EVENTS = ("impressions", "product_clicks")

LATE_SHARE = 0.1
REPEATED_SHARE = 0.1
NUM_BOTS = 3
BOT_EVENTS_AN_HOUR = 10_000
FIRST_BOT_ID = 800_000_000


@dataclass(frozen=True)
class Scenario:
    """What befalls a marketplace.

    Attributes:
        says: in a sentence.
        base_shift: added to every logit of the last day.
        late_category: whether the last category is new on the last day, with a fifth of that day's items.
        shuffled_clicks: whether the clicks of the day before the last are handed out at random.
        late_rows, repeated_rows, broken_covers, missing_day, bots: what happens to the logs, as `says` tells.
    """

    says: str
    base_shift: float = 0.0
    late_category: bool = False
    shuffled_clicks: bool = False
    late_rows: bool = False
    repeated_rows: bool = False
    broken_covers: bool = False
    missing_day: bool = False
    bots: bool = False


NONE = Scenario("nothing befalls it")

SCENARIOS: Mapping[str, Scenario] = MappingProxyType(
    {
        "none": NONE,
        "click-rate-shift": Scenario("users click far more readily on the last day", base_shift=2.5),
        "new-category": Scenario(
            "the last category is new on the last day, with a fifth of the new items", late_category=True
        ),
        "late-rows": Scenario("a tenth of the events of the day before the last come with the last", late_rows=True),
        "repeated-rows": Scenario("a tenth of the last day's events come twice", repeated_rows=True),
        "broken-covers": Scenario("covers of the last day have one number too few", broken_covers=True),
        "missing-day": Scenario("no event of the day before the last arrives", missing_day=True),
        "bots": Scenario("three users see and click ten thousand items an hour on the last day", bots=True),
        "shuffled-clicks": Scenario("clicks of the day before the last are handed out at random", shuffled_clicks=True),
    }
)
"""All scenarios, by name."""


def split_late(table: pa.Table, *, rng: np.random.Generator) -> tuple[pa.Table, pa.Table]:
    """The events that arrive in time, and those that arrive a day late."""
    late_B = pa.array(rng.random(table.num_rows) < LATE_SHARE)
    return table.filter(pc.invert(late_B)), table.filter(late_B)


def repeat_rows(table: pa.Table, *, rng: np.random.Generator) -> pa.Table:
    """A table with some rows once more, at its end."""
    return pa.concat_tables([table, table.filter(pa.array(rng.random(table.num_rows) < REPEATED_SHARE))])


def break_covers(table: pa.Table) -> pa.Table:
    """Catalog rows whose covers lost their last number."""
    broken = pc.list_slice(table["cover"], 0, COVER_WIDTH - 1)
    return table.set_column(table.schema.get_field_index("cover"), table.schema.field("cover"), broken)


def bot_rows(table: pa.Table, *, name: str, rng: np.random.Generator) -> pa.Table:
    """Events of bots: on items of the day's other events, all within one hour, every one a click.

    Args:
        table: the day's events of users, at least one.
        name: "impressions" or "product_clicks".
    """
    num_rows = NUM_BOTS * BOT_EVENTS_AN_HOUR
    rows = table.take(pa.array(rng.integers(0, table.num_rows, num_rows)))
    day_us = int(pc.cast(table[EVENT_TIME[name]][0], pa.int64()).as_py()) // DAY_US * DAY_US
    columns = {
        "user_id": np.repeat(np.arange(FIRST_BOT_ID, FIRST_BOT_ID + NUM_BOTS), BOT_EVENTS_AN_HOUR),
        EVENT_TIME[name]: day_us + 3 * HOUR_US + np.sort(rng.integers(0, HOUR_US, num_rows)),
        "clicked": np.ones(num_rows, bool),
        "request_id": pa.array([f"bot-{number}" for number in range(num_rows)]),
    }
    for column, values in columns.items():
        if column in rows.column_names:
            field = TABLES[name].field(column)
            cells = values if isinstance(values, pa.Array) else pa.array(values, field.type)
            rows = rows.set_column(rows.schema.get_field_index(column), field, cells)
    return rows
