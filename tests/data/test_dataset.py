"""The step build_dataset on a tiny marketplace: what it reads, leaves out, writes and refuses."""

import json
import shutil
from dataclasses import fields
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import FIRST_DAY, planted_config, planted_dataset, write_partition, write_report, write_validated
from s3_server import S3Server
from storyrec.data import parts
from storyrec.data.build import build_dataset
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError, MissingPartition, SchemaMismatch
from storyrec.features.sequences import DAY_US, midnight_us
from storyrec.features.titles import UnknownWords

LAST_DAY = FIRST_DAY + timedelta(days=4)
HOLDOUT_US = midnight_us(LAST_DAY)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("planted")
    assert write_validated(root, seed=5, num_users=40) == LAST_DAY
    return root


@pytest.fixture
def root(written: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(written, tmp_path / "work"))


@pytest.fixture(scope="module")
def dataset(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return build_dataset(planted_config(written), day=LAST_DAY, out=tmp_path_factory.mktemp("out") / "dataset")


def test_no_sequence_holds_a_click_at_or_after_its_impression_or_before_its_history(dataset: Dataset) -> None:
    require_sequences_inside(dataset)
    assert (dataset.holdout.product_stop_B - dataset.holdout.product_start_B).max() == dataset.sequence_length


def test_train_is_before_validation_is_before_holdout(dataset: Dataset) -> None:
    assert dataset.train.shown_us_B.max() < dataset.validation.shown_us_B.min()
    assert dataset.validation.shown_us_B.max() < HOLDOUT_US <= dataset.holdout.shown_us_B.min()
    assert len(dataset.holdout) == 40 * 12
    assert dataset.train.clicked_B.mean() == 0.5


def test_clicks_reach_back_to_the_first_day_and_up_to_the_last(dataset: Dataset) -> None:
    first, last = midnight_us(FIRST_DAY), midnight_us(LAST_DAY + timedelta(days=1))
    for log in (dataset.story_clicks, dataset.product_clicks):
        assert first <= log.clicked_us_C.min() < first + DAY_US
        assert HOLDOUT_US <= log.clicked_us_C.max() < last
    assert (dataset.stories.item_ids_N[dataset.story_click_rows_C] == dataset.story_clicks.item_ids_C).all()
    assert (dataset.products.item_ids_N[dataset.product_click_rows_C] == dataset.product_clicks.item_ids_C).all()


def test_a_days_of_history_setting_shortens_the_click_log_and_the_sequences(written: Path, tmp_path: Path) -> None:
    config = planted_config(written, history_days=1, training_days=2)
    dataset = build_dataset(config, day=LAST_DAY, out=tmp_path / "dataset")
    start = midnight_us(LAST_DAY - timedelta(days=3))
    assert start <= dataset.story_clicks.clicked_us_C.min() < start + DAY_US
    assert start <= dataset.product_clicks.clicked_us_C.min() < start + DAY_US
    require_sequences_inside(dataset)


def require_sequences_inside(dataset: Dataset) -> None:
    """No sequence holds a click at or after its impression, or before its history."""
    for instances in (dataset.train, dataset.validation, dataset.holdout):
        since_us = (instances.shown_us_B // DAY_US - dataset.windows.history_days) * DAY_US
        for start, stop, log in (
            (instances.story_start_B, instances.story_stop_B, dataset.story_clicks),
            (instances.product_start_B, instances.product_stop_B, dataset.product_clicks),
        ):
            some = stop > start
            assert some.any()
            assert (log.clicked_us_C[stop[some] - 1] < instances.shown_us_B[some]).all()
            assert (log.clicked_us_C[start[some]] >= since_us[some]).all()
            assert (log.user_ids_C[start[some]] == instances.user_ids_B[some]).all()
            assert (stop - start).max() <= dataset.sequence_length


def test_the_catalog_holds_the_items_of_the_held_out_day_and_pairs_do_not(dataset: Dataset) -> None:
    assert len(dataset.stories) == len(dataset.products) == 5 * 40 + 1
    assert len(dataset.pairs_M2) == 4 * 40
    assert dataset.stories.published_us_N[dataset.pairs_M2[:, 0]].max() < HOLDOUT_US
    assert dataset.stories.published_us_N.max() >= HOLDOUT_US
    story_ids, product_ids = dataset.stories.item_ids_N, dataset.products.item_ids_N
    assert (story_ids[dataset.pairs_M2[:, 0]] + 499_000 == product_ids[dataset.pairs_M2[:, 1]]).all()


def test_pairs_of_the_held_out_stories_stand_apart(dataset: Dataset) -> None:
    """Each story mounts one product, which came out with it."""
    is_new_N = dataset.stories.published_us_N >= HOLDOUT_US
    assert dataset.holdout_pairs_M2[:, 0].tolist() == np.flatnonzero(is_new_N).tolist()
    assert is_new_N.sum() == 40
    story_ids, product_ids = dataset.stories.item_ids_N, dataset.products.item_ids_N
    mounted = product_ids[dataset.holdout_pairs_M2[:, 1]]
    assert (story_ids[dataset.holdout_pairs_M2[:, 0]] + 499_000 == mounted).all()
    assert not set(dataset.holdout_pairs_M2[:, 0]) & set(dataset.pairs_M2[:, 0])


def test_an_old_storys_new_mount_is_in_no_pair(root: Path, tmp_path: Path) -> None:
    changed = story(1_000, FIRST_DAY, mounted_product_ids=[500_007])
    new = story(9_000, LAST_DAY, mounted_product_ids=[500_007, 500_170, 77])
    write_partition(root, "stories", LAST_DAY, [changed, new])
    dataset = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset")
    rows = dataset.stories.rows([9_000, 9_000]), dataset.products.rows([500_007, 500_170])
    assert dataset.holdout_pairs_M2.tolist() == np.stack(rows, 1).tolist()
    own = dataset.pairs_M2[dataset.pairs_M2[:, 0] == dataset.stories.rows(1_000)]
    assert dataset.products.item_ids_N[own[:, 1]].tolist() == [500_000]


def test_a_story_has_the_category_of_the_product_that_it_mounts(dataset: Dataset) -> None:
    mounted_ids = dataset.stories.item_ids_N[1:] + 499_000
    expected = dataset.products.category_ids_N[dataset.products.rows(mounted_ids)]
    assert len(set(expected)) == 4
    assert dataset.stories.category_ids_N.tolist() == [0, *expected]


def test_a_user_of_the_training_instances_has_a_row_of_her_own(dataset: Dataset) -> None:
    known = sorted(set(dataset.train.user_ids_B.tolist()))
    asked = np.array([known[3], known[0], -5, known[-1], known[-1] + 1, known[3]])
    assert dataset.user_rows(asked).tolist() == [4, 1, 0, len(known), 0, 4]
    assert dataset.training_users_U.tolist() == known


def story(story_id: int, day: date, **columns: Any) -> dict[str, Any]:
    row = {"story_id": story_id, "title": "x", "source": "ugv", "mounted_product_ids": []}
    return row | {"published_at": midnight_us(day)} | columns


def test_words_and_mounts_of_the_held_out_day_are_not_learned(root: Path, tmp_path: Path) -> None:
    before = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "before")
    changed = story(1_000, FIRST_DAY, title="surprise shareda", mounted_product_ids=[500_007])
    write_partition(root, "stories", LAST_DAY, [changed, story(9_000, LAST_DAY, title="surprise")])
    after = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "after")
    assert after.stories.titles[int(after.stories.rows(1_000))] == "surprise shareda", "the newest row wins"
    assert "surprise" not in after.vocabulary.words
    assert after.vocabulary == before.vocabulary
    assert after.unknown_words["stories"] == UnknownWords(num_titles=1, num_words=1, num_unknown=1)
    assert Dataset.load(tmp_path / "after").unknown_words == after.unknown_words
    assert after.pairs_M2.tolist() == before.pairs_M2.tolist()


