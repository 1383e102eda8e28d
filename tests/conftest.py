"""Fixtures that several test files share."""

from collections.abc import Iterator

import pytest

from s3_server import S3Server, s3_server


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """A running S3 server."""
    with s3_server() as server:
        yield server
