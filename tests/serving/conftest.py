"""Fixtures of the serving tests."""

import sys
from pathlib import Path

import pytest
from served_world import DAYS, deploy

from storyrec.serving.served import ServedBundle
from storyrec.storage import FolderStorage

sys.path.append(str(Path(__file__).parents[1] / "features"))  # its small world and its Redis


@pytest.fixture
def champion(packed: Path, tmp_path: Path) -> ServedBundle:
    champion = ServedBundle(FolderStorage(tmp_path / "registry"), tmp_path / "cache")
    deploy(champion.registry, packed, tmp_path / "first", day=DAYS[0])
    assert champion.refresh()
    return champion