def test_impressions_of_unknown_stories_are_left_out(root: Path, tmp_path: Path) -> None:
    rows = [
        {"user_id": 1, "story_id": story_id, "shown_at": HOLDOUT_US + 5, "clicked": story_id == 1_000}
        for story_id in (1_000, 1_001, 77)
    ]
    write_partition(root, "impressions", LAST_DAY, rows)
    dataset = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset")
    assert dataset.stories.item_ids_N[dataset.holdout.story_rows_B].tolist() == [1_000, 1_001]


def assert_same(left: Any, right: Any) -> None:
    if isinstance(left, np.ndarray):
        assert left.dtype == right.dtype
        assert np.array_equal(left, right)
    elif hasattr(left, "__dataclass_fields__"):
        for field in fields(left):
            assert_same(getattr(left, field.name), getattr(right, field.name))
    else:
        assert left == right


def test_load_returns_what_was_saved(dataset: Dataset, tmp_path: Path) -> None:
    dataset.save(tmp_path / "dataset")
    assert_same(dataset, Dataset.load(tmp_path / "dataset"))
    summary = json.loads((tmp_path / "dataset/dataset.json").read_text())
    assert summary["counts"]["holdout"] == 480
    assert summary["windows"]["reasons"][0].startswith("history_days = 7:")


