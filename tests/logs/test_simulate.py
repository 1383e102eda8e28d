"""The simulated marketplace: contract, truth, calibration, and what happens when a run is cut off."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import storyrec.logs.simulate as simulation
from storyrec.errors import ConfigError, DataError
from storyrec.features.titles import split_titles
from storyrec.logs.simulate import MARKER, Knobs, simulate
from storyrec.logs.simulate.dirt import FAULT_SHARES, FIRST_FAULTY_ID
from storyrec.logs.simulate.lexicon import load_lexicon
from storyrec.logs.simulate.presets import PRESETS
from storyrec.schema import COVER_WIDTH, SOURCES, TABLES, TRUTH

FIRST_DAY = date(2026, 3, 1)
NUM_DAYS = 5


@dataclass(frozen=True)
class Marketplace:
    """A small marketplace and its own rows, faults left out."""

    logs: Path
    truth: Path
    impressions: pd.DataFrame  # with the true probability
    clicks: pd.DataFrame
    stories: pd.DataFrame
    products: pd.DataFrame


def read(folder: Path, table: str, *, columns: list[str] | None = None) -> pd.DataFrame:
    days = [FIRST_DAY + timedelta(days=day) for day in range(NUM_DAYS)]
    tables = [
        pq.read_table(folder / table / f"dt={day}" / "part-0.parquet", columns=columns, partitioning=None)
        for day in days
    ]
    frames = [one.to_pandas().assign(day=pd.Timestamp(day, tz="UTC")) for one, day in zip(tables, days, strict=True)]
    return pd.concat(frames, ignore_index=True)


def run(
    folder: Path, *, num_users: int = 12, num_days: int = 3, seed: int = 7, knobs: Knobs | None = None, **others: Any
) -> dict[str, bytes]:
    """Simulate into `folder` and return every file's bytes."""
    simulate(
        out_logs=folder / "logs",
        out_truth=folder / "truth",
        num_users=num_users,
        num_days=num_days,
        first_day=FIRST_DAY,
        seed=seed,
        knobs=knobs,
        **others,
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Marketplace:
    folder = tmp_path_factory.mktemp("market")
    run(folder, num_users=1_200, num_days=NUM_DAYS)
    logs, truth = folder / "logs", folder / "truth"
    key = ["user_id", "story_id", "request_id"]
    impressions = read(logs, "impressions").drop_duplicates(key)
    true = read(truth, "impressions")[[*key, "probability"]]
    clicks = read(logs, "product_clicks")
    stories, products = read(logs, "stories"), read(logs, "products")
    inside = clicks.clicked_at.dt.floor("D") == clicks.day
    return Marketplace(
        logs,
        truth,
        impressions.merge(true, on=key, validate="one_to_one"),
        clicks[(clicks.product_id < FIRST_FAULTY_ID) & (clicks.user_id > 0) & inside],
        stories[stories.story_id < FIRST_FAULTY_ID].set_index("story_id"),
        products[products.product_id < FIRST_FAULTY_ID].set_index("product_id"),
    )


def per_user_auc(frame: pd.DataFrame, score: np.ndarray) -> float:
    """Mean over users with both classes; ties count one half."""
    values = []
    for _, rows in frame.assign(score=score).groupby("user_id"):
        up, down = rows.score[rows.clicked].to_numpy(), rows.score[~rows.clicked].to_numpy()
        if len(up) and len(down):
            values.append((np.sign(up[:, None] - down[None, :]) / 2 + 0.5).mean())
    return float(np.mean(values))


def test_every_partition_has_exactly_the_contracts_columns_and_types(market: Marketplace) -> None:
    for table, schema in TABLES.items():
        files = sorted((market.logs / table).rglob("*.parquet"))
        assert [file.parent.name for file in files] == [
            f"dt={FIRST_DAY + timedelta(days=day)}" for day in range(NUM_DAYS)
        ]
        for file in files:
            assert pq.read_schema(file).equals(schema), file
    for file in market.truth.rglob("*.parquet"):
        assert pq.read_schema(file).equals(TRUTH)


def test_the_marketplaces_own_rows_keep_the_contract(market: Marketplace) -> None:
    impressions, stories, products = market.impressions, market.stories, market.products
    assert (impressions.shown_at.dt.floor("D") == impressions.day).all()
    assert not impressions.duplicated(["user_id", "story_id"]).any()  # a story is new to whom it is shown
    assert stories.index.is_unique
    assert products.index.is_unique
    assert (stories.title.str.strip() != "").all()
    assert (products.title.str.strip() != "").all()
    assert set(stories.source) == set(SOURCES)
    for items in (stories, products):
        covers = np.stack(items.cover.dropna().to_list())
        assert covers.shape[1] == COVER_WIDTH
        assert np.abs(np.linalg.norm(covers.astype(np.float64), axis=1) - 1).max() < 1e-3
        assert (covers.astype(np.float16).astype(np.float32) == covers).all()
        assert 0 < items.cover.isna().mean() < 0.03


def test_nothing_is_seen_clicked_or_mounted_before_it_is_published(market: Marketplace) -> None:
    shown = market.impressions.join(market.stories[["published_at"]], on="story_id")
    assert (shown.published_at <= shown.shown_at).all()  # null, an unknown story, would be False
    clicked = market.clicks.join(market.products[["published_at"]], on="product_id")
    assert (clicked.published_at <= clicked.clicked_at).all()
    pairs = market.stories.explode("mounted_product_ids").dropna(subset="mounted_product_ids")
    mounted = pairs.join(market.products[["published_at"]], on="mounted_product_ids", rsuffix="_product")
    assert (mounted.published_at_product <= mounted.published_at).all()
    for items in (market.stories, market.products):
        assert (items.published_at.dt.floor("D") <= items.day).all()


def test_truth_is_beside_the_logs_and_nowhere_in_them(market: Marketplace) -> None:
    assert "probability" not in {name for schema in TABLES.values() for name in schema.names}
    true = read(market.truth, "impressions")
    assert len(true) == len(market.impressions)  # joined one to one in the fixture
    assert market.impressions.probability.between(0.02, 0.98).all()
    # clicks are drawn with that very probability, in every range of it
    tenth = pd.qcut(market.impressions.probability, 10)
    by_tenth = market.impressions.groupby(tenth, observed=True)
    expected, spread = by_tenth.probability.sum(), by_tenth.probability.apply(lambda p: np.sqrt((p * (1 - p)).sum()))
    assert (np.abs(by_tenth.clicked.sum() - expected) < 4 * spread).all()


def test_oracle_knows_far_more_than_popularity(market: Marketplace) -> None:
    last = market.impressions.day.max()
    test = market.impressions[market.impressions.day == last]
    before = market.impressions[market.impressions.day < last]
    popularity = test.story_id.map(before.groupby("story_id").clicked.sum()).fillna(0).to_numpy()
    assert per_user_auc(test, test.probability.to_numpy()) == pytest.approx(0.778, abs=0.03)
    assert per_user_auc(test, popularity) < 0.56


def test_calibration_is_near_the_papers_tables(market: Marketplace) -> None:
    impressions, clicks = market.impressions, market.clicks
    assert impressions.clicked.mean() == pytest.approx(0.146, abs=0.025)
    by_visit = impressions.groupby(["user_id", "day"])
    assert by_visit.size().mean() == pytest.approx(68.6, rel=0.12)
    assert 2 * by_visit.clicked.sum().mean() == pytest.approx(19.9, rel=0.25)
    newest = impressions[impressions.day == impressions.day.max()]
    created = market.stories.published_at.dt.floor("D").reindex(newest.story_id).to_numpy()
    assert (created == newest.day.to_numpy()).mean() == pytest.approx(0.36, abs=0.08)
    # the sequence that an impression of the last day sees: nearly always full of clicks of the last 24 hours
    first_shown = newest.groupby("user_id").shown_at.min()
    joined = clicks.join(first_shown, on="user_id", how="inner")
    recent = joined[(joined.clicked_at < joined.shown_at)].groupby("user_id").tail(20)
    assert ((recent.shown_at - recent.clicked_at) < pd.Timedelta(hours=24)).mean() > 0.9


def title_shares(stories: pd.DataFrame, titles: pd.Series, *, split: Callable[[str], list[str]]) -> np.ndarray:
    """Pairs in the five bins of Table II. Paper: Eq. 1."""
    similarities = []
    for title, mounted in zip(stories.title, stories.mounted_product_ids, strict=True):
        for product in mounted:
            story_words, product_words = set(split(title)), set(split(titles[product]))
            similarities.append(len(story_words & product_words) / min(len(story_words), len(product_words)))
    bins = np.floor(np.array(similarities) * 5 + 1e-9).clip(max=4).astype(int)
    return np.bincount(bins, minlength=5) / len(bins)


def test_title_similarity_of_pairs_is_near_table_ii(market: Marketplace) -> None:
    shares = title_shares(market.stories, market.products.title, split=str.split)
    np.testing.assert_allclose(shares, [0.418, 0.184, 0.110, 0.110, 0.178], atol=0.03)


def test_srd_2_has_its_own_title_similarities_in_chinese_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "PRESETS", {"srd-2": replace(PRESETS["srd-2"], base_new_stories=400)})
    run(tmp_path, num_days=NUM_DAYS, preset="srd-2")
    stories = read(tmp_path / "logs", "stories").query(f"story_id < {FIRST_FAULTY_ID}").drop_duplicates("story_id")
    products = read(tmp_path / "logs", "products").drop_duplicates("product_id").set_index("product_id")

    titles = [*stories.title.dropna().unique(), *products.title.dropna().unique()]
    words, starts = split_titles(titles)
    split = np.split(words.to_numpy(zero_copy_only=False), starts[1:-1])
    words_of = {title: list(part) for title, part in zip(titles, split, strict=True)}
    shares = title_shares(stories, products.title, split=words_of.__getitem__)
    np.testing.assert_allclose(shares, [0.299, 0.185, 0.128, 0.145, 0.243], atol=0.03)


