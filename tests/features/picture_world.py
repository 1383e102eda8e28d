"""Real pictures, and validated catalogs whose items point to them."""

import io
import struct
import zlib
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from builders import write_partition, write_report
from storyrec.config import Config
from storyrec.features.covers import read_covers
from storyrec.storage import FolderStorage

DAY = date(2026, 3, 1)
SIDE = 32


def picture_bytes(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as the bytes of a file."""
    sink = io.BytesIO()
    picture.save(sink, kind, **options)
    return sink.getvalue()


def noise(seed: int, *, side: int = SIDE) -> Image.Image:
    """A picture like no other."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def bomb(width: int, height: int) -> bytes:
    """A PNG file of some bytes whose header states huge dimensions."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rest = picture_bytes(noise(0))[33:]
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + rest


class Shop:
    """Validated days below a folder, pictures beside the logs, and settings with a network."""

    def __init__(self, folder: Path, *, model: bytes) -> None:
        self.folder = folder
        self.pictures = folder / "logs/pictures"
        self.pictures.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)

    @property
    def work(self) -> FolderStorage:
        return FolderStorage(self.folder / "work")

    def config(self, *, s3_endpoint: str = "", **covers: Any) -> Config:
        """Settings; further ones of the section `covers` by name."""
        places = {"logs": str(self.folder / "logs"), "work": self.work.url, "s3_endpoint": s3_endpoint}
        settings = {"model": str(self.folder / "model.onnx"), "batch_size": 4} | covers
        return Config.model_validate({"locations": places, "covers": settings, "features": {"min_word_count": 1}})

    def draw(self, name: str, seed: int) -> str:
        """Save a picture below the logs; returns its URI."""
        (self.pictures / name).write_bytes(picture_bytes(noise(seed)))
        return f"pictures/{name}"

    def validated(self, day: date, *, stories: dict[int, Any], products: dict[int, Any] | None = None) -> None:
        """Write a validated day: by item id a URI, None, or a whole cover."""
        for table, key, items in (("stories", "story_id", stories), ("products", "product_id", products or {})):
            rows = [
                {key: item, "title": f"title {item}", "published_at": 0}
                | ({"cover_uri": at} if isinstance(at, str | None) else {"cover": at})
                | ({"source": "ugv", "mounted_product_ids": []} if table == "stories" else {"category_id": 1})
                for item, at in items.items()
            ]
            write_partition(self.work.folder, table, day, rows)
        write_partition(self.work.folder, "impressions", day, [])
        write_report(self.work.folder, day)

    def vectors(self, table: str = "stories", *, day: date = DAY) -> dict[int, np.ndarray]:
        """The vectors that readers of a day find, by item id."""
        rows = read_covers(self.work, table, day=day).table
        pairs = zip(rows["item_id"].to_pylist(), rows["cover"].to_pylist(), strict=True)
        return {item: np.array(cover, np.float64) for item, cover in pairs if cover}

    def files(self) -> dict[str, tuple[bytes, int]]:
        """Content and time of every file that the step wrote."""
        found = [path for path in self.work.folder.rglob("*") if "covers" in path.parts and path.is_file()]
        return {
            str(path.relative_to(self.work.folder)): (path.read_bytes(), path.stat().st_mtime_ns)
            for path in found
            if path.name != ".lock"
        }
