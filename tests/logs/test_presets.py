"""What the presets srd-1 and srd-2 have beyond the laptop's: a marginal of a small marketplace for every field."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

import storyrec.logs.simulate as simulation
from storyrec.features.titles import split_titles
from storyrec.logs.simulate import simulate
from storyrec.logs.simulate.coined import Coined, coin
from storyrec.logs.simulate.dirt import FIRST_FAULTY_ID
from storyrec.logs.simulate.lexicon import load_lexicon
from storyrec.logs.simulate.presets import CALIBRATED_USERS, PRESETS
from storyrec.logs.simulate.wording import spell
from storyrec.logs.simulate.world import draw_catalogs
from storyrec.schema import SOURCES

FIRST_DAY, NUM_DAYS = date(2026, 3, 1), 5
SRD_1 = PRESETS["srd-1"]


@dataclass(frozen=True)
class Market:
    """A marketplace's own rows, faults left out."""

    impressions: pd.DataFrame
    clicks: pd.DataFrame
    stories: pd.DataFrame
    products: pd.DataFrame


def make(folder: Path, *, preset: str = "srd-1", num_users: int, **others: Any) -> Market:
    simulate(
        out_logs=folder / "logs",
        out_truth=folder / "truth",
        num_users=num_users,
        num_days=NUM_DAYS,
        first_day=FIRST_DAY,
        seed=7,
        preset=preset,
        **others,
    )

    def read(table: str, item: str, time: str) -> pd.DataFrame:
        frame = ds.dataset(folder / "logs" / table, partitioning="hive").to_table().to_pandas()
        frame["day"] = pd.to_datetime(frame.pop("dt"), utc=True)
        own = (frame[item] < FIRST_FAULTY_ID) & (frame.get("user_id", 1) > 0)
        return frame[own & (frame[time].dt.floor("D") <= frame.day)]

    key = ["user_id", "story_id", "request_id"]
    return Market(
        read("impressions", "story_id", "shown_at").drop_duplicates(key),
        read("product_clicks", "product_id", "clicked_at"),
        read("stories", "story_id", "published_at"),
        read("products", "product_id", "published_at"),
    )


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Market:
    return make(tmp_path_factory.mktemp("srd-1"), num_users=700)


def num_words(titles: pd.Series) -> np.ndarray:
    return np.diff(split_titles(titles.to_list())[1])


def test_users_are_shown_and_click_as_much_as_in_srd_1(market: Market) -> None:
    last = market.impressions[market.impressions.day == market.impressions.day.max()]
    assert last.groupby("user_id").size().mean() == pytest.approx(4_776_319 / 73_535, rel=0.15)
    assert market.impressions.clicked.mean() == pytest.approx(0.147, abs=0.02)


def test_a_list_has_a_story_once_and_shows_one_after_the_other(market: Market) -> None:
    lists = market.impressions.groupby("request_id")
    assert (lists.user_id.nunique() == 1).all()
    assert not market.impressions.duplicated(["request_id", "story_id"]).any()
    assert (market.impressions.shown_at.dt.floor("D") == market.impressions.day).all()
    long = lists.shown_at.agg(["size", "nunique", "max", "min"]).query("size > 2")
    assert (long["nunique"] == long["size"]).mean() > 0.99
    seconds = (long["max"] - long["min"]).dt.total_seconds() / (long["size"] - 1)
    assert 2 < seconds.mean() < 8


def test_some_stories_are_shown_to_a_user_again(market: Market) -> None:
    again = market.impressions.duplicated(["user_id", "story_id"])
    assert 0.01 < again.mean() < 0.15
    rates = market.impressions.groupby(again).clicked.mean()
    assert rates[True] == pytest.approx(rates[False], abs=0.08)  # nobody clicks for having seen it


def test_evenings_are_busy_and_ready_to_click(market: Market) -> None:
    by_hour = market.impressions.groupby(market.impressions.shown_at.dt.hour).clicked
    assert by_hour.size().loc[19:22].sum() > 1.5 * by_hour.size().loc[7:10].sum()
    assert by_hour.mean().loc[18:22].mean() > by_hour.mean().loc[7:11].mean() + 0.01
    assert market.clicks.clicked_at.dt.floor("D").eq(market.clicks.day).all()


