"""Pictures become vectors: the right ones, each picture accounted for, whatever stops the run."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from picture_world import DAY, Shop, bomb, noise, picture_bytes
from PIL import Image
from small_network import SmallNetwork, export
from torch import nn

from builders import FIRST_DAY, write_validated
from s3_server import S3Server
from storyrec.config import Config, save_config
from storyrec.data.build import build_dataset
from storyrec.errors import ConfigError, MissingPartition, StorageError
from storyrec.features import embed
from storyrec.features.covers import TRIED, PictureCounts, list_broken_covers, read_covers
from storyrec.features.embed import embed_covers
from storyrec.features.picture_files import PictureFiles
from storyrec.logs.partitions import partition_key, read_partition, write_partition
from storyrec.logs.rules import NORM_TOLERANCE
from storyrec.logs.validate import validate_logs
from storyrec.schema import COVER_WIDTH, TABLES
from storyrec.storage import FolderStorage

NEXT = DAY + timedelta(days=1)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
HALF = 2e-4  # float16 of a number below 0.25


@pytest.fixture(scope="module")
def models() -> tuple[bytes, bytes]:
    """Two networks as ONNX files."""
    return export(SmallNetwork(seed=1)), export(SmallNetwork(seed=2))


@pytest.fixture
def shop(tmp_path: Path, models: tuple[bytes, bytes]) -> Shop:
    return Shop(tmp_path, model=models[0])


def expected(pixels: np.ndarray, *, seed: int = 1) -> np.ndarray:
    """What torch makes of a picture, [32, 32, 3], of unit norm."""
    picture = (torch.from_numpy(np.array(pixels)).float() / 255 - MEAN) / STD
    with torch.no_grad():
        raw = SmallNetwork(seed=seed)(picture.permute(2, 0, 1)[None])[0]
    return (raw / raw.norm()).numpy()


def require_vectors(shop: Shop, seeds: dict[int, int], *, network: int = 1, **kwargs: Any) -> None:
    """The vectors are those of the drawn pictures of these seeds, and no others."""
    found = shop.vectors(**kwargs)
    assert found.keys() == seeds.keys()
    for item, seed in seeds.items():
        assert np.abs(found[item] - expected(np.asarray(noise(seed)), seed=network)).max() < HALF


def broken(shop: Shop, table: str = "stories") -> dict[int, str]:
    """The rules that quarantined pictures broke, by item id."""
    if not shop.work.exists(partition_key(table, DAY, prefix="quarantine/covers/")):
        return {}
    rows = read_partition(shop.work, table, DAY, prefix="quarantine/covers/", schema=TRIED).to_pylist()
    return {row["item_id"]: row["rule"] for row in rows}


def test_each_vector_is_what_torch_makes_of_the_picture(shop: Shop) -> None:
    whole = [1.0] + [0.0] * (COVER_WIDTH - 1)
    (shop.pictures / "jpeg.jpg").write_bytes(picture_bytes(Image.new("RGB", (50, 50), (200, 10, 60)), "JPEG"))
    stories = {item: shop.draw(f"{item}.png", item) for item in range(1, 11)}
    products = {1: shop.draw("a product.png", 21), 2: "pictures/jpeg.jpg", 3: whole, 4: None, 5: "  "}
    products |= {6: f"file://{shop.pictures}/a%20product.png", 7: f"{shop.pictures}/1.png"}
    shop.validated(DAY, stories=stories, products=products)
    done = embed_covers(shop.config(), day=DAY)
    assert done is not None
    assert done.tables == {"stories": PictureCounts(10, 10, 0, 0), "products": PictureCounts(4, 4, 0, 0)}
    assert done.days == (DAY,)
    require_vectors(shop, {item: item for item in range(1, 11)})
    found = shop.vectors("products")
    assert found.keys() == {1, 2, 6, 7}
    assert (found[1] == found[6]).all()
    assert np.abs(found[7] - expected(np.asarray(noise(1)))).max() < HALF
    flat = np.asarray(Image.open(shop.pictures / "jpeg.jpg"))[:32, :32]
    assert np.abs(found[2] - expected(flat)).max() < HALF
    for cover in (*found.values(), *shop.vectors().values()):
        assert abs(np.linalg.norm(cover) - 1) < NORM_TOLERANCE
    manifest = json.loads(shop.work.read(f"covers/dt={DAY}.json"))
    assert manifest["network"] == done.network
    assert manifest["tables"]["stories"] == {"pictures": 10, "embedded": 10, "quarantined": 0, "not_fetched": 0}
    assert broken(shop) == {}


def test_broken_pictures_are_quarantined_with_the_reason_and_none_is_lost(shop: Shop) -> None:
    content = picture_bytes(noise(1, side=64))
    (shop.pictures / "text.png").write_text("I am a text")
    (shop.pictures / "empty.jpg").touch()
    (shop.pictures / "cut.png").write_bytes(content[: len(content) // 2])
    (shop.pictures / "bomb.png").write_bytes(bomb(60_000, 60_000))
    (shop.pictures / "heavy.png").write_bytes(content + bytes(2**20))
    (shop.pictures / "folder").mkdir()
    (shop.folder / "secret.png").write_bytes(content)
    (shop.pictures / "link.png").symlink_to(shop.folder / "secret.png")
    (shop.pictures / "circle").symlink_to(shop.pictures / "circle")
    os.mkfifo(shop.pictures / "pipe")  # a reader would wait for ever
    rules = {
        "pictures/text.png": "picture_format",
        "pictures/empty.jpg": "picture_format",
        "pictures/cut.png": "picture_whole",
        "pictures/bomb.png": "picture_pixels",
        "pictures/heavy.png": "picture_file_size",
        "pictures/folder": "picture_there",
        "pictures/pipe": "picture_there",
        "pictures/nowhere.png": "picture_there",
        "pictures/circle": "picture_location",
        "pictures/link.png": "picture_location",
        "../secret.png": "picture_location",
        f"file://{shop.folder}/secret.png": "picture_location",
        "/dev/zero": "picture_location",
        "pictures/a\0b.png": "picture_location",
        "n" * 5_000: "picture_location",
        "s3://": "picture_location",
        "s3://bucket": "picture_location",
    }
    stories: dict[int, Any] = dict(enumerate(rules, start=1))
    stories |= {100: shop.draw("fine.png", 7), 101: "https://shop.example/1.jpg", 102: "ftp://shop.example/1.jpg"}
    shop.validated(DAY, stories=stories)
    done = embed_covers(shop.config(max_megabytes=1, s3_endpoint="http://127.0.0.1:1"), day=DAY)
    assert done is not None
    assert done.tables["stories"] == PictureCounts(len(rules) + 1, 1, len(rules), not_fetched=2)
    assert broken(shop) == dict(enumerate(rules.values(), start=1))
    require_vectors(shop, {100: 7})
    listed = {rows.rule: rows for rows in list_broken_covers(shop.work, day=DAY)}
    assert listed["picture_pixels"].count == 1
    assert listed["picture_pixels"].examples[0]["cover_uri"] == "pictures/bomb.png"
    assert "3600000000 pixels" in listed["picture_pixels"].examples[0]["found"]
    assert sum(rows.count for rows in listed.values()) == len(rules)
    assert list_broken_covers(shop.work, day=NEXT) == []


def test_a_vector_that_is_not_finite_is_quarantined(tmp_path: Path) -> None:
    class Logarithm(nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.log(pictures.flatten(1)[:, :COVER_WIDTH])

    shop = Shop(tmp_path, model=export(Logarithm()))
    for name, value in (("black", 0), ("white", 255), ("grey", 128)):
        (shop.pictures / f"{name}.png").write_bytes(picture_bytes(Image.new("L", (32, 32), value)))
    shop.validated(DAY, stories={1: "pictures/black.png", 2: "pictures/white.png", 3: "pictures/grey.png"})
    embed_covers(shop.config(pixel_mean=(0.0,) * 3, pixel_std=(1.0,) * 3), day=DAY)
    assert broken(shop) == {1: "cover_finite", 2: "cover_finite"}  # log 0, and log 1 = 0 everywhere
    assert shop.vectors().keys() == {3}


def test_a_killed_run_keeps_its_parts_and_the_next_one_embeds_only_the_rest(shop: Shop) -> None:
    shop.validated(DAY, stories={item: shop.draw(f"{item}.png", item) for item in range(1, 15)} | {15: "nowhere"})
    save_config(shop.config(), shop.folder / "settings.toml")
    tests = Path(__file__).parents[1]
    command = [sys.executable, str(Path(__file__).with_name("killed_embed.py")), str(shop.folder / "settings.toml")]
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    answer = subprocess.run([*command, str(DAY), "2"], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert answer.returncode == -9
    parts = shop.files()
    assert sorted(Path(name).name for name in parts) == ["part-00000.parquet", "part-00001.parquet"]
    assert shop.vectors() == {}  # the day appears at once

    for item in range(1, 9):  # what is in the parts is not read again
        (shop.pictures / f"{item}.png").unlink()
    done = embed_covers(shop.config(), day=DAY)
    assert done is not None
    assert done.tables["stories"] == PictureCounts(15, 14, 1, 0)
    assert broken(shop) == {15: "picture_there"}
    require_vectors(shop, {item: item for item in range(1, 15)})
    assert parts.items() <= shop.files().items()


def test_an_unchanged_rerun_reads_and_writes_nothing(shop: Shop) -> None:
    shop.validated(DAY, stories={1: shop.draw("1.png", 1), 2: shop.draw("2.png", 2)})
    first = embed_covers(shop.config(), day=DAY)
    before = shop.files()
    shutil.rmtree(shop.pictures)
    again = embed_covers(shop.config(), day=DAY)
    assert again == first
    assert {name: content for name, (content, _) in shop.files().items()} == {n: c for n, (c, _) in before.items()}
    parts = [name for name in before if name.endswith(".parquet")]
    assert [shop.files()[name] for name in parts] == [before[name] for name in parts]


def test_a_mended_picture_is_embedded_by_the_same_command(shop: Shop) -> None:
    shop.validated(DAY, stories={1: shop.draw("1.png", 1), 2: "pictures/late.png", 3: "pictures/never.png"})
    embed_covers(shop.config(), day=DAY)
    assert broken(shop) == {2: "picture_there", 3: "picture_there"}
    embed_covers(shop.config(), day=DAY)
    assert len([name for name in shop.files() if "part-" in name and "quarantine" not in name]) == 1
    shop.draw("late.png", 2)
    done = embed_covers(shop.config(), day=DAY)
    assert done is not None
    assert done.tables["stories"] == PictureCounts(3, 2, 1, 0)
    assert broken(shop) == {3: "picture_there"}
    require_vectors(shop, {1: 1, 2: 2})


def test_rows_that_were_put_back_into_a_day_are_embedded(shop: Shop) -> None:
    shop.validated(DAY, stories={1: shop.draw("1.png", 1), 2: "nowhere"})
    embed_covers(shop.config(), day=DAY)
    shop.validated(DAY, stories={1: "pictures/1.png", 3: shop.draw("3.png", 3)})
    done = embed_covers(shop.config(), day=DAY)
    assert done is not None
    assert done.tables["stories"] == PictureCounts(2, 2, 0, 0)
    assert broken(shop) == {}
    require_vectors(shop, {1: 1, 3: 3})


def test_earlier_days_are_embedded_once_and_another_network_embeds_all_anew(
    shop: Shop, models: tuple[bytes, bytes]
) -> None:
    shop.validated(DAY, stories={1: shop.draw("1.png", 1)})
    shop.validated(NEXT, stories={2: shop.draw("2.png", 2)})
    done = embed_covers(shop.config(), day=NEXT)
    assert done is not None
    assert done.days == (DAY, NEXT)
    assert done.tables["stories"].embedded == 2
    require_vectors(shop, {1: 1}, day=DAY)
    require_vectors(shop, {1: 1, 2: 2}, day=NEXT)
    again = embed_covers(shop.config(), day=NEXT)
    assert again is not None
    assert again.days == (NEXT,)

    (shop.folder / "model.onnx").write_bytes(models[1])
    first = embed_covers(shop.config(), day=DAY)
    assert first is not None
    assert first.network != done.network
    require_vectors(shop, {1: 1}, day=DAY, network=2)
    require_vectors(shop, {1: 1, 2: 2}, day=NEXT, network=1)  # a reader never meets two networks
    both = embed_covers(shop.config(), day=NEXT)
    assert both is not None
    assert both.days == (NEXT,)
    require_vectors(shop, {1: 1, 2: 2}, day=NEXT, network=2)
    other = embed_covers(shop.config(pixel_mean=(0.0,) * 3), day=NEXT)
    assert other is not None
    assert other.days == (DAY, NEXT)
    assert shop.vectors(day=NEXT)[1].tolist() != expected(np.asarray(noise(1)), seed=2).tolist()


def test_without_a_model_nothing_happens(shop: Shop) -> None:
    shop.validated(DAY, stories={1: shop.draw("1.png", 1)})
    assert embed_covers(shop.config(model=""), day=DAY) is None
    assert shop.files() == {}
    assert read_covers(shop.work, "stories", day=DAY).table.num_rows == 0


def test_a_day_that_was_not_validated_is_refused(shop: Shop) -> None:
    with pytest.raises(MissingPartition, match=str(DAY)):
        embed_covers(shop.config(), day=DAY)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: export(SmallNetwork(seed=1, width=256)), r"makes \[2, 256\] of two pictures"),
        (lambda: export(SmallNetwork(seed=1, channels=1), channels=1), "the model's input is"),
        (lambda: export(SmallNetwork(seed=1), fixed_batch=True), r"the model's input is \[2, 3, 32, 32\]"),
        (lambda: b"no onnx", "cannot be opened"),
    ],
    ids=["width", "grey", "fixed batch", "no model"],
)
def test_a_network_that_does_not_fit_is_refused_before_the_first_picture(tmp_path: Path, model: Any, said: str) -> None:
    shop = Shop(tmp_path, model=model())
    shop.validated(DAY, stories={1: shop.draw("1.png", 1)})
    with pytest.raises(ConfigError, match=said) as caught:
        embed_covers(shop.config(), day=DAY)
    assert "expected: " in str(caught.value)
    assert shop.files() == {}


def test_a_model_that_is_not_there_is_named(shop: Shop) -> None:
    shop.validated(DAY, stories={})
    with pytest.raises(ConfigError, match=r"No such file.*\n.*\n.*nowhere\.onnx"):
        embed_covers(shop.config(model="nowhere.onnx"), day=DAY)


def test_pictures_and_model_in_s3(shop: Shop, s3: S3Server, models: tuple[bytes, bytes]) -> None:
    storage = s3.new_storage("shop")
    storage.write("model.onnx", models[0])
    storage.write("a picture+1.png", picture_bytes(noise(3)))
    storage.write("heavy.png", bytes(2**20 + 1))
    rules = {
        f"{storage.url}/nowhere.png": "picture_there",
        "s3://no-such-bucket-anywhere/1.png": "picture_there",
        f"{storage.url}/heavy.png": "picture_file_size",
        "s3://Not A Bucket/1.png": "picture_location",
    }
    stories = {1: f"{storage.url}/a picture+1.png", 2: shop.draw("2.png", 2)}
    shop.validated(DAY, stories=stories | dict(enumerate(rules, start=3)))
    config = shop.config(s3_endpoint=s3.endpoint, model=f"{storage.url}/model.onnx", max_megabytes=1)
    embed_covers(config, day=DAY)
    assert broken(shop) == dict(enumerate(rules.values(), start=3))
    require_vectors(shop, {1: 3, 2: 2})


def test_where_s3_fails_midway_nothing_is_quarantined_and_nothing_done_is_lost(
    shop: Shop, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = s3.new_storage("shop")
    storage.write("9.png", picture_bytes(noise(9)))
    stories = {item: shop.draw(f"{item}.png", item) for item in range(1, 9)} | {9: f"{storage.url}/9.png"}
    shop.validated(DAY, stories=stories)
    monkeypatch.setattr(embed, "NUM_READERS", 1)
    with pytest.raises(StorageError, match="S3 did not read a picture"):
        embed_covers(shop.config(s3_endpoint="http://127.0.0.1:1"), day=DAY)
    assert broken(shop) == {}
    assert not shop.work.exists(f"covers/dt={DAY}.json")
    shutil.rmtree(shop.pictures)
    done = embed_covers(shop.config(s3_endpoint=s3.endpoint), day=DAY)
    assert done is not None
    assert done.tables["stories"] == PictureCounts(9, 9, 0, 0)
    require_vectors(shop, {item: item for item in range(1, 10)})


@pytest.fixture
def faltering() -> Iterator[tuple[str, list[str]]]:
    """An endpoint that breaks off its first answer to every path, and the paths it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = picture_bytes(noise(5))
            known = self.path in asked
            asked.append(self.path)  # before the answer: its reader looks at once
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if known else content[:100])

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
        server.shutdown()


