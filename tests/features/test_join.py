"""Training sets: equal to Feast's retrieval, every label kept, one clear error for bad input, nothing half-written."""

import hashlib
import json
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_world import MOMENT, NOW, World, at, day_of
from join_world import LATER, Row, moment, write_labels, write_views

from full_disk import full_disk
from storyrec.errors import ConfigError, DataError, MissingPartition, SchemaMismatch, StorageError, StoryrecError
from storyrec.features.asof import Ages, AsofJoin
from storyrec.features.build import build_features
from storyrec.features.catalog import Catalog, CatalogView, read_catalog
from storyrec.features.join import join_labels
from storyrec.features.repository import feature_repo
from storyrec.features.store import open_feature_store
from storyrec.storage import write_file

REPO = Path(__file__).parents[2] / "feature_repo"
ROWS = [Row(1, 1, 1, 10), Row(1, 3, 3, 30), Row(2, 2, 2, 20)]
LABELS = [(1, 4), (9, 4), (2, 1), (1, 2), (1, 4)]


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """One view of three rows."""
    return write_views(tmp_path / "features", [[ROWS[:2], ROWS[2:]]])


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels.parquet", LABELS)


def join(labels: Path, catalog: Catalog, *, service: str = "all_v1", now: datetime = LATER) -> Path:
    out = labels.with_name("train.parquet")
    join_labels(labels, out, service=service, catalog=catalog, now=now)
    return out


def values(column: pd.Series) -> list[list[int] | None]:
    """Lists, None where there is none."""
    return [list(items) if isinstance(items, np.ndarray) else None for items in column]


def restate(world: World) -> None:
    """Every third row of a day once more, known a minute or some days later, with another value."""
    for view, column in (("user_story_sequence", "story_ids"), ("user_product_sequence", "product_ids")):
        path = world.folder / f"work/features/{view}/dt={day_of(4)}/part-0.parquet"
        rows = pq.read_table(path).to_pandas().iloc[::3].copy()
        rows[column] = [np.append(items, 999) for items in rows[column]]
        rows["known_at"] += pd.to_timedelta(np.arange(len(rows)) % 3 * 86_400 + 60, unit="s")
        pq.write_table(
            pa.Table.from_pandas(rows, pq.read_schema(path), preserve_index=False), path.with_name("r.parquet")
        )


@pytest.mark.parametrize(("service", "lifetime_seconds"), [("ranker_v1", 50_000), ("user_interest_v1", 0)])
def test_the_join_equals_feasts_retrieval(
    world: World, monkeypatch: pytest.MonkeyPatch, service: str, lifetime_seconds: int
) -> None:
    repo = world.folder / "feature_repo"
    shutil.copytree(REPO, repo)
    text = (repo / "definitions.py").read_text()
    (repo / "definitions.py").write_text(text.replace("timedelta(0)", f"timedelta(seconds={lifetime_seconds})"))
    monkeypatch.setenv("STORYREC_FEATURE_REPO", str(repo))
    build_features(world.config, day=day_of(4))
    restate(world)
    events = [when for domain in ("story", "product") for _, _, when in world.clicks(domain)]
    random = np.random.default_rng(3)
    chosen = [events[i] + int(random.integers(-1, 3)) * MOMENT for i in random.integers(0, len(events), 300)]
    chosen += [when + timedelta(seconds=60) for when in chosen[:100]] + [at(8)] * 20
    asked = pd.DataFrame({"user_id": random.integers(1, 14, len(chosen)), "event_timestamp": chosen})
    asked["event_timestamp"] = asked["event_timestamp"].astype("datetime64[us, UTC]")
    asked.to_parquet(world.folder / "labels.parquet")

    expected = open_feature_store(world.config.locations.work, profile="local").historical(asked, service=service)
    catalog = read_catalog(feature_repo(), features=world.folder / "work/features")
    found = pd.read_parquet(join(world.folder / "labels.parquet", catalog, service=service, now=NOW))
    assert set(found.columns) == set(expected.columns)
    for name in expected.columns[2:]:
        assert values(found[name]) == values(expected[name]), name
        assert None in values(found[name])
    assert any(999 in items for items in values(found["story_ids"]) if items)