def test_products_are_clicked_a_few_at_a_time(market: Market, tmp_path: Path) -> None:
    def close_share(clicks: pd.DataFrame) -> float:
        ordered = clicks.sort_values(["user_id", "clicked_at"])
        gaps = ordered.groupby("user_id").clicked_at.diff()
        late = ordered.clicked_at - ordered.groupby(["user_id", "day"]).clicked_at.transform("min")
        return float((gaps[late > pd.Timedelta(hours=1)] < pd.Timedelta(seconds=60)).mean())

    assert close_share(market.clicks) > close_share(make(tmp_path, preset="laptop", num_users=150).clicks) + 0.2


def test_a_source_has_its_own_exposure_and_click_rate(market: Market) -> None:
    shown = market.impressions.merge(market.stories.drop_duplicates("story_id")[["story_id", "source"]], on="story_id")
    by_source = shown.groupby("source").clicked.agg(["size", "mean"])
    assert set(by_source.index) == set(SOURCES)
    supply = market.stories.groupby("source").size()
    per_story = by_source["size"] / supply
    assert per_story["ugv"] > 2.3 * per_story["ugi"]
    assert by_source.loc["ugv", "mean"] > by_source.loc["mgi", "mean"] + 0.025


def test_title_lengths_are_those_of_real_shops(market: Market) -> None:
    """Of 512 real titles: products 5 % / median / mean 20 / 29 / 28 words, stories median 13, 95 % 19, 99 % 25."""
    products, stories = num_words(market.products.title), num_words(market.stories.title)
    assert products.mean() == pytest.approx(27, abs=1.5)
    assert np.percentile(products, 2) < np.median(products) - 5 < np.percentile(products, 98) - 5
    assert stories.mean() == pytest.approx(13, abs=1)
    assert np.percentile(stories, 99) > 1.8 * np.median(stories)


def test_new_titles_have_words_that_nobody_wrote_before(market: Market) -> None:
    items = pd.concat([market.stories, market.products])
    is_last = items.day == items.day.max()
    known = set(split_titles(items.title[~is_last].to_list())[0].to_pylist())
    newest = split_titles(items.title[is_last].to_list())[0].to_pylist()
    assert 0.001 < np.mean([word not in known for word in newest]) < 0.02


