"""The importer of review files: both line formats, ids, mounts, non-clicks, and what goes wrong."""

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from storyrec.errors import ConfigError, DataError
from storyrec.logs.amazon import import_amazon
from storyrec.logs.imported import MARKER
from storyrec.logs.negatives import NEWNESS_CLICKS, sample_negatives
from storyrec.schema import TABLES

REAL = Path(__file__).parents[3] / "shared" / "data" / "amazon_food_kitchen"
DAY = 86_400


def strict(line: dict[str, Any]) -> str:
    return json.dumps(line)


def literal(line: dict[str, Any]) -> str:
    return repr(line)


def pack(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def review(user: str, item: str, day: int, **more: Any) -> dict[str, Any]:
    return {"reviewerID": user, "asin": item, "unixReviewTime": (15_000 + day) * DAY, **more}


STORY_REVIEWS = [
    review("ann", "F1", 0, reviewText='it\'s "good"'),
    review("bob", "F2", 0),
    review("ann", "F3", 2),
    review("cid", "F1", 2),
    review("cid", "F1", 2, overall=5.0),  # the same user, item and day
    review("cid", "F4", 3),  # has no title
    review("bob", "F1", 5),
]
STORY_META = [
    {"asin": "F1", "title": "Udi's Granola &amp; Honey", "related": {"also_bought": ["K2", "F2", "K1"]}},
    {
        "asin": "F2",
        "title": 'The "Best"  Tea',
        "imUrl": "http://images/f2.jpg",
        "related": {"bought_together": ["K3"], "also_bought": ["K9", "K3", "K4"]},
    },
    {"asin": "F3", "brand": "Stash", "categories": [["Grocery", "Herbal Tea"]]},
    {"asin": "F4", "price": 3.5, "related": {"bought_together": ["K5"]}},
    {"asin": "F5", "title": "Never reviewed"},
]
PRODUCT_REVIEWS = [
    review("ann", "K1", 1),
    review("bob", "K2", 4),
    review("dan", "K1", 4),
]
PRODUCT_META = [
    {"asin": "K1", "title": "Hario Coffee Mill", "categories": [["Home", "Mills"]]},
    {"asin": "K2", "title": "Tea Kettle", "categories": [["Home", "Kettles"]]},
    {"asin": "K3", "title": "Mounted, never reviewed"},
    {"asin": "K4"},
    {"asin": "K5", "title": "Mounted by what is left out"},
]


def make_source(
    folder: Path, *, write: Callable[[dict[str, Any]], str] = strict, suffix: str = "", **replaced: list[str]
) -> Path:
    files = {
        f"reviews_Food{suffix}": STORY_REVIEWS,
        "meta_Food": STORY_META,
        f"reviews_Kitchen{suffix}": PRODUCT_REVIEWS,
        "meta_Kitchen": PRODUCT_META,
    }
    for name, lines in files.items():
        pack(folder / f"{name}.json.gz", replaced.get(name) or [write(line) for line in lines])
    return folder


def run(source: Path, out: Path, *, negatives: int = 1, seed: int = 7, target: str = "Food") -> dict[str, Any]:
    return import_amazon(
        source=source,
        out=out,
        target=target,
        source_category="Kitchen",
        negatives_per_click=negatives,
        seed=seed,
    )


def read(out: Path, table: str) -> pd.DataFrame:
    frames = []
    for file in sorted((out / table).glob("dt=*/part-0.parquet")):
        rows = pq.read_table(file, partitioning=None)
        assert rows.schema.equals(TABLES[table]), file
        frames.append(rows.to_pandas().assign(day=pd.Timestamp(file.parent.name[3:], tz="UTC")))
    return pd.concat(frames, ignore_index=True)


def ids(out: Path, name: str) -> dict[str, int]:
    table = pq.read_table(out / "_ids" / f"{name}.parquet").to_pydict()
    return dict(zip(table["source_id"], table["id"], strict=True))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("write", [strict, literal])
@pytest.mark.parametrize("suffix", ["", "_5"])
def test_both_line_formats_and_file_names_give_the_same_logs(
    tmp_path: Path, write: Callable[[dict[str, Any]], str], suffix: str
) -> None:
    run(make_source(tmp_path / "plain"), tmp_path / "expected")
    run(make_source(tmp_path / "source", write=write, suffix=suffix), tmp_path / "out")
    expected, found = bytes_of(tmp_path / "expected"), bytes_of(tmp_path / "out")
    assert {k: v for k, v in found.items() if k != MARKER} == {k: v for k, v in expected.items() if k != MARKER}


def test_reviews_become_clicks_of_their_day(tmp_path: Path) -> None:
    summary = run(make_source(tmp_path / "source"), tmp_path / "out")
    users, stories, products = (ids(tmp_path / "out", name) for name in ("users", "stories", "products"))
    assert users == {"ann": 1, "bob": 2, "cid": 3, "dan": 4}
    assert stories == {"F1": 1, "F2": 2, "F3": 3}
    impressions = read(tmp_path / "out", "impressions")
    clicks = impressions[impressions.clicked]
    expected = {("ann", "F1", 0), ("bob", "F2", 0), ("ann", "F3", 2), ("cid", "F1", 2), ("bob", "F1", 5)}
    first = datetime.fromtimestamp(15_000 * DAY, UTC)
    assert {(row.user_id, row.story_id, (row.shown_at - first).days) for row in clicks.itertuples()} == {
        (users[user], stories[story], day) for user, story, day in expected
    }
    assert len(clicks) == len(expected)
    assert (impressions.shown_at == impressions.day).all()
    product_clicks = read(tmp_path / "out", "product_clicks")
    assert [tuple(row) for row in product_clicks[["user_id", "product_id"]].to_numpy()] == [
        (users["ann"], products["K1"]),
        (users["bob"], products["K2"]),
        (users["dan"], products["K1"]),
    ]
    assert (product_clicks.clicked_at == product_clicks.day).all()
    assert summary["left_out"] == {
        "stories_without_title": 1,
        "story_clicks": 1,
        "products_without_title": 0,
        "product_clicks": 0,
    }
    assert summary["files"]["reviews_Food.json.gz"] == {"lines": 7, "broken": 0, "repeated": 1}
    assert summary == json.loads((tmp_path / "out" / MARKER).read_text())


def test_catalogs_have_titles_and_the_mounted_products_that_exist(tmp_path: Path) -> None:
    run(make_source(tmp_path / "source"), tmp_path / "out")
    stories = read(tmp_path / "out", "stories").set_index("story_id")
    products = read(tmp_path / "out", "products").set_index("product_id")
    story, product = ids(tmp_path / "out", "stories"), ids(tmp_path / "out", "products")
    assert stories.title.to_dict() == {
        story["F1"]: "Udi's Granola & Honey",
        story["F2"]: 'The "Best" Tea',
        story["F3"]: "Stash Herbal Tea",  # no title: brand and category
    }
    assert set(product) == {"K1", "K2", "K3"}  # no title; or mounted by nothing that stays
    mounts = {name: list(stories.mounted_product_ids[story[name]]) for name in story}
    assert mounts == {"F1": [product["K2"], product["K1"]], "F2": [product["K3"]], "F3": []}
    assert stories.cover_uri[story["F2"]] == "http://images/f2.jpg"
    assert stories.cover.isna().all()
    assert set(stories.source) == {"other"}
    assert products.category_id[product["K1"]] != products.category_id[product["K2"]]
    for items in (stories, products):
        assert (items.published_at == items.day).all()


def test_nothing_is_shown_clicked_or_mounted_before_it_is_published(tmp_path: Path) -> None:
    run(make_source(tmp_path / "source"), tmp_path / "out", negatives=2)
    stories = read(tmp_path / "out", "stories").set_index("story_id")
    products = read(tmp_path / "out", "products").set_index("product_id")
    impressions, clicks = read(tmp_path / "out", "impressions"), read(tmp_path / "out", "product_clicks")
    assert (stories.published_at.reindex(impressions.story_id).to_numpy() <= impressions.shown_at.to_numpy()).all()
    assert (products.published_at.reindex(clicks.product_id).to_numpy() <= clicks.clicked_at.to_numpy()).all()
    for row in stories.itertuples():
        assert (products.published_at[list(row.mounted_product_ids)] <= row.published_at).all()


def test_non_clicks_belong_to_the_request_of_their_click(tmp_path: Path) -> None:
    summary = run(make_source(tmp_path / "source"), tmp_path / "out", negatives=2)
    impressions = read(tmp_path / "out", "impressions")
    for _, rows in impressions.groupby("request_id"):
        assert rows.clicked.sum() == 1
        assert rows.user_id.nunique() == 1
        assert rows.shown_at.nunique() == 1
        assert rows.story_id.is_unique
    # bob had clicked F2, and F1 is the click: one item is left. ann's second click is against F2 alone
    sizes = impressions.groupby("request_id").size()
    assert sorted(sizes - 1) == [1, 1, 2, 2, 2]
    assert summary["clicks_with_fewer_negatives"] == 2


def test_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    run(source, tmp_path / "a")
    run(source, tmp_path / "b")
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    draws = set()
    for seed in range(8):
        run(source, tmp_path / f"seed{seed}", seed=seed)
        draws.add(tuple(read(tmp_path / f"seed{seed}", "impressions").story_id))
    assert len(draws) > 1


def test_second_import_does_nothing_and_another_one_is_refused(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    summary = run(source, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert run(source, tmp_path / "out") == summary
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    with pytest.raises(DataError, match="other files or settings"):
        run(source, tmp_path / "out", seed=8)
    pack(source / "reviews_Food.json.gz", [strict(line) for line in STORY_REVIEWS[:3]])
    with pytest.raises(DataError, match="other files or settings"):
        run(source, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == times
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="taken by something else"):
        run(source, tmp_path / "mine")
    assert bytes_of(tmp_path / "mine") == {"thesis.txt": b"mine"}


def test_a_broken_line_is_passed_over_and_counted(tmp_path: Path) -> None:
    lines = [strict(line) for line in STORY_REVIEWS]
    source = make_source(tmp_path / "source", reviews_Food=[*lines[:2], '{"asin": "F1", ', *lines[2:], "", "  "])
    summary = run(source, tmp_path / "out")
    assert summary["files"]["reviews_Food.json.gz"] == {"lines": 8, "broken": 1, "repeated": 1}
    assert summary["story_clicks"] == 5


BROKEN_LINES = {
    "words": ("not a line", "neither JSON nor a Python literal"),
    "code": ("{'asin': __import__('os').getcwd()}", "neither JSON nor a Python literal"),
    "list": ('["F1"]', "no object"),
    "no user": (strict({"asin": "F1", "unixReviewTime": 1}), "it has no 'reviewerID'"),
    "no time": (strict({"asin": "F1", "reviewerID": "ann", "unixReviewTime": "2014"}), "whole number of seconds"),
    "late": (strict({"asin": "F1", "reviewerID": "ann", "unixReviewTime": 10**11}), "whole number of seconds"),
}


@pytest.mark.parametrize(("line", "reason"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_too_many_broken_lines_name_the_file_and_the_first_line(tmp_path: Path, line: str, reason: str) -> None:
    good = [strict(line) for line in STORY_REVIEWS]
    source = make_source(tmp_path / "source", reviews_Food=[*good[:3], line, line, *good[3:]])
    with pytest.raises(DataError) as error:
        run(source, tmp_path / "out")
    assert "2 of 9 lines are no review" in str(error.value)
    assert "reviews_Food.json.gz, first line 4: " in str(error.value)
    assert reason in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-12])


def spoil(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[20:40] = bytes(20)
    path.write_bytes(bytes(content))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda source: source.rename(source.with_name("elsewhere")), "no folder"),
    "no reviews": (
        lambda source: (source / "reviews_Food.json.gz").unlink(),
        r"no reviews file of the category 'Food'(.|\n)*reviews_Food.json.gz or reviews_Food_5.json.gz"
        r"(.|\n)*which has meta_Food.json.gz, meta_Kitchen.json.gz, reviews_Kitchen.json.gz",
    ),
    "no meta": (lambda source: (source / "meta_Kitchen.json.gz").unlink(), "no meta file of the category 'Kitchen'"),
    "cut short": (lambda source: cut_short(source / "reviews_Food.json.gz"), "cannot be unpacked"),
    "spoilt": (lambda source: spoil(source / "meta_Food.json.gz"), "cannot be unpacked"),
    "not packed": (lambda source: (source / "meta_Food.json.gz").write_text("{}"), "cannot be unpacked"),
    "empty": (lambda source: pack(source / "reviews_Kitchen.json.gz", []), "the file has no review"),
    "no titles": (
        lambda source: pack(source / "meta_Food.json.gz", [strict({"asin": "F1"}), strict({"asin": "F2"})]),
        "no review of the target category is left",
    ),
    "another category": (
        lambda source: pack(source / "meta_Kitchen.json.gz", [strict({"asin": "X", "title": "Toy"})]),
        "no review of the source category is left",
    ),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_bad_files_end_in_one_clear_message_and_nothing_is_written(
    tmp_path: Path, fault: Callable[[Path], object], message: str
) -> None:
    source = make_source(tmp_path / "source")
    fault(source)
    with pytest.raises(DataError, match=message):
        run(source, tmp_path / "out")
    assert [path for path in tmp_path.iterdir() if "out" in path.name] == []


def test_a_category_is_not_its_own_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both 'Kitchen'"):
        run(make_source(tmp_path / "source"), tmp_path / "out", target="Kitchen")


def clicks_of(*, num_users: int, num_items: int, num_clicks: int, num_days: int) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(3)
    popularity = 1 / np.arange(1, num_items + 1)
    item = rng.choice(num_items, num_clicks, p=popularity / popularity.sum())
    return rng.integers(0, num_users, num_clicks), item, np.sort(rng.integers(0, num_days, num_clicks))


def test_non_clicks_are_distinct_and_new_to_the_user() -> None:
    user, item, day = clicks_of(num_users=60, num_items=300, num_clicks=4_000, num_days=200)
    click, drawn = sample_negatives(user, item, day, per_click=13, rng=np.random.default_rng(5))
    assert (np.bincount(click, minlength=len(user)) == 13).all()
    assert len(set(zip(click, drawn, strict=True))) == len(click)
    later = 0
    clicked: dict[tuple[int, int], int] = {}
    for u, i, d in zip(user, item, day, strict=True):
        clicked.setdefault((u, i), d)
    for c, i in zip(click, drawn, strict=True):
        first = clicked.get((user[c], i))
        assert first is None or first > day[c]
        later += first is not None
    assert later > 0  # what a user clicks only later may be shown before


def test_non_clicks_are_as_popular_as_the_clicks_before() -> None:
    counts = np.array([800, 400, 200, 100, 50])
    history = np.random.default_rng(1).permutation(np.repeat(np.arange(1, 6), counts))
    shown = 6_000  # so many new users click item 0 on the last day
    user = np.concatenate([np.zeros(len(history), int), np.arange(1, shown + 1)])
    item = np.concatenate([history, np.zeros(shown, int)])
    day = np.concatenate([np.sort(np.arange(len(history)) % 400), np.full(shown, 400)])
    click, drawn = sample_negatives(user, item, day, per_click=1, rng=np.random.default_rng(2))
    found = np.bincount(drawn[click >= len(history)], minlength=6)[1:]
    share = counts / counts.sum()
    spread = np.sqrt(shown * share * (1 - share))
    assert (np.abs(found - shown * share) < 4 * spread).all(), found


def test_being_new_does_not_give_a_click_away() -> None:
    rng = np.random.default_rng(4)
    item = np.empty(6_000, int)
    num_items = 0
    for c in range(len(item)):  # every fifth click is of an item that nobody clicked before
        new = c == 0 or rng.random() < 0.2
        item[c] = num_items if new else rng.integers(0, num_items)
        num_items += new
    user, day = rng.integers(0, 2_000, len(item)), np.arange(len(item)) // 20
    click, drawn = sample_negatives(user, item, day, per_click=5, rng=np.random.default_rng(2))
    first_day = np.full(num_items, 10**9)
    np.minimum.at(first_day, item, day)
    inner = (click > 2 * NEWNESS_CLICKS) & (click < len(item) - NEWNESS_CLICKS)
    new_share = (first_day[drawn] >= day[click])[inner].mean()
    assert new_share == pytest.approx((first_day[item] == day)[2 * NEWNESS_CLICKS : -NEWNESS_CLICKS].mean(), abs=0.03)


def test_later_clicks_do_not_show_in_the_non_clicks_of_earlier_days() -> None:
    user, item, day = clicks_of(num_users=60, num_items=300, num_clicks=4_000, num_days=200)
    before = day < 150
    rising = np.where(before, item, 50)  # a rare item, until everybody clicks it
    counts = []
    for items in (item, rising):
        click, drawn = sample_negatives(user, items, day, per_click=5, rng=np.random.default_rng(2))
        counts.append(Counter(drawn[before[click]].tolist())[50])
    assert counts[0] > 20
    assert counts[1] < counts[0] + 4 * np.sqrt(counts[0])


@pytest.mark.skipif(not REAL.is_dir(), reason="the extract of real reviews is not beside the repository")
def test_the_real_extract_imports_whole(tmp_path: Path) -> None:
    summary = import_amazon(
        source=REAL,
        out=tmp_path / "out",
        target="Grocery_and_Gourmet_Food",
        source_category="Home_and_Kitchen",
        negatives_per_click=4,
        seed=7,
    )
    assert summary["users"] == 8_173
    assert summary["story_clicks"] + summary["left_out"]["story_clicks"] == 47_950
    assert summary["product_clicks"] + summary["left_out"]["product_clicks"] == 52_052
    assert summary["pairs"] == 23_066
    assert summary["clicks_with_fewer_negatives"] == 0
    assert summary["impressions"] == 5 * summary["story_clicks"]
    impressions = read(tmp_path / "out", "impressions")
    assert len(impressions) == summary["impressions"]
    assert (impressions.shown_at == impressions.day).all()
    # popularity over the whole time must not tell clicks from non-clicks
    popularity = impressions[impressions.clicked].groupby("story_id").size()
    scored = impressions.assign(score=impressions.story_id.map(popularity))
    recent = scored[scored.day >= pd.Timestamp(date(2014, 3, 1), tz="UTC")]
    up, down = recent.score[recent.clicked].to_numpy(), np.sort(recent.score[~recent.clicked].to_numpy())
    below = np.searchsorted(down, up, side="left") + np.searchsorted(down, up, side="right")
    assert (below / (2 * len(down))).mean() == pytest.approx(0.5, abs=0.05)
