"""What users were shown and clicked, users in parts that fit into memory.

Training instances are every click of the training day and as many sampled non-clicks; test instances are all
impressions of the test day. Paper: Sec. II-B, IV-A.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial, reduce
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import numpy.typing as npt
import pandas as pd

from storyrec.ahead import read_ahead
from storyrec.analysis.database import read_columns
from storyrec.analysis.sequences import SplitSums, sum_split
from storyrec.analysis.sums import Sums
from storyrec.data.instances import Instances, balance
from storyrec.features.sequences import ClickLog, midnight_us
from storyrec.logs.partitions import day_number
from storyrec.progress import Tracker
from storyrec.schema import SOURCES, Domain

Int64s = npt.NDArray[np.int64]

ROWS_IN_A_PART = 20_000_000
NO_SOURCE = "none"

_FIRST_CLICKS = """
CREATE TABLE first_clicks AS SELECT story_id, min(us) AS us FROM impressions WHERE clicked GROUP BY ALL
"""
_KNOWN = """
CREATE VIEW known_{events} AS
SELECT {events}.*, coalesce({item}_row, 0) AS {item}_row
FROM {events} LEFT JOIN (SELECT {item}_id, {item}_row FROM {catalog}) USING ({item}_id)
"""
_DIVIDE = """
COPY (SELECT *, hash(user_id) % {num_parts} AS part FROM known_{events})
TO '{folder}' (FORMAT parquet, PARTITION_BY (part), COMPRESSION lz4)
"""
_SHOWN = """
CREATE OR REPLACE TABLE shown AS SELECT * EXCLUDE (story_id, occasion) FROM (
    SELECT day, user_id, story_id, occasion, story_row,
           min(us) AS us, bool_or(clicked) AS clicked, count(*) AS num_rows
    FROM {part} GROUP BY ALL)
"""
_CLICKS = """
CREATE OR REPLACE TABLE clicks AS SELECT * EXCLUDE (product_id) FROM (
    SELECT user_id, us, product_id, product_row, count(*) AS num_rows
    FROM {part} GROUP BY ALL)
"""
_RATES = """
SELECT day, shown.us // 3600000000 % 24 AS hour,
       CASE WHEN source IN {sources} THEN source ELSE '{no_source}' END AS source,
       coalesce(published_day = day, false) AS is_new, coalesce(shown.us <= first_clicks.us, true) AS is_unclicked,
       count(*) AS shown, count(*) FILTER (clicked) AS clicked
FROM shown JOIN stories USING (story_row) LEFT JOIN first_clicks USING (story_id) GROUP BY ALL
"""


@dataclass(frozen=True)
class EventRows(Sums):
    """Rows of an event table; repeated rows and those of unknown items are left out of everything else.

    Attributes:
        num_usable: with a user, an item, a time inside their partition's day and, if it has to be, a label.
        num_repeated: usable rows beyond the first of the same event: user, story and request (or time, without
            one) of a day; user, product and time.
        num_unknown: events of an item that no catalog knows.
        num_pairs: distinct pairs of a user and an item among the other events.
        num_again: events beyond the first one of such a pair.
    """

    num_usable: int
    num_repeated: int
    num_unknown: int
    num_pairs: int
    num_again: int


@dataclass(frozen=True)
class ColdUsers(Sums):
    """Users of the test day: how many have no past.

    Attributes:
        num_users: all of them.
        num_without_story_click, num_without_click: without a click on a story, on anything, before that day.
        num_untrained: without a training instance.
    """

    num_users: int
    num_without_story_click: int
    num_without_click: int
    num_untrained: int


@dataclass(frozen=True)
class Part(Sums):
    """Some users' events and instances."""

    impressions: EventRows
    product_clicks: EventRows
    training: SplitSums
    test: SplitSums
    cold_users: ColdUsers