def test_coined_words_are_distinct_and_late_ones_more_frequent() -> None:
    words = [coin(number) for number in range(30_000)]
    assert len(set(words)) == len(words)
    day = Coined.of_day(0.1, num_titles_by_day=[4_000, 4_000, 4_000], day=2)
    drawn = day.draw(50_000, rng=np.random.default_rng(1))
    assert (drawn >= 0).mean() == pytest.approx(0.1, abs=0.01)
    assert (drawn[drawn >= 0] >= day.num_earlier).mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.max() == day.num_earlier + day.num_new - 1
    earlier = drawn[(drawn >= 0) & (drawn < day.num_earlier)]
    assert (earlier >= day.num_earlier // 2).mean() == pytest.approx(0.75, abs=0.04)


def test_titles_are_chinese_with_a_share_of_brands_in_latin(market: Market) -> None:
    for items, low, high in ((market.products, 0.3, 0.7), (market.stories, 0.08, 0.4)):
        signs = set("".join(items.title))
        assert all("\u4e00" <= sign <= "\u9fff" or sign.isascii() for sign in signs)
        assert low < items.title.str.contains("[a-z]").mean() < high
    brands = load_lexicon().brands
    latin = [spell([brand], language="zh", latin_share=0.3).isascii() for brand in brands]
    assert np.mean(latin) == pytest.approx(0.3, abs=0.08)
    both = [brand for brand, is_latin in zip(brands, latin, strict=True) if is_latin][:2]
    assert spell([*both, "cotton"], language="zh", latin_share=0.3).startswith(f"{both[0]} {both[1]}")
    assert not spell([brands[0], "2pack"], language="zh", latin_share=0.0).isascii()


def test_some_titles_are_bait(market: Market) -> None:
    baits = [spell(bait[:4], language="zh", latin_share=SRD_1.latin_share) for bait in load_lexicon().clickbait]
    is_bait = market.stories.title.str.startswith(tuple(baits))
    assert is_bait.mean() == pytest.approx(SRD_1.clickbait_share, abs=0.02)


def test_items_change_on_a_later_day_and_stay_the_same_item(market: Market) -> None:
    for items, item in ((market.stories, "story_id"), (market.products, "product_id")):
        again = items[items.duplicated(item)]
        assert 0 < len(again) < 0.05 * len(items)
        assert (again.day > pd.Timestamp(FIRST_DAY, tz=UTC)).all()
        first = items.drop_duplicates(item).set_index(item).loc[again[item]]
        assert (first.published_at.to_numpy() == again.published_at.to_numpy()).all()
        assert (first.title.to_numpy() != again.title.to_numpy()).mean() > 0.9
        covers = zip(first.cover, again.cover, strict=True)
        assert not any(np.array_equal(a, b) for a, b in covers if a is not None and b is not None)
    mounted = set(market.stories.mounted_product_ids.explode().dropna())
    assert set(market.products.product_id[market.products.duplicated("product_id")]) <= mounted


def test_covers_are_missing_as_often_as_the_preset_says(market: Market) -> None:
    assert market.products.cover.isna().mean() == pytest.approx(SRD_1.missing_cover_share, abs=0.004)


def test_some_users_never_click_a_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "PRESETS", {"srd-1": replace(SRD_1, productless_share=0.3, base_new_stories=60)})
    found = make(tmp_path, num_users=300)
    shown = set(found.impressions.user_id)
    assert len(shown - set(found.clicks.user_id)) / len(shown) == pytest.approx(0.3, abs=0.1)


@pytest.mark.parametrize(("agreement", "low", "high"), [(0.0, -0.6, 0.6), (1.0, 0.8, 1.0)])
def test_categories_differ_in_popularity_by_domain(agreement: float, low: float, high: float) -> None:
    preset = replace(SRD_1, category_agreement=agreement, category_spread=1.5)
    first_us = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
    correlations = []
    for seed in range(4):
        drawn = draw_catalogs(preset, num_users=100, num_days=1, first_us=first_us, late_category=False, seed=seed)
        weights = [drawn.topics.story_weight_T, drawn.topics.product_weight_T]
        by_category = [np.log(np.bincount(drawn.topics.category_T, weights=weight_T)) for weight_T in weights]
        correlations.append(np.corrcoef(*by_category)[0, 1])
    assert low < np.mean(correlations) < high


def test_the_laptops_preset_has_nothing_of_all_this(tmp_path: Path) -> None:
    found = make(tmp_path, preset="laptop", num_users=100)
    assert not found.impressions.duplicated(["user_id", "story_id"]).any()
    assert found.stories.story_id.is_unique
    assert found.products.product_id.is_unique
    assert (found.products.title.str.split().str.len() == 9).all()
    assert found.impressions.groupby("request_id").shown_at.nunique().eq(1).all()
    assert set(found.impressions.shown_at.dt.hour) <= set(range(6, 24))
    assert timedelta(days=NUM_DAYS) > found.impressions.shown_at.max() - found.impressions.shown_at.min()


def test_a_larger_marketplace_has_a_lower_logit() -> None:
    assert SRD_1.at(CALIBRATED_USERS) == SRD_1
    shifts = np.subtract(SRD_1.at(4 * CALIBRATED_USERS).hour_logit, SRD_1.hour_logit)
    assert shifts == pytest.approx(np.full(24, 2 * SRD_1.size_logit))
    assert SRD_1.size_logit < 0
    laptop = PRESETS["laptop"]
    assert laptop.at(1_000_000) == laptop
