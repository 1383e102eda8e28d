"""The documentation's pictures, from what `make run` left: `make pictures`.

The run report of the last day, what its model attended to, and the page of an online test that is simulated from the
marketplace's truth. Needs chromium.
"""

import io
import re
import subprocess
import sys
import tempfile
from base64 import b64decode
from pathlib import Path

import numpy as np
from PIL import Image

from storyrec.ab.analyze import analyze
from storyrec.ab.report import PAGE, write_analysis
from storyrec.ab.simulate import draw_test, make_world, write_test
from storyrec.config import load_config

FOLDER = Path(__file__).parent / "pictures"
WIDTH, HEIGHT = 1200, 1450
NUM_COLORS = 128
MAX_BYTES = 300_000
EMBEDDED = re.compile(r'src="data:image/png;base64,([^"]+)"')


def main(settings: Path | None) -> None:
    """Write the pictures over those of before."""
    locations = load_config(settings).locations
    report = sorted(Path(locations.work).glob("runs/dt=*/report.html"))[-1]
    save("run-report", photograph(report))
    if found := EMBEDDED.search(report.read_text("utf-8")):
        save("attention", b64decode(found[1]))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        world = make_world(Path(locations.truth), sharpness=0.1, seed=7)
        write_test(world, draw_test(world, rng=np.random.default_rng([7, 1])), folder)
        exposures, outcomes, before = (folder / f"{name}.parquet" for name in ("exposures", "outcomes", "before"))
        write_analysis(analyze(exposures, outcomes, before=before), folder)
        save("online-test", photograph(folder / PAGE))


def photograph(page: Path) -> bytes:
    """The top of a page as a browser shows it, as PNG."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "page.png"
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={WIDTH},{HEIGHT}",
        ]
        command = ["chromium", *options, f"--screenshot={picture}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        return picture.read_bytes()


def save(name: str, content: bytes) -> None:
    """Keep a picture in few colors."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.png"
    Image.open(io.BytesIO(content)).convert("RGB").quantize(NUM_COLORS).save(path, optimize=True)
    assert path.stat().st_size < MAX_BYTES, f"{path} has {path.stat().st_size:,} bytes"
    print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