def test_digest_is_of_the_content(root: Path, tmp_path: Path) -> None:
    def digest(**windows: Any) -> str:
        return build_dataset(planted_config(root, **windows), day=LAST_DAY, out=tmp_path / "dataset").digest

    first = digest()
    assert first == digest()
    assert first == digest(holdout_days=1), "the same number is the same, whoever chose it"
    assert first != digest(block_hours=24)
    write_partition(root, "products", LAST_DAY, [])
    assert first != digest()


def test_the_order_of_rows_in_a_file_does_not_matter(root: Path, tmp_path: Path) -> None:
    first = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "first")
    for day in range(5):
        path = root / f"validated/impressions/dt={FIRST_DAY + timedelta(days=day)}/part-0.parquet"
        rows = pq.read_table(path, partitioning=None)
        write_partition(root, "impressions", FIRST_DAY + timedelta(days=day), rows.take(np.arange(len(rows))[::-1]))
    assert build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "second").digest == first.digest


def test_every_impression_is_an_instance_or_left_out_for_a_reason(root: Path, tmp_path: Path) -> None:
    path = root / f"validated/impressions/dt={LAST_DAY}/part-0.parquet"
    rows = pq.read_table(path, partitioning=None)
    stranger = rows.slice(0, 3).set_column(1, "story_id", pa.array([7, 7, 8], pa.int64()))
    write_partition(root, "impressions", LAST_DAY, pa.concat_tables([rows, stranger]))
    dataset = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset")
    num_days = dataset.windows.training_days + dataset.windows.holdout_days
    parts = (dataset.train, dataset.validation, dataset.holdout)
    assert sum(map(len, parts)) + sum(dataset.left_out.values()) == num_days * 40 * 12 + 3
    assert dataset.left_out["unknown story"] == 3
    clicked = dataset.train.clicked_B.sum()
    assert dataset.left_out["non-click that was not drawn"] > 0
    assert len(dataset.train) == 2 * clicked


def test_a_share_of_the_users_is_as_if_the_others_had_done_nothing(root: Path, tmp_path: Path) -> None:
    every = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "every")
    sample = build_dataset(planted_config(root, user_share=0.5), day=LAST_DAY, out=tmp_path / "sample")
    users = set(sample.holdout.user_ids_B.tolist())
    assert 10 < len(users) < 30
    num_days = every.windows.training_days + every.windows.holdout_days
    assert sample.left_out["user outside the sample"] == (40 - len(users)) * 12 * num_days
    for table in ("impressions", "product_clicks"):
        for day in range(5):
            rows = pq.read_table(root / f"validated/{table}/dt={FIRST_DAY + timedelta(days=day)}", partitioning=None)
            theirs = rows.filter(pa.array([user in users for user in rows["user_id"].to_pylist()]))
            write_partition(root, table, FIRST_DAY + timedelta(days=day), theirs)
    alone = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "alone")
    assert alone.digest == sample.digest
    assert alone.left_out["user outside the sample"] == 0


def test_an_unchanged_dataset_stays_and_a_changed_one_is_made_again(root: Path, tmp_path: Path) -> None:
    def build(**windows: Any) -> int:
        build_dataset(planted_config(root, **windows), day=LAST_DAY, out=tmp_path / "dataset")
        return (tmp_path / "dataset/dataset.json").stat().st_ino

    first = build()
    assert build() == first
    assert build(block_hours=24) != first
    second = build()
    path = root / f"validated/product_clicks/dt={FIRST_DAY}/part-0.parquet"
    write_partition(root, "product_clicks", FIRST_DAY, pq.read_table(path, partitioning=None).slice(1))
    assert build() != second