@dataclass(frozen=True)
class Behaviour:
    """What all users were shown and clicked.

    Attributes:
        users: all parts in one.
        rates: impressions (`shown`) and clicks (`clicked`) by day number, hour, source, whether the story was
            published that day (`is_new`) and whether nobody had clicked it before (`is_unclicked`).
        category_ids_K: the category of each place of `SplitSums.clicks_DK`; 0 = none.
    """

    users: Part
    rates: pd.DataFrame
    category_ids_K: Int64s


@dataclass(frozen=True)
class Categories:
    """The category of each catalog row as a place in the sorted category ids; place 0 = none.

    A story has the category of the mounted product with the smallest id (Sec. II-C), as in `data.catalog`.
    """

    ids_K: Int64s
    places_N: Mapping[Domain, Int64s]


def measure_behaviour(
    connection: duckdb.DuckDBPyConnection,
    *,
    num_rows: int,
    training_day: date,
    test_day: date,
    history_days: int,
    length: int,
    seed: int,
    progress: Tracker,
) -> Behaviour:
    """Go through all users, some at a time.

    Args:
        connection: of `open_database`.
        num_rows: of both event tables, about.
        training_day, test_day: whose impressions are the instances.
        history_days, length: what a sequence may hold.
        seed: of the draw of training's non-clicked impressions.
        progress: advances by 1.
    """
    num_parts = 1 + num_rows // ROWS_IN_A_PART
    connection.execute(_FIRST_CLICKS)
    categories = _categories(connection)
    parts, rates = [], []
    with TemporaryDirectory(prefix="storyrec-analyze-") as folder, ThreadPoolExecutor(1) as pool:
        _divide(connection, Path(folder), num_parts=num_parts)
        progress.advance(0.2, note="users")
        read = partial(_read_part, connection, Path(folder), training_day=training_day, test_day=test_day)
        # DuckDB gets the next part ready while numpy measures this one
        for number, part in enumerate(read_ahead(pool, read, range(num_parts), num_ahead=1)):
            rates.append(part.rates)
            parts.append(
                _measure_part(
                    part,
                    test_day=test_day,
                    categories=categories,
                    history_days=history_days,
                    length=length,
                    seed=seed + number,
                )
            )
            progress.advance(0.8 / num_parts, note=f"users, part {number + 1} of {num_parts}")
    keys = ["day", "hour", "source", "is_new", "is_unclicked"]
    total = pd.concat(rates).groupby(keys, as_index=False)[["shown", "clicked"]].sum()
    return Behaviour(reduce(add, parts), total, categories.ids_K)


@dataclass(frozen=True)
class _PartEvents:
    """Some users' events: clicks by domain, instances without sequences, and what DuckDB counted."""

    clicks: Mapping[Domain, ClickLog]
    training: Instances
    test: Instances
    impressions: EventRows
    product_clicks: EventRows
    rates: pd.DataFrame


def _divide(connection: duckdb.DuckDBPyConnection, folder: Path, *, num_parts: int) -> None:
    """Go through the logs once, and leave each part's events in files of their own."""
    for events, item, catalog in (("impressions", "story", "stories"), ("product_clicks", "product", "products")):
        connection.execute(_KNOWN.format(events=events, item=item, catalog=catalog))
        connection.execute(_DIVIDE.format(events=events, folder=folder / events, num_parts=num_parts))


def _read_part(
    connection: duckdb.DuckDBPyConnection, folder: Path, number: int, *, training_day: date, test_day: date
) -> _PartEvents:
    for events, query in (("impressions", _SHOWN), ("product_clicks", _CLICKS)):
        own = folder / events / f"part={number}"
        # nothing is written where there is nothing
        part = f"read_parquet('{own}/*')" if own.exists() else f"(FROM known_{events} LIMIT 0)"
        connection.execute(query.format(part=part))
    return _PartEvents(
        clicks={
            Domain.STORY: _read_clicks(connection, "story_row", "shown WHERE clicked AND story_row > 0"),
            Domain.PRODUCT: _read_clicks(connection, "product_row", "clicks WHERE product_row > 0"),
        },
        training=_read_instances(connection, training_day),
        test=_read_instances(connection, test_day),
        impressions=_count_rows(connection, "shown", "story_row"),
        product_clicks=_count_rows(connection, "clicks", "product_row"),
        rates=connection.execute(_RATES.format(sources=SOURCES, no_source=NO_SOURCE)).df(),
    )


