"""The analysis of small random logs against plain Python, row by row."""

from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storyrec.analysis import behaviour
from storyrec.analysis.analyze import Document, analyze
from storyrec.features.titles import split_titles, train_vocabulary
from storyrec.logs.partitions import write_partition
from storyrec.schema import SOURCES, TABLES
from storyrec.storage import FolderStorage

FIRST = date(2026, 3, 1)
NUM_DAYS, LENGTH, HISTORY = 5, 4, 2
NEW_STORY = 100
SETTINGS: dict[str, Any] = {
    "history_days": HISTORY,
    "sequence_length": LENGTH,
    "vocabulary_size": 12,
    "min_word_count": 2,
    "max_title_words": 5,
    "seed": 7,
}
Row = dict[str, Any]
Logs = dict[str, dict[date, list[Row]]]


def random_logs(seed: int) -> Logs:
    """Days with few users, items and times, so that ties, repeats and unknown items are many."""
    rng = np.random.default_rng(seed)
    logs: Logs = {table: {} for table in TABLES}
    words = [f"w{i}" for i in range(18)]
    for number in range(NUM_DAYS):
        day = FIRST + timedelta(days=number)
        midnight = datetime(day.year, day.month, day.day, tzinfo=UTC)

        def time() -> datetime:
            return midnight + timedelta(minutes=int(rng.integers(48)) * 30)  # noqa: B023

        def title() -> str:
            return " ".join(rng.choice(words[: 12 + 2 * number], rng.integers(0, 8)))  # noqa: B023

        logs["products"][day] = [
            {
                "product_id": int(rng.integers(1, 4 + 4 * number)),
                "title": title(),
                "cover": [0.0] * 512 if rng.random() < 0.5 else None,
                "category_id": int(rng.integers(1, 5)),
                "published_at": midnight,
            }
            for _ in range(6)
        ]
        logs["stories"][day] = [
            {
                "story_id": NEW_STORY + number if row == 0 else int(rng.integers(1, 5 + 4 * number)),
                "title": title(),
                "source": str(rng.choice(["ugv", "mgi", "other", "odd"])),
                "published_at": midnight - timedelta(days=int(rng.integers(2))),
                "mounted_product_ids": rng.integers(1, 25, rng.integers(0, 3)).tolist(),
            }
            for row in range(6)
        ]
        logs["impressions"][day] = [
            {
                "user_id": int(rng.integers(0, 8)),
                "story_id": int(rng.integers(1, 26)) if rng.random() < 0.9 else NEW_STORY + number,
                "shown_at": time() + timedelta(days=int(rng.random() < 0.03)),
                "clicked": bool(rng.random() < 0.4),
                "request_id": None if rng.random() < 0.5 else f"r{rng.integers(3)}",
            }
            for _ in range(90)
        ]
        logs["product_clicks"][day] = [
            {"user_id": int(rng.integers(1, 9)), "product_id": int(rng.integers(1, 26)), "clicked_at": time()}
            for _ in range(70)
        ]
    return logs


def write_logs(root: Path, logs: Logs) -> Path:
    for table, days in logs.items():
        for day, rows in days.items():
            write_partition(FolderStorage(root), table, day, pa.Table.from_pylist(rows, schema=TABLES[table]))
    return root