def test_every_column_and_row_of_the_labels_is_kept(tmp_path: Path, catalog: Catalog, labels: Path) -> None:
    table = pq.read_table(labels)
    odd = {
        "campaign": pa.DictionaryArray.from_arrays(pa.array([0, None, 1, 0, 0], pa.int8()), ["a", "b"]),
        "weights": pa.array([[1.5], [], None, [2.5, 3.5], [0.0]], pa.list_(pa.float16())),
        "seen_at": pa.array([5, 4, 3, 2, 1], pa.timestamp("ns", "Asia/Tokyo")),
        "price": pa.array([1, 2, 3, 4, None], pa.int64()).cast(pa.decimal128(30, 2)),
    }
    for name, column in odd.items():
        table = table.append_column(name, column)
    pq.write_table(table, labels, row_group_size=2)
    found = pq.read_table(join(labels, catalog))
    kept = found.drop_columns("value_0")
    assert kept.schema.equals(pq.read_schema(labels))
    assert kept.to_pylist() == table.to_pylist()
    assert found["value_0"].to_pylist() == [30, None, None, 10, 30]


def test_the_manifest_says_what_was_joined_from_what(tmp_path: Path, catalog: Catalog, labels: Path) -> None:
    out = join(labels, catalog)
    said = json.loads((tmp_path / "train.parquet.manifest.json").read_text())
    parts = sorted((tmp_path / "features").rglob("*.parquet"))

    def digest(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert said == {
        "out": str(out),
        "out_sha256": digest(out),
        "labels": str(labels),
        "labels_sha256": digest(labels),
        "num_rows": 5,
        "first_label": str(moment(1)),
        "last_label": str(moment(4)),
        "service": "all_v1",
        "version": 1,
        "views": [
            {
                "name": "view_0",
                "version": 1,
                "num_nulls": {"value_0": 2},
                "newest_value": str(moment(3)),
                "oldest_age_seconds": 1e-6,
                "partitions": {str(path): digest(path) for path in parts},
            }
        ],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "features",
        "labels.parquet",
        "train.parquet",
        "train.parquet.manifest.json",
    ]


AWARE = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("name", "column", "kind", "said"),
    [
        ("user_id", pa.array(["1"] * 5), SchemaMismatch, "the ids are of type string"),
        ("user_id", pa.array([1.5] * 5), SchemaMismatch, "the ids are of type double"),
        ("user_id", pa.array([1, 2, None, 4, None], pa.int64()), DataError, "2 labels without an id, .* row 2"),
        ("user_id", pa.array([1, 2**63, 3, 4, 5], pa.uint64()), DataError, f"the id {2**63} in row 1"),
        ("user_id", None, SchemaMismatch, "no column user_id, but number, event_timestamp"),
        ("event_timestamp", None, SchemaMismatch, "no column event_timestamp, but number, user_id"),
        ("event_timestamp", pa.array([1] * 5), SchemaMismatch, "the moments are of type int64"),
        ("event_timestamp", pa.array([1] * 5, pa.timestamp("us")), SchemaMismatch, "(?s)without a time zone.*localize"),
        ("event_timestamp", pa.array([1, None, 3, 4, 5], AWARE), DataError, "1 labels without a moment, .* row 1"),
        ("event_timestamp", pa.array([2**40] * 5, pa.timestamp("s", "UTC")), DataError, "future|beyond the calendar"),
        ("event_timestamp", pa.array([LATER, LATER + MOMENT] * 2 + [LATER], AWARE), DataError, "2 .*future, .* row 1"),
        ("value_0", pa.array([1] * 5), SchemaMismatch, "column value_0 would be there twice"),
        ("number", pa.array([1] * 5), SchemaMismatch, "column number would be there twice"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_joined_are_refused(
    tmp_path: Path,
    catalog: Catalog,
    labels: Path,
    name: str,
    column: pa.Array | None,
    kind: type[StoryrecError],
    said: str,
) -> None:
    table = pq.read_table(labels)
    if column is None:
        table = table.drop_columns(name)
    elif name in ("user_id", "event_timestamp"):
        table = table.set_column(table.column_names.index(name), name, column)
    else:
        table = table.append_column(name, column)
    pq.write_table(table, labels)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(kind, match=said):
        join(labels, catalog)
    assert sorted(tmp_path.rglob("*")) == before


def test_labels_up_to_now_and_narrow_ids_are_taken(catalog: Catalog, labels: Path) -> None:
    table = pq.read_table(labels)
    table = table.set_column(2, "user_id", table["user_id"].cast(pa.uint8()))
    table = table.set_column(1, "event_timestamp", pa.array([LATER] * 5, AWARE))
    pq.write_table(table, labels)
    assert pq.read_table(join(labels, catalog))["value_0"].to_pylist() == [30, None, 20, 30, 30]


def test_what_is_no_file_of_labels_is_refused(tmp_path: Path, catalog: Catalog, labels: Path) -> None:
    pq.write_table(pq.read_table(labels).slice(0, 0), labels)
    with pytest.raises(DataError, match="there are no labels"):
        join(labels, catalog)
    labels.write_text("user_id,event_timestamp\n")
    with pytest.raises(DataError, match="the labels cannot be read"):
        join(labels, catalog)
    with pytest.raises(DataError, match="no such file"):
        join(tmp_path / "nowhere.parquet", catalog)


def test_an_unknown_service_and_an_output_that_is_there_are_refused(catalog: Catalog, labels: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)no service 'all_v2'.*one of all_v1"):
        join(labels, catalog, service="all_v2")
    labels.with_name("train.parquet").write_text("mine")
    with pytest.raises(ConfigError, match="there already"):
        join(labels, catalog)
    assert labels.with_name("train.parquet").read_text() == "mine"


def test_partitions_that_are_missing_or_damaged_are_refused(tmp_path: Path, catalog: Catalog, labels: Path) -> None:
    part, other = sorted((tmp_path / "features").rglob("*.parquet"))
    table = pq.read_table(other)
    pq.write_table(table.set_column(1, "value_0", table["value_0"].cast(pa.float64())), other)
    with pytest.raises(SchemaMismatch, match=r"(?s)value_0 of another type.*dt=2026-03-02"):
        join(labels, catalog)
    other.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"(?s)a partition cannot be read.*dt=2026-03-02"):
        join(labels, catalog)
    part.unlink()
    other.unlink()
    with pytest.raises(MissingPartition, match="nothing of view_0 yet"):
        join(labels, catalog)


def test_a_partition_that_is_built_again_meanwhile_is_refused(
    tmp_path: Path, catalog: Catalog, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part, add = next((tmp_path / "features").rglob("*.parquet")), AsofJoin.add

    def add_and_build(join: AsofJoin, view: CatalogView, *, files: list[str], names: tuple[str, ...]) -> Ages:
        found = add(join, view, files=files, names=names)
        write_file(part, part.read_bytes())
        return found

    with monkeypatch.context() as patch:
        patch.setattr(AsofJoin, "add", add_and_build)
        with pytest.raises(DataError, match="changed while they were joined"):
            join(labels, catalog)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features", "labels.parquet"]
    assert pq.read_table(join(labels, catalog)).num_rows == 5


def test_a_full_disk_leaves_nothing_and_the_same_command_finishes_later(
    tmp_path: Path, catalog: Catalog, labels: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with full_disk(1_000), pytest.raises(StorageError, match="the join stopped"):
        join(labels, catalog)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / ".train.parquet.joining-killed").mkdir()
    (tmp_path / "train.parquet.manifest.json").write_text("of a killed run")
    assert pq.read_table(join(labels, catalog)).num_rows == 5
    assert not (tmp_path / ".train.parquet.joining-killed").exists()


def test_the_days_features_give_what_the_slices_give(world: World) -> None:
    build_features(world.config, day=day_of(4))
    labels = [(user, when) for user, _, when, _ in world.impressions[3]]
    users, times = zip(*labels, strict=True)
    table = pa.table({"user_id": list(users), "event_timestamp": pa.array(times, AWARE)})
    pq.write_table(table, world.folder / "labels.parquet")
    catalog = read_catalog(REPO, features=world.folder / "work/features")
    out = world.folder / "train.parquet"
    join_labels(world.folder / "labels.parquet", out, service="ranker_v1", catalog=catalog, now=NOW)
    found = pq.read_table(out).to_pylist()
    for domain in ("story", "product"):
        for row, (user, when) in zip(found, labels, strict=True):
            pairs = zip(row[f"{domain}_ids"] or [], row[f"{domain}_clicked_us"] or [], strict=True)
            assert list(pairs) == world.sequence(domain, user=user, before=when)
