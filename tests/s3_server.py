"""A real S3 server as a process of its own, for every test that needs one."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from storyrec.storage import S3Storage

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "dummy",
    "AWS_SECRET_ACCESS_KEY": "dummy",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class S3Server:
    """A running server; `new_storage` makes a fresh bucket."""

    endpoint: str

    def new_storage(self, prefix: str = "registry") -> S3Storage:
        """Storage on a bucket that no other test uses."""
        bucket = f"bucket-{uuid.uuid4().hex[:12]}"
        storage = S3Storage(bucket, prefix, endpoint=self.endpoint)
        storage._client.create_bucket(Bucket=bucket)
        return storage


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Start the server, set dummy credentials, stop it at the end."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        endpoint = f"http://127.0.0.1:{port}"
        await_answer(endpoint, server)
        with credentials():
            yield S3Server(endpoint)
    finally:
        server.terminate()
        server.wait(timeout=20)


@contextmanager
def credentials() -> Iterator[None]:
    """Set the credentials that the server knows, and those of before at the end."""
    before = {name: os.environ.get(name) for name in CREDENTIALS}
    os.environ.update(CREDENTIALS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def await_answer(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a starting server answers."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise RuntimeError("the S3 server did not start")