def test_several_files_of_a_day_make_the_same_dataset_as_one(dataset: Dataset, root: Path, tmp_path: Path) -> None:
    for table in ("stories", "products", "impressions", "product_clicks"):
        for day in range(5):
            folder = root / f"validated/{table}/dt={FIRST_DAY + timedelta(days=day)}"
            rows = pq.read_table(folder / "part-0.parquet", partitioning=None)
            for number in range(3):
                pq.write_table(rows.slice(number * 17, 17 if number < 2 else None), folder / f"part-{number}.parquet")
    assert build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset").digest == dataset.digest


@pytest.mark.parametrize("small_month_bytes", [0, 2**30])
def test_months_and_days_make_the_same_dataset(
    dataset: Dataset, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_month_bytes: int
) -> None:
    monkeypatch.setattr(parts, "SMALL_MONTH_BYTES", small_month_bytes)
    assert build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset").digest == dataset.digest
    periods = {path.name.split(".")[0] for path in (root / "parts/stories").iterdir()}
    assert len(periods) == (5 if small_month_bytes == 0 else 1)


def test_instances_for_another_models_history(dataset: Dataset) -> None:
    same = dataset.instances_for(dataset.holdout, history_days=dataset.windows.history_days)
    assert_same(same, dataset.holdout)
    short = dataset.instances_for(dataset.holdout, history_days=1)
    since_us = HOLDOUT_US - DAY_US
    some = short.product_stop_B > short.product_start_B
    assert (dataset.product_clicks.clicked_us_C[short.product_start_B[some]] >= since_us).all()
    assert (short.product_stop_B[some] == dataset.holdout.product_stop_B[some]).all()
    assert (short.product_start_B > dataset.holdout.product_start_B)[some].any()


def test_logs_on_s3_make_the_same_dataset(dataset: Dataset, written: Path, s3: S3Server, tmp_path: Path) -> None:
    storage = s3.new_storage("work")
    for path in written.rglob("*"):
        if path.is_file():
            storage.write(path.relative_to(written).as_posix(), path.read_bytes())
    config = planted_config(written)
    locations = config.locations.model_copy(update={"work": storage.url, "s3_endpoint": s3.endpoint})
    on_s3 = config.model_copy(update={"locations": locations})
    assert build_dataset(on_s3, day=LAST_DAY, out=tmp_path / "dataset").digest == dataset.digest


def test_a_later_day_changes_nothing(root: Path, tmp_path: Path) -> None:
    earlier = LAST_DAY - timedelta(days=1)
    with_later_day = build_dataset(planted_config(root), day=earlier, out=tmp_path / "first").digest
    for table in ("stories", "products", "impressions", "product_clicks"):
        shutil.rmtree(root / f"validated/{table}/dt={LAST_DAY}")
    assert build_dataset(planted_config(root), day=earlier, out=tmp_path / "second").digest == with_later_day