class Oracle:
    """What the analysis must find, one row at a time."""

    def __init__(self, logs: Logs) -> None:
        self.products = self._newest(logs["products"], "product_id")
        self.stories = self._newest(logs["stories"], "story_id")
        self.first_day = {table: {} for table in ("products", "stories")}
        for table, key in (("products", "product_id"), ("stories", "story_id")):
            for day in sorted(logs[table]):
                for row in logs[table][day]:
                    self.first_day[table].setdefault(row[key], day)
        usable = [
            (day, row)
            for day, rows in logs["impressions"].items()
            for row in rows
            if row["user_id"] >= 1 and row["shown_at"].date() == day
        ]
        events: dict[tuple[Any, ...], Row] = {}
        for day, row in usable:
            key = (day, row["user_id"], row["story_id"], row["request_id"] or row["shown_at"])
            event = events.setdefault(key, {**row, "day": day})
            event["shown_at"] = min(event["shown_at"], row["shown_at"])
            event["clicked"] |= row["clicked"]
        self.num_usable, self.num_repeated = len(usable), len(usable) - len(events)
        self.num_unknown = sum(event["story_id"] not in self.stories for event in events.values())
        self.shown = [event for event in events.values() if event["story_id"] in self.stories]
        clicks = {
            (row["user_id"], row["product_id"], row["clicked_at"])
            for rows in logs["product_clicks"].values()
            for row in rows
        }
        self.product_clicks = sorted(
            (user, time, product) for user, product, time in clicks if product in self.products
        )
        self.story_clicks = sorted((e["user_id"], e["shown_at"], e["story_id"]) for e in self.shown if e["clicked"])

    @staticmethod
    def _newest(days: dict[date, list[Row]], key: str) -> dict[int, Row]:
        newest: dict[int, Row] = {}
        for day in sorted(days):
            newest |= {row[key]: row for row in reversed(days[day])}
        return newest

    def category(self, story: int) -> int:
        mounted = [p for p in sorted(self.stories[story]["mounted_product_ids"]) if p in self.products]
        return self.products[mounted[0]]["category_id"] if mounted else 0

    def sequence(self, clicks: list[tuple[int, datetime, int]], event: Row) -> tuple[tuple[datetime, int], ...]:
        start = datetime.combine(event["day"] - timedelta(days=HISTORY), datetime.min.time(), UTC)
        found = [(t, item) for user, t, item in clicks if user == event["user_id"] and start <= t < event["shown_at"]]
        return tuple(found[-LENGTH:])

    def split(self, events: list[Row]) -> Document:
        """What the instances of a split give."""
        sequences = [(self.sequence(self.story_clicks, e), self.sequence(self.product_clicks, e)) for e in events]
        distinct = {(e["user_id"], *pair) for e, pair in zip(events, sequences, strict=True)}
        stories = {e["story_id"] for e in events} | {story for _, s, _ in distinct for _, story in s}
        products = {product for _, _, p in distinct for _, product in p}
        products |= {m for s in stories for m in self.stories[s]["mounted_product_ids"] if m in self.products}
        kinds = [
            ({self.category(item) for _, item in s} - {0}, {self.products[item]["category_id"] for _, item in p})
            for _, s, p in distinct
        ]
        gaps = [
            Counter(
                (e["shown_at"] - time) // timedelta(hours=1)
                for e, pair in zip(events, sequences, strict=True)
                for time, _ in pair[domain]
            )
            for domain in (0, 1)
        ]
        return {
            "instances": len(events),
            "users": len({e["user_id"] for e in events}),
            "sequences": len(distinct),
            "stories": len(stories),
            "products": len(products),
            "clicked": sum(e["clicked"] for e in events),
            "sums": [
                sum(len(s) for _, s, _ in distinct),
                sum(len(p) for _, _, p in distinct),
                sum(len(s) for s, _ in kinds),
                sum(len(p) for _, p in kinds),
                sum(len(s & p) for s, p in kinds),
            ],
            "gaps": gaps,
            "lengths": Counter((len(s), len(p), e["clicked"]) for e, (s, p) in zip(events, sequences, strict=True)),
        }


@pytest.fixture(params=[0, 1, 2])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Document, Oracle]:
    logs = random_logs(request.param)
    return analyze(write_logs(tmp_path / "logs", logs), **SETTINGS), Oracle(logs)


TEST_DAY, TRAINING_DAY = FIRST + timedelta(days=4), FIRST + timedelta(days=3)


def test_the_test_day_is_what_plain_python_finds(case: tuple[Document, Oracle]) -> None:
    found, oracle = case
    expected = oracle.split([e for e in oracle.shown if e["day"] == TEST_DAY])
    assert found["table_1"]["here"]["test"] == {name: expected[name] for name in found["table_1"]["here"]["test"]}
    for axis, domain in enumerate(("story", "product")):
        rates = found["click_rates"][f"{domain}_length"]
        assert [(r["shown"], r["clicked"]) for r in rates] == [
            (
                sum(n for key, n in expected["lengths"].items() if key[axis] == length),
                sum(n for key, n in expected["lengths"].items() if key[axis] == length and key[2]),
            )
            for length in range(LENGTH + 1)
        ]