def _measure_part(
    part: _PartEvents,
    *,
    test_day: date,
    categories: Categories,
    history_days: int,
    length: int,
    seed: int,
) -> Part:
    training = balance(part.training, seed=seed)
    training_sums, test_sums = (
        sum_split(
            instances,
            clicks=part.clicks,
            categories=categories.places_N,
            num_categories=len(categories.ids_K) - 1,
            history_days=history_days,
            length=length,
        )
        for instances in (training, part.test)
    )
    users_U = np.unique(part.test.user_ids_B)
    has_story_click_U, has_product_click_U = (
        np.isin(users_U, log.user_ids_C[log.clicked_us_C < midnight_us(test_day)]) for log in part.clicks.values()
    )
    return Part(
        impressions=part.impressions,
        product_clicks=part.product_clicks,
        training=training_sums,
        test=test_sums,
        cold_users=ColdUsers(
            num_users=len(users_U),
            num_without_story_click=int((~has_story_click_U).sum()),
            num_without_click=int((~(has_story_click_U | has_product_click_U)).sum()),
            num_untrained=int((~np.isin(users_U, training.user_ids_B)).sum()),
        ),
    )


def _categories(connection: duckdb.DuckDBPyConnection) -> Categories:
    products = read_columns(connection, "SELECT coalesce(category_id, 0) AS id FROM products ORDER BY product_row")
    ids_K, places_N = np.unique(np.append(0, products["id"]), return_inverse=True)
    mounted = read_columns(connection, "SELECT story_row, min(product_row) AS product_row FROM pairs GROUP BY ALL")
    num_stories = connection.execute("SELECT count(*) FROM stories").fetchall()[0][0]
    story_places_N = np.zeros(num_stories + 1, np.int64)
    story_places_N[mounted["story_row"]] = places_N[mounted["product_row"]]
    return Categories(ids_K, {Domain.STORY: story_places_N, Domain.PRODUCT: places_N})


def _read_clicks(connection: duckdb.DuckDBPyConnection, row: str, source: str) -> ClickLog:
    query = f"SELECT user_id, {row}::BIGINT AS item_row, us FROM {source} ORDER BY user_id, us, item_row"
    found = read_columns(connection, query)
    return ClickLog(found["user_id"], found["item_row"], found["us"])


def _read_instances(connection: duckdb.DuckDBPyConnection, day: date) -> Instances:
    """A day's impressions in the order of `Instances`, their sequences still empty."""
    found = read_columns(
        connection,
        """SELECT user_id, story_row::BIGINT AS story_row, us, clicked FROM shown WHERE day = ? AND story_row > 0
           ORDER BY user_id, us, story_row, clicked""",
        [day_number(day)],
    )
    zeros_B = np.zeros(len(found["us"]), np.int64)
    return Instances(found["user_id"], found["story_row"], found["us"], found["clicked"], *[zeros_B] * 4)


def _count_rows(connection: duckdb.DuckDBPyConnection, table: str, row: str) -> EventRows:
    num_usable, num_events, num_unknown, num_pairs = connection.execute(
        f"""SELECT coalesce(sum(num_rows), 0)::BIGINT, coalesce(sum(num_events), 0)::BIGINT,
                   coalesce(sum(num_events) FILTER ({row} = 0), 0)::BIGINT, count(*) FILTER ({row} > 0)
            FROM (SELECT {row}, sum(num_rows) AS num_rows, count(*) AS num_events FROM {table}
                  GROUP BY user_id, {row})"""
    ).fetchall()[0]
    return EventRows(
        num_usable=num_usable,
        num_repeated=num_usable - num_events,
        num_unknown=num_unknown,
        num_pairs=num_pairs,
        num_again=num_events - num_unknown - num_pairs,
    )
