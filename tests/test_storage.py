"""Storage on a folder and on a running S3 server: whole writes, one winner, clear refusals."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from s3_server import S3Server, free_port
from storyrec.errors import ConfigError, Conflict, StorageError
from storyrec.storage import FolderStorage, S3Storage, Storage, open_storage, write_file, write_folder


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "root")
    server: S3Server = request.getfixturevalue("s3")
    return server.new_storage()


def test_what_was_written_is_read_back_listed_and_deleted(storage: Storage) -> None:
    storage.write("runs/b.json", b"two")
    storage.write("runs/a.json", b"one")
    storage.write("run.json", b"other")
    assert storage.list() == ["run.json", "runs/a.json", "runs/b.json"]
    assert storage.list("runs/") == ["runs/a.json", "runs/b.json"]
    assert storage.list("runs/a") == ["runs/a.json"]
    assert storage.list("nothing/") == []
    assert storage.read("runs/a.json") == b"one"
    assert storage.exists("runs/a.json")
    assert not storage.exists("runs")
    storage.write("runs/a.json", b"new")
    assert storage.read("runs/a.json") == b"new"
    storage.delete("runs/a.json")
    storage.delete("runs/a.json")
    assert not storage.exists("runs/a.json")
    assert storage.read_versioned("runs/a.json") is None


def test_a_large_object_is_read_here_and_there(storage: Storage) -> None:
    content = bytes(range(256)) * 40_000
    storage.write("large.bin", content)
    file = storage.open("large.bin")
    assert file is not None
    with file:
        assert file.read(10) == content[:10]
        assert file.seek(-5, os.SEEK_END) == len(content) - 5
        assert file.read() == content[-5:]
        file.seek(300_001)
        file.seek(7, os.SEEK_CUR)
        assert file.read(500_000) == content[300_008:800_008]
        file.seek(len(content))
        assert file.read(1) == b""
    storage.write("small.bin", b"small")
    small = storage.open("small.bin")
    assert small is not None
    with small:
        assert small.read() == b"small"
    assert storage.open("missing.bin") is None


def test_an_object_that_changes_while_it_is_read_is_an_error(s3: S3Server) -> None:
    storage = s3.new_storage()
    storage.write("large.bin", b"a" * 10_000_000)
    file = storage.open("large.bin")
    assert file is not None
    assert file.read(1) == b"a"
    storage.write("large.bin", b"b" * 10_000_000)
    file.seek(5_000_000)
    with pytest.raises(StorageError, match=r"did not read 'large\.bin'"):
        file.read(1)


def test_reading_what_is_not_there_names_key_and_place(storage: Storage) -> None:
    with pytest.raises(StorageError, match=r"there is no 'missing\.json'") as caught:
        storage.read("missing.json")
    assert storage.url in str(caught.value)


def test_a_conditional_write_needs_the_current_version(storage: Storage) -> None:
    storage.write_if("pointer", b"one", version=None)
    with pytest.raises(Conflict):
        storage.write_if("pointer", b"again", version=None)
    found = storage.read_versioned("pointer")
    assert found is not None
    storage.write_if("pointer", b"two", version=found[1])
    with pytest.raises(Conflict):
        storage.write_if("pointer", b"late", version=found[1])
    assert storage.read("pointer") == b"two"


def test_a_conditional_write_over_a_vanished_object_conflicts(storage: Storage) -> None:
    storage.write("pointer", b"one")
    found = storage.read_versioned("pointer")
    assert found is not None
    storage.delete("pointer")
    with pytest.raises(Conflict):
        storage.write_if("pointer", b"two", version=found[1])
    assert not storage.exists("pointer")


@pytest.mark.parametrize("there_before", [False, True])
def test_of_racing_threads_one_wins(storage: Storage, there_before: bool) -> None:
    version = None
    if there_before:
        storage.write("pointer", b"old")
        found = storage.read_versioned("pointer")
        assert found is not None
        version = found[1]
    barrier = Barrier(8)

    def attempt(number: int) -> bool:
        barrier.wait()
        try:
            storage.write_if("pointer", b"writer %d" % number, version=version)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert sum(won) == 1
    assert storage.read("pointer") == b"writer %d" % won.index(True)


def _count_up(url: str, endpoint: str, times: int) -> None:
    storage = open_storage(url, s3_endpoint=endpoint)
    for _ in range(times):
        while True:
            found = storage.read_versioned("counter")
            value = int(found[0]) if found else 0
            try:
                storage.write_if("counter", b"%d" % (value + 1), version=found[1] if found else None)
            except Conflict:
                continue
            break


def test_two_processes_lose_no_update(storage: Storage) -> None:
    endpoint = storage.endpoint if isinstance(storage, S3Storage) else ""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count_up, args=(storage.url, endpoint, 25)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert storage.read("counter") == b"50"


def test_a_folder_goes_up_and_comes_down_whole(storage: Storage, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "items").mkdir(parents=True)
    (source / "manifest.json").write_bytes(b"{}")
    (source / "items" / "a.npy").write_bytes(b"\x00\x01")
    (source / ".manifest.json.x1").write_bytes(b"left over")
    storage.upload(source, "bundles/v1", last="manifest.json")
    assert storage.list("bundles/") == ["bundles/v1/items/a.npy", "bundles/v1/manifest.json"]
    storage.download("bundles/v1", tmp_path / "copy")
    assert (tmp_path / "copy" / "items" / "a.npy").read_bytes() == b"\x00\x01"
    assert (tmp_path / "copy" / "manifest.json").read_bytes() == b"{}"


def test_upload_writes_the_named_file_last(tmp_path: Path) -> None:
    written: list[str] = []

    class Recorded(FolderStorage):
        def write(self, key: str, content: bytes) -> None:
            written.append(key)
            super().write(key, content)

    for name in ("a.json", "manifest.json", "z.json"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes(b"x")
    Recorded(tmp_path / "root").upload(tmp_path / "source", "v", last="manifest.json")
    assert written == ["v/a.json", "v/z.json", "v/manifest.json"]


def test_an_s3_listing_of_many_keys_is_complete(s3: S3Server) -> None:
    storage = s3.new_storage("deep/prefix")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: storage.write(f"k/{number:04d}", b""), range(1_005)))
    assert len(storage.list("k/")) == 1_005


def test_an_endpoint_that_refuses_ends_in_a_storage_error(s3: S3Server) -> None:
    storage = S3Storage("bucket", "prefix", endpoint=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(StorageError, match=r"locations\.s3_endpoint"):
        storage.read("champion.json")


@pytest.mark.parametrize("endpoint", ["not an address", "127.0.0.1:9000"])
def test_an_endpoint_that_is_no_address_ends_in_a_storage_error(endpoint: str) -> None:
    with pytest.raises(StorageError, match=r"locations\.s3_endpoint"):
        S3Storage("bucket", "prefix", endpoint=endpoint).list()


def test_a_missing_bucket_is_no_conflict(s3: S3Server) -> None:
    storage = S3Storage("no-such-bucket", "prefix", endpoint=s3.endpoint)
    with pytest.raises(StorageError, match="NoSuchBucket") as caught:
        storage.write_if("champion.json", b"{}", version=None)
    assert not isinstance(caught.value, Conflict)


@pytest.mark.parametrize("url", ["s3://", "http://host/path", "s3:///prefix"])
def test_a_location_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="locations of the settings"):
        open_storage(url)


def test_file_urls_and_plain_paths_name_folders(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/a", f"{tmp_path}/a"):
        storage = open_storage(url)
        assert isinstance(storage, FolderStorage)
        assert storage.folder == tmp_path / "a"


def _run_on_a_full_disk(code: str, folder: Path) -> str:
    """Run code in a process whose files cannot grow beyond 1,000 bytes, as on a full disk."""
    script = """
        import resource, signal, sys
        from pathlib import Path
        from storyrec.errors import StorageError
        from storyrec.storage import FolderStorage, write_file, write_folder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
        folder = Path(sys.argv[1])
        try:
    """
    body = textwrap.dedent(script) + textwrap.indent(textwrap.dedent(code), "    ")
    body += "\nexcept StorageError as error:\n    print('refused:', error)\n"
    done = subprocess.run([sys.executable, "-c", body, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    write_file(tmp_path / "champion.json", b"old")
    said = _run_on_a_full_disk("write_file(folder / 'champion.json', b'x' * 5_000)", tmp_path)
    assert said.startswith("refused:")
    assert "free space" in said
    assert str(tmp_path / "champion.json") in said
    assert (tmp_path / "champion.json").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["champion.json"]


def test_a_full_disk_keeps_the_old_pointer(tmp_path: Path) -> None:
    storage = FolderStorage(tmp_path)
    storage.write("champion.json", b"old")
    said = _run_on_a_full_disk(
        """
        storage = FolderStorage(folder)
        content, version = storage.read_versioned("champion.json")
        storage.write_if("champion.json", b"x" * 5_000, version=version)
        """,
        tmp_path,
    )
    assert said.startswith("refused:")
    assert storage.read("champion.json") == b"old"
    assert storage.list() == ["champion.json"]


def test_a_full_disk_keeps_the_old_folder(tmp_path: Path) -> None:
    with write_folder(tmp_path / "bundle") as folder:
        (folder / "ranker.onnx").write_bytes(b"old")
    said = _run_on_a_full_disk(
        """
        with write_folder(folder / "bundle") as new:
            (new / "ranker.onnx").write_bytes(b"x" * 5_000)
        """,
        tmp_path,
    )
    assert said.startswith("refused:")
    assert (tmp_path / "bundle" / "ranker.onnx").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "dual"
    with pytest.raises(RuntimeError, match="killed"), write_folder(target) as folder:  # noqa: PT012
        (folder / "dual.safetensors").write_bytes(b"half")
        assert not target.exists()
        assert FolderStorage(tmp_path).list() == []
        raise RuntimeError("killed")
    assert list(tmp_path.iterdir()) == []
    with write_folder(target) as folder:
        (folder / "dual.safetensors").write_bytes(b"one")
        (folder / "extra").write_bytes(b"one")
    with write_folder(target) as folder:
        (folder / "dual.safetensors").write_bytes(b"two")
    assert [path.name for path in target.iterdir()] == ["dual.safetensors"]
    assert (target / "dual.safetensors").read_bytes() == b"two"
    assert [path.name for path in tmp_path.iterdir()] == ["dual"]


def test_what_a_killed_writer_left_is_no_key_and_goes_away(tmp_path: Path) -> None:
    left = tmp_path / ".dual.a1b2c3"
    left.mkdir()
    (left / "dual.safetensors").write_bytes(b"half")
    (tmp_path / ".champion.json.x").write_bytes(b"half")
    assert FolderStorage(tmp_path).list() == []
    with write_folder(tmp_path / "dual") as folder:
        (folder / "dual.safetensors").write_bytes(b"whole")
    assert not left.exists()
    assert FolderStorage(tmp_path).list() == ["dual/dual.safetensors"]


@pytest.mark.parametrize("verb", ["write", "delete", "read"])
def test_a_path_that_refuses_ends_in_a_storage_error(tmp_path: Path, verb: str) -> None:
    storage = FolderStorage(tmp_path)
    if verb == "write":
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StorageError, match="cannot write"):
            storage.write("file/key", b"x")
    elif verb == "delete":
        (tmp_path / "key").mkdir()
        with pytest.raises(StorageError, match="cannot delete"):
            storage.delete("key")
    else:
        os.symlink("loop", tmp_path / "loop")
        with pytest.raises(StorageError, match="cannot read"):
            storage.read("loop")