def test_training_has_every_click_and_as_many_others(case: tuple[Document, Oracle]) -> None:
    found, oracle = case
    clicked = [e for e in oracle.shown if e["day"] == TRAINING_DAY and e["clicked"]]
    training = found["table_1"]["here"]["training"]
    assert training["clicked"] == len(clicked)
    assert training["instances"] == 2 * len(clicked)


def test_sequences_and_gaps_of_all_instances(tmp_path: Path) -> None:
    logs = random_logs(5)
    for row in logs["impressions"][TRAINING_DAY]:
        row["clicked"] = row["user_id"] % 3 > 0
    # more are clicked than not: training has them all, whatever is drawn
    oracle = Oracle(logs)
    events = [e for e in oracle.shown if e["day"] == TRAINING_DAY]
    surplus = 2 * sum(e["clicked"] for e in events) - len(events)
    assert surplus > 0
    found = analyze(write_logs(tmp_path, logs), **SETTINGS)
    parts = [oracle.split([e for e in oracle.shown if e["day"] == day]) for day in (TRAINING_DAY, TEST_DAY)]
    num = sum(part["sequences"] for part in parts)
    assert [*found["table_3"]["here"].values()] == pytest.approx(
        [sum(part["sums"][i] for part in parts) / num for i in range(5)]
    )
    edges = found["figure_3"]["edges_hours"]
    for domain, name in enumerate(("story", "product")):
        hours = Counter[int]() + parts[0]["gaps"][domain] + parts[1]["gaps"][domain]
        expected = [
            sum(n for hour, n in hours.items() if low <= hour < high)
            for low, high in zip(edges, [*edges[1:], 10**9], strict=True)
        ]
        assert found["figure_3"][name] == expected


def test_rows_sources_and_cold_start(case: tuple[Document, Oracle]) -> None:
    found, oracle = case
    facts = {
        fact["what"]: (fact["count"], fact["of"])
        for name in ("cold_start", "duplicates", "coverage")
        for fact in found[name]
    }
    seen = Counter((e["user_id"], e["story_id"]) for e in oracle.shown)
    assert facts["impressions that repeat a row"] == (oracle.num_repeated, oracle.num_usable)
    assert facts["impressions with ids, and a time inside their day"] == (oracle.num_usable, 90 * NUM_DAYS)
    assert facts["impressions of an item that the catalog knows"] == (
        len(oracle.shown),
        len(oracle.shown) + oracle.num_unknown,
    )
    assert facts["impressions of a story to a user who was shown it before"] == (
        sum(seen.values()) - len(seen),
        len(oracle.shown),
    )
    by_source = Counter(
        source if (source := oracle.stories[e["story_id"]]["source"]) in SOURCES else "none" for e in oracle.shown
    )
    assert {s["source"]: s["shown"] for s in found["figure_1"]} == by_source

    test = [e for e in oracle.shown if e["day"] == TEST_DAY]
    first_click: dict[int, datetime] = {}
    for _, time, story in oracle.story_clicks:
        first_click[story] = min(time, first_click.get(story, time))
    new = [e for e in test if oracle.stories[e["story_id"]]["published_at"].date() == TEST_DAY]
    fresh = [e for e in test if e["shown_at"] <= first_click.get(e["story_id"], e["shown_at"])]
    assert facts["impressions on stories published that day"] == (len(new), len(test))
    assert facts["impressions on stories that nobody clicked before"] == (len(fresh), len(test))
    midnight = datetime.combine(TEST_DAY, datetime.min.time(), UTC)
    users = {e["user_id"] for e in test}
    had_story = {user for user, time, _ in oracle.story_clicks if time < midnight}
    had_any = had_story | {user for user, time, _ in oracle.product_clicks if time < midnight}
    assert facts["users without a story click before that day"] == (len(users - had_story), len(users))
    assert facts["users without any click before that day"] == (len(users - had_any), len(users))


