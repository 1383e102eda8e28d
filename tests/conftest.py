"""Fixtures that several test files share."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ceph_gateway import ASKED, ceph_gateway
from s3_server import S3Server, s3_server

if TYPE_CHECKING:
    from trained import World


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server; Ceph's gateway where STORYREC_TEST_S3=ceph asks for it."""
    with ceph_gateway() if ASKED else s3_server() as server:
        yield server


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> "World":
    """A small planted marketplace's dataset, on disk."""
    from trained import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def packed(world: "World", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of that dataset with drawn weights; tests copy it before they change it."""
    from trained import make_bundle

    return make_bundle(world, tmp_path_factory.mktemp("packed"))