def test_the_two_domains_share_no_word_of_their_own() -> None:
    lexicon = load_lexicon()
    concepts = [*lexicon.colours, *lexicon.uses, *(pair for pairs in lexicon.attributes for pair in pairs)]
    keywords = {product for product, _ in concepts} | {word for nouns, _ in lexicon.nouns for word in nouns}
    keywords |= set(lexicon.brands) | set(lexicon.sizes)
    told = {story for _, story in concepts} | {word for _, nouns in lexicon.nouns for word in nouns}
    for style in lexicon.styles:
        told |= set(style.adjectives)
        for phrases in (style.openers2, style.openers3, style.closers3):
            told |= {word for phrase in phrases for word in phrase}
    assert not keywords & (told | {word for title in lexicon.clickbait for word in title})
    assert len(keywords) > 1_000
    assert len(told) > 1_000


def test_faults_are_few_added_rows_as_the_marker_counts_them(market: Marketplace) -> None:
    marker = json.loads((market.logs / MARKER).read_text())
    impressions, clicks = read(market.logs, "impressions"), read(market.logs, "product_clicks")
    stories = read(market.logs, "stories")
    found = {
        "duplicate": impressions.duplicated(["user_id", "story_id", "request_id"]).sum(),
        "unknown_item": (impressions.story_id >= FIRST_FAULTY_ID).sum(),
        "outside_day": (impressions.shown_at.dt.floor("D") != impressions.day).sum(),
        "no_user": (impressions.user_id < 1).sum(),
    }
    assert found == marker["faults"]["impressions"]
    assert len(impressions) == len(market.impressions) + sum(found.values())
    assert len(clicks) == len(market.clicks) + sum(marker["faults"]["product_clicks"].values())
    assert (stories.title.str.strip() == "").sum() == marker["faults"]["stories"]["blank_title"]
    products = read(market.logs, "products")
    late = products.published_at.dt.floor("D") > products.day
    assert late.sum() == marker["faults"]["products"]["outside_day"] > 0
    for table, faults in marker["faults"].items():
        assert set(faults) == set(FAULT_SHARES[table])
        assert sum(faults.values()) < 0.005 * marker["rows"][table]
    assert sum(found.values()) > 0


