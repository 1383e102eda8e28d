"""Stories that are younger than the model: embedded without torch as torch would, and scored without a restart."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from served_world import client_of

from storyrec.bundle import Bundle
from storyrec.logs.partitions import write_partition
from storyrec.schema import COVER_WIDTH, STORIES, Domain
from storyrec.serving.extractor import embed_stories
from storyrec.serving.new_stories import NewStories
from storyrec.serving.served import ServedBundle
from storyrec.storage import FolderStorage
from trained import World

YOUNG = 5_000_000


def write_day(folder: Path, day: date, stories: list[tuple[int, str, np.ndarray | None]]) -> None:
    """A day's stories as validated logs have them."""
    rows = [
        {
            "story_id": story_id,
            "title": title,
            "cover": None if cover is None else cover.tolist(),
            "cover_uri": None,
            "source": "ugv",
            "published_at": datetime.combine(day, datetime.min.time(), UTC),
            "mounted_product_ids": [],
        }
        for story_id, title, cover in stories
    ]
    write_partition(FolderStorage(folder), "stories", day, pa.Table.from_pylist(rows, STORIES))


def test_numpy_embeds_stories_as_torch_does(world: World, packed: Path) -> None:
    bundle, catalog = Bundle.load(packed), world.data.stories
    rows_N = np.arange(1, 60)
    table = embed_stories(
        bundle,
        story_ids_N=catalog.item_ids_N[rows_N],
        titles=[catalog.titles[row] for row in rows_N],
        visual_raw_NV=np.asarray(catalog.visual_raw_NV[rows_N], np.float32),
    )
    expected_ND = bundle.embed(catalog, domain=Domain.STORY, rows_N=rows_N)
    assert np.ptp(expected_ND) > 0.1
    np.testing.assert_allclose(table.vectors_ND[1:], expected_ND, atol=1e-5)
    np.testing.assert_allclose(
        table.match_NM[1:], bundle.embed_match(catalog, domain=Domain.STORY, rows_N=rows_N), atol=1e-5
    )
    np.testing.assert_allclose(table.vectors_ND[1:], bundle.stories.vectors(catalog.item_ids_N[rows_N]), atol=1e-5)


def test_a_story_without_title_and_cover_is_the_padding(packed: Path) -> None:
    bundle = Bundle.load(packed)
    nothing = np.zeros((1, COVER_WIDTH), np.float32)
    table = embed_stories(bundle, story_ids_N=np.array([YOUNG]), titles=[""], visual_raw_NV=nothing)
    np.testing.assert_array_equal(table.vectors_ND[1], bundle.stories.vectors_ND[0])


@pytest.fixture
def young(champion: ServedBundle, tmp_path: Path) -> ServedBundle:
    """A server that looks for young stories below tmp_path/logs."""
    champion.new_stories = NewStories(FolderStorage(tmp_path / "logs"))
    champion.append_stories()
    return champion


def test_a_young_story_is_scored_as_its_twin_without_a_restart(
    world: World, young: ServedBundle, tmp_path: Path
) -> None:
    bundle, catalog = young.bundle, world.data.stories
    assert bundle is not None
    row = 7
    twin, product_id = int(catalog.item_ids_N[row]), int(bundle.products.ids_N[4])
    request = {"user_id": 1, "candidates": [twin, YOUNG]}
    with client_of(young) as client:
        before = client.post("/v1/rank", json=request).json()["stories"]
        cover = np.asarray(catalog.visual_raw_NV[row], np.float32)
        write_day(tmp_path / "logs", bundle.day + timedelta(days=1), [(YOUNG, catalog.titles[row], cover)])
        young.append_stories()
        after = client.post("/v1/rank", json=request).json()["stories"]
        near = client.get(f"/v1/products/{product_id}/stories", params={"top": 1_000}).json()["stories"]
        click = {"item_id": YOUNG, "clicked_us": 20_599 * 86_400_000_000}
        recommended = client.post("/v1/recommend", json={"story_clicks": [click]}).json()
    assert {story["story_id"]: story["status"] for story in before} == {twin: "known", YOUNG: "unknown"}
    assert {story["story_id"]: story["status"] for story in after} == {twin: "known", YOUNG: "appended"}
    assert after[0]["probability"] == pytest.approx(after[1]["probability"], abs=1e-6)
    distances = {story["story_id"]: story["distance"] for story in near}
    assert distances[YOUNG] == pytest.approx(distances[twin], abs=1e-4)
    assert recommended["retrieval"] == "neighbours"  # near a young story that was clicked
    assert recommended["stories"][0]["story_id"] != YOUNG
    assert twin in {story["story_id"] for story in recommended["stories"]}


def test_only_days_after_the_bundle_and_stories_that_it_lacks_are_appended(young: ServedBundle, tmp_path: Path) -> None:
    bundle = young.bundle
    assert bundle is not None
    assert young.served is not None
    known = int(bundle.stories.ids_N[3])
    next_day = bundle.day + timedelta(days=1)
    write_day(tmp_path / "logs", bundle.day, [(YOUNG, "an old day", None)])
    write_day(tmp_path / "logs", next_day, [(known, "changed", None), (YOUNG + 1, "first words", None)])
    young.append_stories()
    assert young.served.stories.appended.ids_N.tolist() == [0, YOUNG + 1]
    first = young.served.stories.appended.vectors_ND[1]
    write_day(tmp_path / "logs", next_day + timedelta(days=1), [(YOUNG + 1, f"{'other '}words 1", np.ones(512))])
    young.append_stories()
    assert young.served.stories.appended.ids_N.tolist() == [0, YOUNG + 1]
    assert not np.array_equal(young.served.stories.appended.vectors_ND[1], first)
    np.testing.assert_array_equal(young.served.stories.vectors([known]), bundle.stories.vectors([known]))


def test_a_broken_file_leaves_what_was_appended(young: ServedBundle, tmp_path: Path) -> None:
    assert young.bundle is not None
    assert young.served is not None
    next_day = young.bundle.day + timedelta(days=1)
    write_day(tmp_path / "logs", next_day, [(YOUNG, "some words", None)])
    young.append_stories()
    later = tmp_path / "logs" / "stories" / f"dt={next_day + timedelta(days=1)}"
    later.mkdir()
    (later / "part-0.parquet").write_bytes(b"half of it")
    young.append_stories()
    assert young.served.stories.appended.ids_N.tolist() == [0, YOUNG]
    (later / "part-0.parquet").unlink()
    write_day(tmp_path / "logs", next_day + timedelta(days=1), [(YOUNG + 1, "more words", None)])
    young.append_stories()
    assert young.served.stories.appended.ids_N.tolist() == [0, YOUNG, YOUNG + 1]


def test_unchanged_files_are_not_read_again(young: ServedBundle, tmp_path: Path) -> None:
    assert young.bundle is not None
    assert young.served is not None
    write_day(tmp_path / "logs", young.bundle.day + timedelta(days=1), [(YOUNG, "some words", None)])
    young.append_stories()
    served = young.served
    young.append_stories()
    assert young.served is served