def test_days_without_a_report_do_not_count(root: Path, tmp_path: Path) -> None:
    third = FIRST_DAY + timedelta(days=2)
    (root / f"reports/dt={third}.json").unlink()
    half_written = build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "first")
    assert not ((half_written.product_clicks.clicked_us_C // DAY_US) == midnight_us(third) // DAY_US).any()
    assert not ((half_written.train.shown_us_B // DAY_US) == midnight_us(third) // DAY_US).any()
    assert len(half_written.stories) == 4 * 40 + 1


@pytest.mark.parametrize("fault", ["no report", "stopped", "no impressions", "no such day"])
def test_a_day_that_is_not_there_is_missing(root: Path, tmp_path: Path, fault: str) -> None:
    day = LAST_DAY
    if fault == "no report":
        (root / f"reports/dt={LAST_DAY}.json").unlink()
    elif fault == "stopped":
        write_report(root, LAST_DAY, status="stopped")
    elif fault == "no impressions":
        shutil.rmtree(root / f"validated/impressions/dt={LAST_DAY}")
    else:
        day = LAST_DAY + timedelta(days=30)
    with pytest.raises(MissingPartition, match=f"day {day}"):
        build_dataset(planted_config(root), day=day, out=tmp_path / "out/dataset")
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_a_corrupt_partition_is_named(root: Path, tmp_path: Path) -> None:
    path = root / f"validated/products/dt={FIRST_DAY}/part-0.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"products/dt={FIRST_DAY}"):
        build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset")


def test_a_missing_column_is_a_schema_mismatch(root: Path, tmp_path: Path) -> None:
    path = root / f"validated/impressions/dt={LAST_DAY}/part-0.parquet"
    write_partition(root, "impressions", LAST_DAY, pq.read_table(path, partitioning=None).drop_columns(["clicked"]))
    with pytest.raises(SchemaMismatch, match="clicked"):
        build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset")


def test_days_without_clicks_cannot_train(tmp_path: Path) -> None:
    write_validated(tmp_path, num_users=5, num_days=3)
    for day in (FIRST_DAY, FIRST_DAY + timedelta(days=1)):
        start = midnight_us(day)
        rows = [{"user_id": 1, "story_id": 1_000, "shown_at": start + n, "clicked": False} for n in range(20)]
        write_partition(tmp_path, "impressions", day, rows)
    with pytest.raises(DataError, match="hold 0 clicks"):
        build_dataset(planted_config(tmp_path), day=FIRST_DAY + timedelta(days=2), out=tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()


def test_a_catalog_without_titles_is_refused(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "validated/products")
    with pytest.raises(DataError, match="products has 0 items"):
        build_dataset(planted_config(root), day=LAST_DAY, out=tmp_path / "dataset")


def test_load_refuses_what_is_no_dataset(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="run build_dataset again"):
        Dataset.load(tmp_path / "nothing")
    dataset.save(tmp_path / "dataset")
    (tmp_path / "dataset/holdout.shown_us_B.npy").write_bytes(b"")
    with pytest.raises(DataError, match="no dataset that can be read"):
        Dataset.load(tmp_path / "dataset")


def test_planted_structure_is_there_and_permuting_the_labels_removes_it() -> None:
    def lift(dataset: Dataset) -> float:
        """How much likelier a click is where the cover lies near the covers of the products clicked before."""
        covers = {name: getattr(dataset, name).visual_raw_NV.astype(np.float32) for name in ("stories", "products")}
        scores = []
        for row, start, stop in zip(
            dataset.holdout.story_rows_B, dataset.holdout.product_start_B, dataset.holdout.product_stop_B, strict=True
        ):
            profile = covers["products"][dataset.product_click_rows_C[start:stop]].mean(axis=0)
            scores.append(profile @ covers["stories"][row])
        near = np.array(scores) > np.quantile(scores, 0.75)
        return float(dataset.holdout.clicked_B[near].mean() / dataset.holdout.clicked_B[~near].mean())

    assert lift(planted_dataset(1)) > 3
    assert 0.7 < lift(planted_dataset(1, permuted=True)) < 1.4


def test_logs_with_days_only_see_no_click_of_the_same_day() -> None:
    dataset = planted_dataset(2, num_users=40, day_resolution=True, covers=False)
    assert dataset.windows.history_days == 5
    assert not dataset.stories.visual_raw_NV.any()
    for log, stop_B in (
        (dataset.story_clicks, dataset.holdout.story_stop_B),
        (dataset.product_clicks, dataset.holdout.product_stop_B),
    ):
        assert (log.clicked_us_C[stop_B[stop_B > 0] - 1] < HOLDOUT_US).all()


def test_impressions_at_midnight_are_in_the_part_of_their_day() -> None:
    dataset = planted_dataset(2, num_users=40, day_resolution=True, covers=False)
    assert set(dataset.holdout.shown_us_B.tolist()) == {HOLDOUT_US}
    assert len(dataset.holdout) == 40 * 12
    num_learned = len(dataset.train) + len(dataset.validation) + dataset.left_out["non-click that was not drawn"]
    assert num_learned == dataset.windows.training_days * 40 * 12
    assert dataset.train.shown_us_B.max() < dataset.validation.shown_us_B.max() < HOLDOUT_US
