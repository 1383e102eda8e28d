"""Fixtures of the feature tests."""

from pathlib import Path

import pytest

from feature_world import World, fill


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Five validated days, eleven users."""
    return fill(World(tmp_path), num_days=5)
