"""Sequences as partitions: what they hold, one pass or day by day, and what a rebuilt day moves."""

import hashlib
from pathlib import Path

import pyarrow.dataset as ds
import pytest
from feature_world import MOMENT, World, at, day_of, fill, microseconds

from storyrec.errors import ConfigError, DayStopped, MissingPartition, StorageError
from storyrec.features import build as build_module
from storyrec.features.build import build_features
from storyrec.features.events import COLUMNS, VIEWS
from storyrec.features.partitions import read_clicks, read_state
from storyrec.logs.partitions import partition_key
from storyrec.schema import Domain

DOMAINS = {"story": Domain.STORY, "product": Domain.PRODUCT}


def rows(world: World, domain: str) -> list[tuple[int, int, list[int], list[int]]]:
    """(user, event time, items, times) of every row of a view, sorted."""
    view = VIEWS[DOMAINS[domain]]
    table = ds.dataset(world.folder / "work/features" / view, format="parquet").to_table().to_pydict()
    items, times = COLUMNS[DOMAINS[domain]]
    moments = map(microseconds, table["event_timestamp"])
    assert table["event_timestamp"] == table["known_at"]
    return sorted(zip(table["user_id"], moments, table[items], table[times], strict=True))


def naive_rows(world: World, domain: str) -> list[tuple[int, int, list[int], list[int]]]:
    moments = {(user, when) for user, _, when in world.clicks(domain)}
    found = []
    for user, when in moments:
        sequence = world.sequence(domain, user=user, before=when + MOMENT)
        found.append((user, microseconds(when) + 1, [item for item, _ in sequence], [time for _, time in sequence]))
    return sorted(found)


def contents(world: World) -> dict[str, str]:
    """The sum of every file of the features folder."""
    folder = world.folder / "work/features"
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def require_naive(world: World) -> None:
    for domain in DOMAINS:
        assert rows(world, domain) == naive_rows(world, domain)


def test_a_backlog_is_one_partition_with_a_row_per_click_moment(world: World) -> None:
    built = build_features(world.config, day=day_of(4))
    assert built.partitions == (day_of(4),)
    require_naive(world)
    assert built.num_rows == {VIEWS[DOMAINS[domain]]: len(naive_rows(world, domain)) for domain in DOMAINS}
    assert built.num_users == {VIEWS[DOMAINS[d]]: len({click[0] for click in world.clicks(d)}) for d in DOMAINS}


def test_day_by_day_gives_the_same_rows_and_state(world: World, tmp_path: Path) -> None:
    for number in range(5):
        assert build_features(world.config, day=day_of(number)).partitions == (day_of(number),)
    require_naive(world)
    whole = fill(World(tmp_path / "whole"), num_days=5)
    build_features(whole.config, day=day_of(4))
    for domain in Domain:
        once, daily = read_state(whole.storage, day_of(4))[domain], read_state(world.storage, day_of(4))[domain]
        assert once.item_ids_C.tolist() == daily.item_ids_C.tolist()
        assert once.clicked_us_C.tolist() == daily.clicked_us_C.tolist()


def test_a_large_backlog_is_built_in_passes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "MAX_ROWS_PER_PASS", 150)
    assert len(build_features(world.config, day=day_of(4)).partitions) == 3
    require_naive(world)


def test_building_again_writes_nothing(world: World) -> None:
    build_features(world.config, day=day_of(2))
    build_features(world.config, day=day_of(4))
    before = contents(world)
    for number in (4, 2):
        assert build_features(world.config, day=day_of(number)).partitions == ()
    assert contents(world) == before


def test_a_replayed_day_is_built_forward(world: World) -> None:
    for number in range(5):
        build_features(world.config, day=day_of(number))
    world.impressions[1].append((99, 29, at(1, second=50), True))  # a user without any other click
    world.write(1)
    assert build_features(world.config, day=day_of(1)).partitions == tuple(map(day_of, range(1, 5)))
    require_naive(world)
    assert build_features(world.config, day=day_of(1)).partitions == ()


