"""The event partitions of a simulated marketplace, a part of the users at a time."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.arrays import load_record, save_record
from storyrec.logs.simulate.behaviour import FRESHNESS_DAYS, Day, simulate_day
from storyrec.logs.simulate.dirt import Counts, add_faults
from storyrec.logs.simulate.exposures import Exposures
from storyrec.logs.simulate.parts import Columns, to_table, write_part
from storyrec.logs.simulate.pools import Pool, Pools
from storyrec.logs.simulate.presets import Preset
from storyrec.logs.simulate.scenarios import EVENTS, Scenario, bot_rows, repeat_rows, split_late
from storyrec.logs.simulate.truth import Knobs
from storyrec.logs.simulate.wants import Wants
from storyrec.logs.simulate.world import Catalogs, World, draw_users
from storyrec.schema import TABLES, TRUTH


def save_pools(catalogs: Catalogs, folder: Path, *, num_days: int) -> None:
    """Write the pools of every day and of the one before the first, for `write_events` to map."""
    num_topics = len(catalogs.topics.category_T)
    for day in range(-1, num_days):
        stories = Pool.of_day(catalogs.stories, day=day, num_topics=num_topics, freshness_days=FRESHNESS_DAYS)
        products = Pool.of_day(catalogs.products, day=day, num_topics=num_topics, freshness_days=None)
        save_record(stories, folder, name=f"pool.stories.{day}")
        save_record(products, folder, name=f"pool.products.{day}")


def write_events(
    preset: Preset,
    catalogs: Catalogs,
    *,
    pools: Path,
    logs: Path,
    truth: Path,
    part: int,
    users_per_part: int,
    num_users: int,
    num_days: int,
    first_day: date,
    first_us: int,
    knobs: Knobs,
    scenario: Scenario,
    seed: int,
    advance: Callable[[], None] = lambda: None,
) -> Counts:
    """Write `impressions`, `product_clicks` and the truth of every day for one part of the users.

    Args:
        preset: what users do.
        catalogs: all items.
        pools: where `save_pools` wrote them.
        logs, truth: folders of the tables.
        part: which users, from `part * users_per_part` on.
        num_users: of the whole marketplace.
        first_us: the first midnight.
        advance: called after every day.

    Returns:
        Counts of the rows and faults.
    """
    key = [] if part == 0 else [part]
    first_user = part * users_per_part
    users = draw_users(
        preset,
        catalogs.topics,
        num_users=min(users_per_part, num_users - first_user),
        num_days=num_days,
        shared=knobs.shared_interests,
        rng=np.random.default_rng([seed, 4, *key]),
    )
    world = World(catalogs.topics, catalogs.products, catalogs.stories, catalogs.traits, users)
    wants = Wants(world, first_us=first_us, num_days=num_days, rng=np.random.default_rng([seed, 5, *key]))
    write = partial(write_part, part=part, use_dictionary=False)
    counts = Counts()
    exposures = Exposures(len(catalogs.stories.topic_N))
    late: dict[str, pa.Table] = {}
    for day in range(num_days):
        is_last, is_before_last = day == num_days - 1, day == num_days - 2
        shift = scenario.base_shift if is_last else 0.0
        events = simulate_day(
            preset,
            world,
            wants,
            _load_pools(pools, day=day),
            day=day,
            first_us=first_us,
            exposures=exposures,
            knobs=replace(knobs, base=knobs.base + shift),
            rng=np.random.default_rng([seed, 6, day, *key]),
        )
        partition = str(first_day + timedelta(days=day))
        rng = np.random.default_rng([seed, 8, day, *key])
        trouble = np.random.default_rng([seed, 9, day, *key])
        if scenario.shuffled_clicks and is_before_last:
            events = replace(events, clicked_I=trouble.permutation(events.clicked_I))
        columns = _columns(events, first_user=first_user, partition=partition, part=part)
        write(to_table(columns["impressions"], TRUTH), truth / "impressions", partition=partition)
        for name in EVENTS:
            table, faults = add_faults(to_table(columns[name], TABLES[name]), name=name, rng=rng)
            if is_last and scenario.repeated_rows:
                table = repeat_rows(table, rng=trouble)
            if is_last and scenario.bots and part == 0:
                table = pa.concat_tables([table, bot_rows(table, name=name, rng=trouble)])
            if is_before_last and scenario.late_rows:
                table, late[name] = split_late(table, rng=trouble)
            elif name in late:
                table = pa.concat_tables([table, late.pop(name)])
            if is_before_last and scenario.missing_day:
                continue
            write(table, logs / name, partition=partition)
            counts.add(name, rows=table.num_rows, faults=faults)
        advance()
    return counts


def _load_pools(folder: Path, *, day: int) -> Pools:
    def load(name: str, day: int) -> Pool:
        return load_record(Pool, folder, name=f"pool.{name}.{day}")

    return Pools(load("stories", day), load("products", day), load("stories", day - 1), load("products", day - 1))


def _columns(events: Day, *, first_user: int, partition: str, part: int) -> dict[str, Columns]:
    """The columns of both event tables; those of impressions hold the truth's besides."""
    last_request = int(events.request_I[-1]) if len(events.request_I) else 0
    numbers = pc.utf8_lpad(pc.cast(pa.array(np.arange(last_request + 1)), pa.string()), 6, "0")
    prefix = f"{partition}-" if part == 0 else f"{partition}-{part}-"
    return {
        "impressions": {
            "user_id": first_user + events.user_I + 1,
            "story_id": events.story_I + 1,
            "shown_at": events.shown_us_I,
            "clicked": events.clicked_I,
            "request_id": pc.binary_join_element_wise(prefix, numbers, "").take(pa.array(events.request_I)),
            "probability": events.probability_I,
        },
        "product_clicks": {
            "user_id": first_user + events.click_user_C + 1,
            "product_id": events.click_product_C + 1,
            "clicked_at": events.clicked_us_C,
        },
    }