@pytest.mark.usefixtures("s3")  # its credentials
def test_an_answer_that_broke_off_is_asked_for_again(faltering: tuple[str, list[str]]) -> None:
    endpoint, asked = faltering
    files = PictureFiles(folder=None, s3_endpoint=endpoint, max_bytes=10**6)
    assert files.read("s3://bucket/1.png") == picture_bytes(noise(5))
    assert len(asked) == 2


def test_a_folder_of_pictures_that_is_gone_is_no_fault_of_the_pictures(shop: Shop) -> None:
    shop.validated(DAY, stories={1: "1.png"})
    with pytest.raises(StorageError, match="the folder of the pictures is not there"):
        embed_covers(shop.config(picture_folder=str(shop.folder / "unmounted")), day=DAY)
    assert broken(shop) == {}


def test_a_catalog_takes_the_vector_of_an_items_newest_row_only(shop: Shop) -> None:
    write_validated(shop.work.folder, num_users=30, num_days=4, items_per_day=20, covers=False, first_day=FIRST_DAY)
    days = [FIRST_DAY + timedelta(days=offset) for offset in range(4)]
    whole = np.full(COVER_WIDTH, COVER_WIDTH**-0.5, np.float32)

    def change(day: int, item: int, **values: Any) -> None:
        rows = read_partition(shop.work, "stories", days[day], prefix="validated/").to_pylist()
        origin = read_partition(shop.work, "stories", days[0], prefix="validated/").to_pylist()
        row = next(row for row in [*rows, *origin] if row["story_id"] == item)
        rows = [other for other in rows if other["story_id"] != item] + [row | values]
        table = pa.Table.from_pylist(rows, schema=TABLES["stories"])
        write_partition(shop.work, "stories", days[day], table, prefix="validated/")

    first, second = shop.draw("first.png", 1), shop.draw("second.png", 2)
    for item in range(1_000, 1_006):
        change(0, item, cover_uri=first)
    change(2, 1_001, cover_uri=second)  # a new picture
    change(2, 1_002, cover_uri=None)  # taken back
    change(2, 1_003, cover=whole)  # the log's own vector
    config = shop.config()
    embed_covers(config, day=days[3])
    change(0, 1_004, cover_uri=second)  # the day changed and was not embedded again
    change(0, 1_005, cover=whole)
    stories = build_dataset(config, day=days[3], out=shop.folder / "dataset").stories
    covers = dict(zip(stories.item_ids_N.tolist(), stories.visual_raw_NV.astype(np.float64), strict=True))
    vectors = [expected(np.asarray(noise(seed))) for seed in (1, 2)]
    assert np.abs(covers[1_000] - vectors[0]).max() < HALF
    assert np.abs(covers[1_001] - vectors[1]).max() < HALF
    for item in (1_003, 1_005):
        assert np.abs(covers[item] - whole).max() < HALF
    assert {item for item, cover in covers.items() if cover.any()} == {1_000, 1_001, 1_003, 1_005}


