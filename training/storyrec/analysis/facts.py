"""What a data scientist asks next: click rates, and shares of cold, repeated and missing things.

A fact says how many of how many; its share is None of nothing.
"""

from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd

from storyrec.analysis.behaviour import Behaviour
from storyrec.analysis.catalogs import CatalogFigures, Catalogs
from storyrec.analysis.files import TableFiles
from storyrec.logs.partitions import EPOCH, day_number

Fact = dict[str, Any]


def click_rates(behaviour: Behaviour, *, test_day: date, by_hour: bool) -> dict[str, list[Fact] | None]:
    """Impressions and clicks by day, hour (None where times are days) and, on the test day, sequence length."""
    rates, test = behaviour.rates, behaviour.users.test
    by_length = {
        name: [
            _rate(length, shown, clicked)
            for length, (shown, clicked) in enumerate(
                zip(test.shown_LL.sum(axis=axis), test.clicked_LL.sum(axis=axis), strict=True)
            )
        ]
        for name, axis in (("story_length", 1), ("product_length", 0))
    }
    days = [{**rate, "value": str(EPOCH + timedelta(days=rate["value"]))} for rate in _rates(rates, "day")]
    return {"day": days, "hour": _rates(rates, "hour") if by_hour else None, **by_length}


def cold_start_facts(behaviour: Behaviour, *, test_day: date) -> list[Fact]:
    """Impressions of the test day, and its users, that have little to go by."""
    test, users = behaviour.users.test, behaviour.users.cold_users
    on_test_day = behaviour.rates[behaviour.rates.day == day_number(test_day)]
    impressions = [
        ("on stories published that day", *_sum(on_test_day[on_test_day.is_new])),
        ("on stories that nobody clicked before", *_sum(on_test_day[on_test_day.is_unclicked])),
        ("with an empty story sequence", test.shown_LL[0].sum(), test.clicked_LL[0].sum()),
        ("with an empty product sequence", test.shown_LL[:, 0].sum(), test.clicked_LL[:, 0].sum()),
        ("with both sequences empty", test.shown_LL[0, 0], test.clicked_LL[0, 0]),
    ]
    return [
        *(
            {**_fact(f"impressions {what}", shown, test.num_instances), "click_rate": _share(clicked, shown)}
            for what, shown, clicked in impressions
        ),
        _fact("users without a story click before that day", users.num_without_story_click, users.num_users),
        _fact("users without any click before that day", users.num_without_click, users.num_users),
        _fact("users without a training instance", users.num_untrained, users.num_users),
    ]


def duplicate_facts(behaviour: Behaviour, catalogs: Catalogs) -> list[Fact]:
    """Repeated rows, repeated pairs of a user and an item, repeated items and titles."""
    users = behaviour.users
    facts = []
    for rows, repeated, again in (
        (
            users.impressions,
            "impressions that repeat a row",
            "impressions of a story to a user who was shown it before",
        ),
        (users.product_clicks, "product clicks that repeat a row", "product clicks on what the user clicked before"),
    ):
        facts.append(_fact(repeated, rows.num_repeated, rows.num_usable))
        facts.append(_fact(again, rows.num_again, rows.num_pairs + rows.num_again))
    for name, catalog in _catalogs(catalogs):
        facts.append(_fact(f"{name} with more than one row", catalog.num_repeated_items, catalog.num_items))
        titled = catalog.num_items - catalog.num_untitled
        facts.append(_fact(f"{name} whose title another one has already", catalog.num_repeated_titles, titled))
    return facts


def coverage_facts(behaviour: Behaviour, catalogs: Catalogs, *, files: Mapping[str, TableFiles]) -> list[Fact]:
    """What is there of what could be: titles, covers, sources, mounted products, known items, whole rows."""
    facts = []
    for name, catalog in _catalogs(catalogs):
        facts.append(_fact(f"{name} with a title", catalog.num_items - catalog.num_untitled, catalog.num_items))
        facts.append(_fact(f"rows of {name} with a cover", catalog.num_covers, catalog.num_rows))
    num_stories = catalogs.stories.num_items
    facts.append(_fact("stories with a source other than “other”", num_stories - catalogs.num_unsourced, num_stories))
    facts.append(_fact("stories that mount a product", catalogs.num_mounting, num_stories))
    num_mounts = catalogs.num_pairs + catalogs.num_unknown_mounts
    facts.append(_fact("mounted products that the catalog knows", catalogs.num_pairs, num_mounts))
    for name, table, rows in (
        ("impressions", "impressions", behaviour.users.impressions),
        ("product clicks", "product_clicks", behaviour.users.product_clicks),
    ):
        num_rows = sum(files[table].num_rows.values())
        num_events = rows.num_usable - rows.num_repeated
        facts.append(_fact(f"{name} with ids, and a time inside their day", rows.num_usable, num_rows))
        facts.append(_fact(f"{name} of an item that the catalog knows", num_events - rows.num_unknown, num_events))
    return facts


def _catalogs(catalogs: Catalogs) -> Iterable[tuple[str, CatalogFigures]]:
    return ("stories", catalogs.stories), ("products", catalogs.products)


def _rates(rates: pd.DataFrame, column: str) -> list[Fact]:
    summed = rates.groupby(column)[["shown", "clicked"]].sum()
    return [_rate(value, shown, clicked) for value, shown, clicked in summed.itertuples()]


def _rate(value: int, shown: int, clicked: int) -> Fact:
    return {"value": int(value), "shown": int(shown), "clicked": int(clicked), "click_rate": _share(clicked, shown)}


def _sum(rates: pd.DataFrame) -> tuple[int, int]:
    return int(rates.shown.sum()), int(rates.clicked.sum())


def _fact(what: str, count: int | np.int64, of: int | np.int64) -> Fact:
    return {"what": what, "count": int(count), "of": int(of), "share": _share(count, of)}


def _share(count: int | np.int64, of: int | np.int64) -> float | None:
    return float(count / of) if of else None
