"""What the tests of the experiments share: settings for trainings of a second, and the bytes of a folder.

from experiment_world import SMALL, contents, small_world
"""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from storyrec.config import update_config
from storyrec.data.dataset import Dataset
from storyrec.logs.simulate import simulate
from trained import World, make_world

SMALL: dict[str, dict[str, Any]] = {
    "model": {"width": 16, "head_widths": (16, 8)},
    "dual": {"max_epochs": 1, "max_steps": 5},
    "aden": {"max_epochs": 2},
}


def small_world(root: Path) -> World:
    """The planted marketplace of `trained`, with settings that train in a second."""
    world = make_world(root)
    return replace(world, config=update_config(world.config, SMALL))


def write_variant(world: World, folder: Path, **parts: Any) -> Path:
    """The world's dataset with other parts, as another dataset below a folder."""
    data = replace(world.data, **{"digest": f"a variant of {world.data.digest}", **parts})
    data.save(folder / "dataset")
    return folder / "dataset"


def mask_clicks(data: Dataset, part: str, *, clicked: bool) -> dict[str, Any]:
    """A part of a dataset in which all impressions have one label, to be given to `write_variant`."""
    instances = getattr(data, part)
    return {part: replace(instances, clicked_B=instances.clicked_B * 0 + clicked > 0)}


def simulate_marketplace(root: Path, *, seed: int = 7, num_users: int = 80) -> Path:
    """Write a tiny simulated marketplace, truth beside it; the folder of its logs."""
    simulate(
        out_logs=root / "logs",
        out_truth=root / "truth",
        num_users=num_users,
        num_days=5,
        first_day=date(2026, 3, 1),
        seed=seed,
    )
    return root / "logs"


def contents(root: Path) -> dict[str, tuple[bytes, int]]:
    """Every file below a folder: its bytes and when it was written."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