def test_same_settings_give_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again = run(tmp_path / "a"), run(tmp_path / "b")
    assert first == again
    other = run(tmp_path / "c", seed=8)
    assert all(first[name] != other[name] for name in first if name.startswith("logs/impressions"))


def test_second_run_does_nothing_and_other_settings_are_refused(tmp_path: Path) -> None:
    before = run(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not simulate(
        out_logs=tmp_path / "logs",
        out_truth=tmp_path / "truth",
        num_users=12,
        num_days=3,
        first_day=FIRST_DAY,
        seed=7,
    )
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(DataError, match=r"other settings: seed = 7(.|\n)*expected: seed = 9"):
        run(tmp_path, seed=9)
    assert before == {str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="taken by something else"):
        run(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["thesis.txt", "truth"]


COMMAND = """
import sys
from datetime import date
from pathlib import Path
from storyrec.errors import StoryrecError
from storyrec.logs.simulate import simulate
try:
    places = {"out_logs": Path("logs"), "out_truth": Path("truth")}
    simulate(**places, num_users=12, num_days=3, first_day=date(2026, 3, 1), seed=7)
except StoryrecError as error:
    print(error)
    sys.exit(2)
"""


def test_a_killed_run_leaves_no_logs_and_is_redone_whole(tmp_path: Path) -> None:
    expected = run(tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    process = subprocess.Popen([sys.executable, "-c", COMMAND], cwd=cut)
    while not list(cut.glob(".logs.*/stories/*/*.parquet")) and process.poll() is None:
        pass
    process.kill()
    assert process.wait() == -9
    assert not (cut / "logs").exists()
    assert list(cut.glob(".logs.*"))
    assert run(cut) == expected  # and the leftovers are gone


def test_a_disk_that_refuses_ends_in_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-c", COMMAND], cwd=tmp_path, preexec_fn=small_files_only, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_any_reason_to_click_even_the_oracle_knows_nothing(tmp_path: Path) -> None:
    nothing = Knobs(interest=0, intent=0, taste=0, source=0, quality=0)
    run(tmp_path, num_users=40, knobs=nothing)
    true = pa.concat_tables(
        [pq.read_table(file, partitioning=None) for file in (tmp_path / "truth").rglob("*.parquet")]
    ).to_pandas()
    assert (true.groupby("user_id").probability.nunique() == 1).all()


def test_parts_of_users_and_items_are_one_marketplace_with_any_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "USERS_PER_PART", 40)
    monkeypatch.setattr(simulation, "ITEMS_PER_PART", 700)
    one = run(tmp_path / "one", num_users=100, num_processes=1)
    assert one == run(tmp_path / "two", num_users=100, num_processes=2)

    def table(name: str) -> pd.DataFrame:
        files = sorted((tmp_path / "one" / "logs" / name).rglob("*.parquet"))
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pandas()

    assert len(list((tmp_path / "one" / "logs" / "impressions" / f"dt={FIRST_DAY}").iterdir())) == 3
    assert len(list((tmp_path / "one" / "logs" / "products" / f"dt={FIRST_DAY}").iterdir())) == 2
    impressions = table("impressions")
    assert set(impressions.user_id) - {0} <= set(range(1, 101))
    assert {user // 40 for user in impressions.user_id - 1 if user >= 0} == {0, 1, 2}
    assert (impressions.groupby("request_id").user_id.nunique() == 1).all()
    for name in ("products", "stories"):
        ids = table(name)[f"{name[:-1] if name == 'products' else 'story'}_id"]
        own = ids[ids < FIRST_FAULTY_ID]
        assert sorted(own) == list(range(1, len(own) + 1))
    marker = json.loads((tmp_path / "one" / "logs" / MARKER).read_text())
    assert marker["rows"] == {name: len(table(name)) for name in marker["rows"]}


def test_a_choice_takes_at_most_one_story_of_a_list_with_the_probability_that_is_written(tmp_path: Path) -> None:
    run(tmp_path, num_users=400, num_days=4, knobs=Knobs(click_model="choice"))
    key = ["user_id", "story_id", "request_id"]

    def days(folder: str) -> pd.DataFrame:
        files = sorted((tmp_path / folder / "impressions").rglob("*.parquet"))
        return pa.concat_tables([pq.read_table(file, partitioning=None) for file in files]).to_pandas()

    shown = days("truth").merge(days("logs").drop_duplicates(key)[[*key, "clicked"]], on=key, validate="one_to_one")
    by_list = shown.groupby("request_id")
    assert set(by_list.clicked.sum()) == {0, 1}
    assert by_list.probability.sum().max() < 1
    assert shown.clicked.mean() == pytest.approx(0.146, abs=0.03)
    tenth = pd.qcut(shown.probability, 10)
    expected = shown.groupby(tenth, observed=True).probability.sum()
    found = shown.groupby(tenth, observed=True).clicked.sum()
    assert (np.abs(found - expected) < 4 * np.sqrt(expected)).all()
    last = shown[shown.shown_at.dt.floor("D") == shown.shown_at.max().floor("D")]
    assert per_user_auc(last, last.probability.to_numpy()) == pytest.approx(0.778, abs=0.03)


def test_an_unknown_preset_or_scenario_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no simulate.preset 'srd-3'(.|\n)*laptop, srd-1, srd-2"):
        run(tmp_path, preset="srd-3")
    with pytest.raises(ConfigError, match=r"no simulate.scenario 'flood'(.|\n)*bots"):
        run(tmp_path, scenario="flood")
    assert list(tmp_path.iterdir()) == []
