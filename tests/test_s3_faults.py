"""What the registry does while S3 fails: a clear error, no half-written pointer, and a rerun finishes."""

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from faulty_s3 import Proxy, faulty_s3
from s3_server import S3Server, free_port
from storyrec.errors import StorageError
from storyrec.manifest import seal_folder, verify_folder
from storyrec.registry import fetch_bundle, push_bundle, read_champion, switch_champion
from storyrec.storage import S3Storage

DAYS = (date(2026, 3, 8), date(2026, 3, 9))
BEFORE = "d" * 16


@pytest.fixture
def proxy(s3: S3Server) -> Iterator[Proxy]:
    with faulty_s3(s3.endpoint) as proxy:
        yield proxy


@pytest.fixture
def direct(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Storage:
    """The registry as it is, by a way that never fails; a champion is deployed."""
    monkeypatch.setattr("storyrec.storage.READ_SECONDS", 1)
    monkeypatch.setattr("storyrec.storage.NUM_ATTEMPTS", 2)
    storage = s3.new_storage()
    switch_champion(storage, version=BEFORE, day=DAYS[0], expected_version=None)
    return storage


@pytest.fixture
def registry(direct: S3Storage, proxy: Proxy) -> S3Storage:
    return S3Storage(direct.bucket, direct.prefix, endpoint=proxy.endpoint)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "ranker.onnx").write_bytes(bytes(200_000))
    (folder / "config.toml").write_bytes(b"")
    seal_folder(folder, day=DAYS[1])
    return folder


def deploy(registry: S3Storage, bundle: Path) -> None:
    version = push_bundle(registry, bundle)
    switch_champion(registry, version=version, day=DAYS[1], expected_version=BEFORE)


@pytest.mark.parametrize("key", ["ranker.onnx", "manifest.json", "champion.json"])
@pytest.mark.parametrize("fault", ["503", "cut upload"])
def test_a_deployment_that_s3_fails_changes_nothing_and_a_rerun_finishes(
    registry: S3Storage, direct: S3Storage, proxy: Proxy, bundle: Path, fault: str, key: str
) -> None:
    before = direct.read("champion.json")
    proxy.strike(fault, key=key)  # type: ignore[arg-type]
    with pytest.raises(StorageError, match=f"S3 did not (write|read) '.*{key}'") as caught:
        deploy(registry, bundle)
    assert proxy.befallen == 2  # tried again before it gave up
    assert proxy.endpoint in str(caught.value)
    assert direct.read("champion.json") == before
    proxy.strike("503", key=key, times=0)
    deploy(registry, bundle)
    pointer = read_champion(direct)
    assert pointer is not None
    assert pointer.champion.version == verify_folder(bundle).version


@pytest.mark.parametrize("fault", ["503", "cut upload"])
def test_a_fault_that_passes_is_not_noticed(
    registry: S3Storage, direct: S3Storage, proxy: Proxy, bundle: Path, fault: str, tmp_path: Path
) -> None:
    proxy.strike(fault, key="", times=1)  # type: ignore[arg-type]
    deploy(registry, bundle)
    assert proxy.befallen == 1
    fetch_bundle(direct, verify_folder(bundle).version, tmp_path / "copy")


@pytest.mark.parametrize("fault", ["503", "cut download", "slow download"])
def test_a_bundle_that_s3_does_not_hand_out_is_not_there_by_half(
    registry: S3Storage, proxy: Proxy, bundle: Path, tmp_path: Path, fault: str
) -> None:
    version = push_bundle(registry, bundle)
    proxy.strike(fault, key="ranker.onnx")  # type: ignore[arg-type]
    with pytest.raises(StorageError, match="S3 did not read"):
        fetch_bundle(registry, version, tmp_path / "copy")
    assert proxy.befallen > 0
    assert not (tmp_path / "copy").exists()
    assert not list(tmp_path.glob(".copy*"))
    proxy.strike("503", key="", times=0)
    fetch_bundle(registry, version, tmp_path / "copy")
    assert verify_folder(tmp_path / "copy").version == version


def test_a_refused_connection_is_a_clear_error(direct: S3Storage, bundle: Path) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    registry = S3Storage(direct.bucket, direct.prefix, endpoint=endpoint)
    with pytest.raises(StorageError, match="S3 did not") as caught:
        push_bundle(registry, bundle)
    assert endpoint in str(caught.value)
    assert caught.value.remedy