def test_a_replay_without_a_click_builds_nothing(world: World) -> None:
    for number in range(5):
        build_features(world.config, day=day_of(number))
    world.impressions[1].append((3, 29, at(1, second=50), False))  # shown, not clicked
    world.write(1)
    assert build_features(world.config, day=day_of(1)).partitions == ()


@pytest.mark.parametrize("killed_after", range(1, 4))
def test_a_run_killed_on_the_way_forward_is_finished_by_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch, killed_after: int
) -> None:
    for number in range(2, 5):  # somebody whose every later row holds the replayed click
        world.impressions[number].append((99, number, at(number, second=7), True))
        world.write(number)
    for number in range(5):
        build_features(world.config, day=day_of(number))
    world.impressions[1].append((99, 29, at(1, second=50), True))
    world.write(1)
    write_state, done = build_module.write_state, []

    def killed(*args: object) -> None:
        done.append(args)
        if len(done) > killed_after:
            raise StorageError("killed")
        write_state(*args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(build_module, "write_state", killed)
        with pytest.raises(StorageError, match="killed"):
            build_features(world.config, day=day_of(1))
    assert f"dt={day_of(1 + killed_after)}.json" not in contents(world), "a half-written partition is not built"
    build_features(world.config, day=day_of(1))
    build_features(world.config, day=day_of(4))
    require_naive(world)


def test_a_day_inside_a_built_backlog_splits_it(world: World) -> None:
    build_features(world.config, day=day_of(4))
    assert build_features(world.config, day=day_of(2)).partitions == (day_of(2), day_of(4))
    require_naive(world)
    assert build_features(world.config, day=day_of(4)).partitions == ()


def test_a_day_that_was_stopped_since_is_taken_out(world: World) -> None:
    for number in range(5):
        build_features(world.config, day=day_of(number))
    world.write(3, status="stopped")
    with pytest.raises(DayStopped, match=str(day_of(3))):
        build_features(world.config, day=day_of(3))
    assert build_features(world.config, day=day_of(4)).partitions == (day_of(4),)
    del world.impressions[3], world.product_clicks[3]
    require_naive(world)
    assert not any(str(day_of(3)) in name for name in contents(world))


def test_another_length_builds_everything_again(world: World) -> None:
    for number in range(5):
        build_features(world.config, day=day_of(number))
    world.length = 7
    build_features(world.config, day=day_of(4))
    require_naive(world)


def test_a_day_without_clicks_is_built(world: World) -> None:
    world.impressions[5] = [(1, 1, at(5), False)]
    world.write(5)
    built = build_features(world.config, day=day_of(5))
    assert built.partitions == (day_of(5),)
    require_naive(world)


def test_a_day_that_is_not_validated_is_refused(world: World) -> None:
    with pytest.raises(MissingPartition, match=str(day_of(7))):
        build_features(world.config, day=day_of(7))
    assert not (world.folder / "work/features").exists()


def test_a_validation_without_a_report_never_finished(world: World) -> None:
    world.storage.delete(f"reports/dt={day_of(4)}.json")
    with pytest.raises(MissingPartition, match="never finished"):
        build_features(world.config, day=day_of(4))


def test_a_full_disk_leaves_the_day_unbuilt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("storyrec.storage.os.fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            build_features(world.config, day=day_of(4))
    assert contents(world) == {}
    build_features(world.config, day=day_of(4))
    require_naive(world)


def test_a_corrupt_partition_is_named(world: World) -> None:
    key = partition_key("product_clicks", day_of(2), prefix="validated/")
    world.storage.write(key, b"PAR1 no more")
    with pytest.raises(Exception, match=str(day_of(2))):
        build_features(world.config, day=day_of(4))


def test_work_in_a_bucket_is_refused(world: World) -> None:
    locations = world.config.locations.model_copy(update={"work": "s3://bucket/work"})
    with pytest.raises(ConfigError, match=r"locations\.work"):
        build_features(world.config.model_copy(update={"locations": locations}), day=day_of(4))


def test_the_click_log_reads_what_was_built(world: World) -> None:
    log, num_rows = read_clicks(world.storage, Domain.STORY, [day_of(0)])
    assert num_rows == 60
    assert len(log) == sum(clicked for *_, clicked in world.impressions[0])