def test_logs_with_pictures_become_a_dataset_with_covers(shop: Shop) -> None:
    """Validated, embedded and built as the pipeline does it."""
    day = write_validated(shop.folder / "drawn", num_users=30, num_days=4, items_per_day=20, covers=False)
    logs = FolderStorage(shop.folder / "logs")
    for key in FolderStorage(shop.folder / "drawn/validated").list():
        rows = pa.parquet.read_table(shop.folder / "drawn/validated" / key)
        if "cover_uri" in rows.column_names:
            uris = [shop.draw(f"{item}.png", item) for item in rows.column(0).to_pylist()]
            rows = rows.set_column(rows.column_names.index("cover_uri"), "cover_uri", pa.array(uris))
        pa.parquet.write_table(rows, _made(logs.folder / key))
    config: Config = shop.config()
    validate_logs(config, day=day)
    done = embed_covers(config, day=day)
    assert done is not None
    assert done.tables == {table: PictureCounts(80, 80, 0, 0) for table in ("stories", "products")}
    data = build_dataset(config, day=day, out=shop.folder / "dataset")
    for catalog in (data.stories, data.products):
        assert len(catalog) == 81
        assert not catalog.visual_raw_NV[0].any()
        for item, cover in zip(catalog.item_ids_N[1::20], catalog.visual_raw_NV[1::20], strict=True):
            assert np.abs(cover - expected(np.asarray(noise(item)))).max() < HALF
        assert np.abs(np.linalg.norm(catalog.visual_raw_NV[1:].astype(np.float32), axis=1) - 1).max() < NORM_TOLERANCE


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
