"""From a data root to the dataset that experiments run on, once and of one kind of logs."""

import shutil
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from experiment_world import contents, simulate_marketplace

from storyrec.config import Config, update_config
from storyrec.data.dataset import Dataset
from storyrec.errors import ConfigError, DataError, MissingPartition, SchemaMismatch
from storyrec.experiments.prepare import DATA, DATASET, check_covers, prepare, prepared_dataset


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulate_marketplace(tmp_path_factory.mktemp("market"))


@pytest.fixture(scope="module")
def root(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    prepare(Config(), data=logs, root=root)
    return root


def test_the_dataset_is_of_the_last_day_and_made_once(logs: Path, root: Path) -> None:
    before = contents(root)
    prepared = prepare(Config(), data=logs, root=root)
    assert contents(root) == before
    assert prepared.dataset == root / DATASET
    data = prepared_dataset(root)
    assert data.day == date(2026, 3, 5)
    assert data.digest == Dataset.load(prepared.dataset).digest
    assert len(data.holdout) > 1_000
    assert set(data.holdout.shown_us_B // 86_400_000_000) == {(date(2026, 3, 5) - date(1970, 1, 1)).days}


def test_truth_is_found_beside_the_logs(logs: Path, root: Path) -> None:
    locations = prepare(Config(), data=logs, root=root).config.locations
    assert locations.truth == str(logs.parent / "truth")
    assert (locations.logs, locations.work) == (str(logs), str(root / "work"))


def test_other_logs_are_refused(logs: Path, root: Path, tmp_path: Path) -> None:
    before = contents(root)
    shutil.copytree(logs, tmp_path / "logs")
    with pytest.raises(ConfigError) as caught:
        prepare(Config(), data=tmp_path / "logs", root=root)
    assert caught.value.found == (
        f"the folder holds experiments on other data: logs was {logs}, now {tmp_path / 'logs'}"
    )
    assert "--out" in caught.value.remedy
    assert contents(root) == before


def test_other_windows_and_days_are_refused(logs: Path, root: Path) -> None:
    before = contents(root)
    with pytest.raises(ConfigError) as caught:
        prepare(update_config(Config(), {"windows": {"history_days": 3}}), data=logs, root=root)
    assert "windows.history_days was auto, now 3" in caught.value.found
    with pytest.raises(ConfigError, match="day was 2026-03-05, now 2026-03-04"):
        prepare(Config(), data=logs, root=root, day=date(2026, 3, 4))
    assert contents(root) == before


def test_a_cover_that_is_not_finite_is_refused_by_item(root: Path) -> None:
    products = prepared_dataset(root).products
    check_covers(products, name="products")
    for value in (np.nan, np.inf, -np.inf):
        covers_NV = np.array(products.visual_raw_NV)
        covers_NV[[7, 12], [3, 0]] = value
        with pytest.raises(DataError) as caught:
            check_covers(replace(products, visual_raw_NV=covers_NV), name="products")
        assert caught.value.found.startswith(f"item {products.item_ids_N[7]} has a cover")
        assert caught.value.where == "the catalog of products"


def spoil_a_cover(logs: Path, *, value: float) -> int:
    """Give one story of the first day a cover with a value; the story's id."""
    (path,) = (logs / "stories/dt=2026-03-01").glob("*.parquet")
    table = pq.read_table(path, partitioning=None)
    row = next(row for row, cover in enumerate(table["cover"]) if cover.is_valid)
    covers = table["cover"].to_pylist()
    covers[row][0] = value
    column = pa.array(covers, table.schema.field("cover").type)
    pq.write_table(table.set_column(table.schema.get_field_index("cover"), "cover", column), path)
    return int(table["story_id"][row].as_py())


def test_in_logs_such_a_cover_takes_its_item_out(logs: Path, root: Path, tmp_path: Path) -> None:
    """Validation rejects the row, so the dataset's covers are finite."""
    shutil.copytree(logs, tmp_path / "logs")
    story = spoil_a_cover(tmp_path / "logs", value=float("nan"))
    (tmp_path / "truth").mkdir()
    elsewhere = update_config(Config(), {"locations": {"truth": str(logs.parent / "truth")}})
    prepared = prepare(elsewhere, data=tmp_path / "logs", root=tmp_path / "root")
    assert (
        prepared.config.locations.truth == ""
    )  # a folder without a marketplace, and that of the settings is another's
    ours, theirs = prepared_dataset(tmp_path / "root").stories, prepared_dataset(root).stories
    assert set(theirs.item_ids_N) - set(ours.item_ids_N) == {story}
    assert np.isfinite(ours.visual_raw_NV).all()


@pytest.mark.parametrize("place", ["empty", "nowhere"])
def test_without_impressions_there_is_nothing_to_prepare(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingPartition, match="no impressions") as caught:
        prepare(Config(), data=tmp_path / place, root=tmp_path / "root")
    assert caught.value.where == str(tmp_path / place)
    assert not (tmp_path / "root").exists()


def test_too_few_days_are_an_error_that_writes_nothing(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "logs")
    for day in ("03", "04", "05"):
        shutil.rmtree(tmp_path / f"logs/impressions/dt=2026-03-{day}")
    with pytest.raises(MissingPartition, match="2 days of impressions"):
        prepare(Config(), data=tmp_path / "logs", root=tmp_path / "root")
    assert not (tmp_path / "root" / DATA).exists()


def test_what_failed_leaves_no_dataset_and_other_logs_do_not_mix_with_it(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "logs")
    (path,) = (tmp_path / "logs/impressions/dt=2026-03-05").glob("*.parquet")
    whole = path.read_bytes()
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["clicked"]), path)
    root = tmp_path / "root"
    with pytest.raises(SchemaMismatch, match="clicked"):
        prepare(Config(), data=tmp_path / "logs", root=root)
    assert not (root / DATASET).exists()
    with pytest.raises(DataError, match="no experiments in this folder"):
        prepared_dataset(root)
    with pytest.raises(ConfigError, match="experiments on other data"):
        prepare(Config(), data=logs, root=root)
    # mended, the same logs go on
    path.write_bytes(whole)
    assert len(Dataset.load(prepare(Config(), data=tmp_path / "logs", root=root).dataset).holdout) > 1_000