def test_titles_and_pairs(case: tuple[Document, Oracle]) -> None:
    found, oracle = case
    catalogs = {"story": ("stories", oracle.stories), "product": ("products", oracle.products)}
    earlier, new = [], {}
    for name, (table, items) in catalogs.items():
        first = oracle.first_day[table]
        earlier += [row["title"] for key, row in items.items() if first[key] < TEST_DAY]
        new[name] = [row["title"].split()[:5] for key, row in items.items() if first[key] == TEST_DAY]
    vocabulary = train_vocabulary(earlier, size=12, min_count=2)
    assert found["titles"]["vocabulary_size"] == vocabulary.size
    for name, (_, items) in catalogs.items():
        titles = found["titles"][name]
        lengths = Counter(len(row["title"].split()) for row in items.values())
        assert {n: count for n, count in enumerate(titles["lengths"]) if count} == lengths
        assert titles["num_new_words"] == sum(map(len, new[name]))
        assert titles["num_unknown_words"] == sum(word not in vocabulary.words for title in new[name] for word in title)
    expected = np.zeros(5, int)
    num_pairs = 0
    for story in oracle.stories.values():
        for mounted in {m for m in story["mounted_product_ids"] if m in oracle.products}:
            one, other = (
                {*split_titles([t])[0].to_pylist()} for t in (story["title"], oracle.products[mounted]["title"])
            )
            similarity = len(one & other) / min(len(one), len(other)) if one and other else 0.0
            expected[min(int(similarity * 5 + 1e-9), 4)] += 1
            num_pairs += 1
    assert found["table_2"]["here"] == tuple(expected)
    facts = {fact["what"]: fact["count"] for fact in found["coverage"]}
    assert facts["mounted products that the catalog knows"] == num_pairs
    assert facts["products with a title"] == sum(bool(row["title"]) for row in oracle.products.values())


def test_covers_are_counted_from_the_footers(tmp_path: Path) -> None:
    logs = random_logs(3)
    found = analyze(write_logs(tmp_path, logs), **SETTINGS)
    num_covers = sum(row["cover"] is not None for rows in logs["products"].values() for row in rows)
    (fact,) = [fact for fact in found["coverage"] if fact["what"] == "rows of products with a cover"]
    assert (fact["count"], fact["of"]) == (num_covers, 6 * NUM_DAYS)


def test_users_in_parts_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_logs(tmp_path, random_logs(4))
    whole = analyze(root, **SETTINGS)
    monkeypatch.setattr(behaviour, "ROWS_IN_A_PART", 20)  # more parts than users: some are empty
    parts = analyze(root, **SETTINGS)
    drawn = ("table_1", "table_3", "figure_3", "figure_4")  # training's non-clicks are other ones
    assert {k: v for k, v in parts.items() if k not in drawn and k != "cold_start"} == {
        k: v for k, v in whole.items() if k not in drawn and k != "cold_start"
    }
    assert parts["cold_start"][:-1] == whole["cold_start"][:-1]
    assert parts["table_1"]["here"]["test"] == whole["table_1"]["here"]["test"]


def test_unsigned_ids_in_some_files_are_the_same_ids(tmp_path: Path) -> None:
    logs = random_logs(6)
    for days in (logs["impressions"], logs["product_clicks"]):
        for row in (row for rows in days.values() for row in rows if row["user_id"]):
            row["user_id"] += 2**62  # neighbours that no float tells apart
    signed, mixed = write_logs(tmp_path / "signed", logs), write_logs(tmp_path / "mixed", logs)
    for table, column in (("impressions", "user_id"), ("stories", "story_id"), ("products", "category_id")):
        path = mixed / table / f"dt={TRAINING_DAY}" / "part-0.parquet"
        rows = pq.read_table(path, partitioning=None)
        place = rows.schema.get_field_index(column)
        pq.write_table(rows.set_column(place, column, rows[column].cast(pa.uint64())), path)
    expected, found = analyze(signed, **SETTINGS), analyze(mixed, **SETTINGS)
    assert found.pop("data") == expected.pop("data") | {"path": str(mixed)}
    assert found == expected
