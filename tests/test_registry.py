"""The registry on a folder and on a running S3 server."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from threading import Barrier

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3_server import S3Server
from storyrec.config import Config, Locations
from storyrec.errors import Conflict, ModelError, StorageError
from storyrec.manifest import seal_folder, verify_folder
from storyrec.pointer import Canary, Champion, Change, Pointer
from storyrec.registry import (
    champion_before,
    fetch_bundle,
    fetch_champion,
    push_bundle,
    read_champion,
    rollback,
    switch_champion,
)
from storyrec.storage import FolderStorage, S3Storage, Storage

DAYS = tuple(date(2026, 3, day) for day in range(8, 13))


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "registry")
    server: S3Server = request.getfixturevalue("s3")
    return server.new_storage()


def make_bundle(folder: Path, *, day: date, content: bytes = b"weights") -> str:
    (folder / "items").mkdir(parents=True)
    (folder / "ranker.onnx").write_bytes(content)
    (folder / "items" / "story_ids.npy").write_bytes(b"\x00")
    (folder / "training.json").write_bytes(b"{}")
    return seal_folder(folder, day=day).version


def deploy(storage: Storage, folder: Path, *, day: date, expected: str | None) -> str:
    version = make_bundle(folder, day=day)
    push_bundle(storage, folder)
    switch_champion(storage, version=version, day=day, expected_version=expected, why="good", blessing="b" * 64)
    return version


def test_the_pointer_follows_the_deployments(storage: Storage, tmp_path: Path) -> None:
    assert read_champion(storage) is None
    assert champion_before(storage, DAYS[0]) is None
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    second = deploy(storage, tmp_path / "2", day=DAYS[1], expected=first)
    pointer = json.loads(storage.read("champion.json"))
    assert (pointer["version"], pointer["day"]) == (second, "2026-03-09")
    assert (pointer["previous"]["version"], pointer["previous"]["day"]) == (first, "2026-03-08")
    changes = [(entry["action"], entry["version"], entry["why"], entry["blessing"]) for entry in pointer["changes"]]
    assert changes == [("deploy", first, "good", "b" * 64), ("deploy", second, "good", "b" * 64)]
    assert all("@" in entry["by"] for entry in pointer["changes"])
    assert pointer["changes"][-1]["at"] == pointer["deployed_at"]
    assert [entry["version"] for entry in pointer["history"]] == [first]
    read = read_champion(storage)
    assert read is not None
    assert Pointer.from_json(read.to_json()) == read


def test_a_day_run_again_finds_the_champion_it_was_judged_against(storage: Storage, tmp_path: Path) -> None:
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    second = deploy(storage, tmp_path / "2", day=DAYS[1], expected=first)
    deploy(storage, tmp_path / "3", day=DAYS[3], expected=second)
    found = [champion_before(storage, day) for day in DAYS]
    assert [champion and champion.version for champion in found[:4]] == [None, first, second, second]


def test_fetch_champion_copies_the_bundle_of_an_earlier_day(storage: Storage, tmp_path: Path) -> None:
    endpoint = storage.endpoint if isinstance(storage, S3Storage) else ""
    config = Config(locations=Locations(registry=storage.url, s3_endpoint=endpoint))
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    deploy(storage, tmp_path / "2", day=DAYS[1], expected=first)
    assert fetch_champion(config, day=DAYS[0], out=tmp_path / "none") is None
    assert not (tmp_path / "none").exists()
    assert fetch_champion(config, day=DAYS[1], out=tmp_path / "copy") == tmp_path / "copy"
    assert verify_folder(tmp_path / "copy").version == first
    assert (tmp_path / "copy" / "ranker.onnx").read_bytes() == b"weights"


def test_a_switch_that_expects_another_champion_changes_nothing(storage: Storage, tmp_path: Path) -> None:
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    for expected in (None, "f" * 16):
        with pytest.raises(Conflict, match=f"the champion is {first}"):
            switch_champion(storage, version="e" * 16, day=DAYS[1], expected_version=expected)
    read = read_champion(storage)
    assert read is not None
    assert read.champion.version == first


@pytest.mark.parametrize("there_before", [False, True])
def test_of_two_deployers_one_wins(storage: Storage, tmp_path: Path, there_before: bool) -> None:
    expected = deploy(storage, tmp_path / "0", day=DAYS[0], expected=None) if there_before else None
    versions = [make_bundle(tmp_path / str(day), day=day) for day in DAYS[1:]]
    barrier = Barrier(len(versions))

    def attempt(number: int) -> bool:
        push_bundle(storage, tmp_path / str(DAYS[1:][number]))
        barrier.wait()
        try:
            switch_champion(storage, version=versions[number], day=DAYS[1:][number], expected_version=expected)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(len(versions)) as pool:
        won = list(pool.map(attempt, range(len(versions))))
    assert sum(won) == 1
    pointer = read_champion(storage)
    assert pointer is not None
    assert pointer.champion.version == versions[won.index(True)]
    assert [champion.version for champion in pointer.history] == ([expected] if expected else [])


def test_rollback_deploys_the_champion_before_and_remembers_the_one_that_went(storage: Storage, tmp_path: Path) -> None:
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    second = deploy(storage, tmp_path / "2", day=DAYS[1], expected=first)
    pointer = rollback(storage, why="clicks fell")
    assert read_champion(storage) == pointer
    assert [change.action for change in pointer.changes] == ["deploy", "deploy", "rollback"]
    assert pointer.changes[-1].version == first
    assert pointer.changes[-1].why == f"rolled back from {second} of 2026-03-09: clicks fell"
    assert (pointer.champion.version, pointer.champion.day) == (first, DAYS[0])
    assert pointer.history == ()
    assert [champion.version for champion in pointer.withdrawn] == [second]
    champion = champion_before(storage, DAYS[2])
    assert champion is not None
    assert champion.version == first
    with pytest.raises(ModelError, match="no earlier champion"):
        rollback(storage)


def test_rollback_loses_against_a_deployment_in_between(storage: Storage, tmp_path: Path) -> None:
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    second = deploy(storage, tmp_path / "2", day=DAYS[1], expected=first)
    read = storage.read_versioned

    def read_then_be_overtaken(key: str) -> tuple[bytes, str] | None:
        found = read(key)
        storage.read_versioned = read  # type: ignore[method-assign]
        switch_champion(storage, version="d" * 16, day=DAYS[2], expected_version=second)
        return found

    storage.read_versioned = read_then_be_overtaken  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        rollback(storage)
    pointer = read_champion(storage)
    assert pointer is not None
    assert (pointer.champion.version, pointer.withdrawn) == ("d" * 16, ())


def test_rollback_needs_something_to_go_back_to(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nothing is deployed"):
        rollback(storage)
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    second = deploy(storage, tmp_path / "2", day=DAYS[1], expected=first)
    storage.delete(f"bundles/{first}/manifest.json")
    with pytest.raises(ModelError, match=first):
        rollback(storage)
    pointer = read_champion(storage)
    assert pointer is not None
    assert pointer.champion.version == second


def test_an_upload_killed_half_way_is_no_bundle_and_a_rerun_finishes_it(storage: Storage, tmp_path: Path) -> None:
    version = make_bundle(tmp_path / "bundle", day=DAYS[0])

    class Killed(RuntimeError):
        pass

    written = 0
    write = storage.write

    def write_two(key: str, content: bytes) -> None:
        nonlocal written
        written += 1
        if written > 3:  # the mark of the upload, and two files
            raise Killed
        write(key, content)

    storage.write = write_two  # type: ignore[method-assign]
    with pytest.raises(Killed):
        push_bundle(storage, tmp_path / "bundle")
    assert len(storage.list(f"bundles/{version}/")) == 2
    with pytest.raises(ModelError, match="never finished"):
        fetch_bundle(storage, version, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()

    storage.write = write  # type: ignore[method-assign]
    assert push_bundle(storage, tmp_path / "bundle") == version
    fetch_bundle(storage, version, tmp_path / "copy")
    assert verify_folder(tmp_path / "copy").version == version


def test_a_bundle_is_written_once(storage: Storage, tmp_path: Path) -> None:
    version = make_bundle(tmp_path / "bundle", day=DAYS[0])
    push_bundle(storage, tmp_path / "bundle")
    before = {key: storage.read(key) for key in storage.list("bundles/")}
    (tmp_path / "bundle" / "training.json").write_bytes(b'{"seconds": 3}')
    assert seal_folder(tmp_path / "bundle", day=DAYS[0]).version == version  # a record is no part of the model
    assert push_bundle(storage, tmp_path / "bundle") == version
    assert {key: storage.read(key) for key in storage.list("bundles/")} == before


@pytest.mark.parametrize("damage", ["changed", "missing", "other manifest", "no json"])
def test_a_damaged_bundle_is_refused_and_nothing_is_left(storage: Storage, tmp_path: Path, damage: str) -> None:
    version = make_bundle(tmp_path / "bundle", day=DAYS[0])
    push_bundle(storage, tmp_path / "bundle")
    prefix = f"bundles/{version}"
    if damage == "changed":
        storage.write(f"{prefix}/ranker.onnx", b"weighty")
    elif damage == "missing":
        storage.delete(f"{prefix}/ranker.onnx")
    elif damage == "other manifest":
        make_bundle(tmp_path / "other", day=DAYS[1])
        storage.write(f"{prefix}/manifest.json", (tmp_path / "other" / "manifest.json").read_bytes())
    else:
        storage.write(f"{prefix}/manifest.json", b"{")
    with pytest.raises(ModelError) as caught:
        fetch_bundle(storage, version, tmp_path / "copy")
    assert storage.url in str(caught.value)
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_does_not_match_its_manifest_is_not_pushed(storage: Storage, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", day=DAYS[0])
    (tmp_path / "bundle" / "ranker.onnx").write_bytes(b"tampered")
    with pytest.raises(ModelError, match=r"ranker\.onnx was changed"):
        push_bundle(storage, tmp_path / "bundle")
    assert storage.list() == []


FORMAT_1 = {
    "version": "e" * 16,
    "day": "2026-03-09",
    "deployed_at": "2026-03-10T04:00:00+00:00",
    "previous": {"version": "d" * 16, "day": "2026-03-08"},
    "verdict": {"champion": "d" * 16, "reasons": ["good"]},
    "history": [{"version": "d" * 16, "day": "2026-03-08", "deployed_at": "2026-03-09T04:00:00+00:00"}],
    "withdrawn": [{"version": "f" * 16, "day": "2026-03-07", "deployed_at": "2026-03-08T04:00:00+00:00"}],
}


def test_a_pointer_of_format_1_is_read_and_its_next_change_writes_format_2(storage: Storage, tmp_path: Path) -> None:
    storage.write("champion.json", json.dumps(FORMAT_1).encode())
    pointer = read_champion(storage)
    assert pointer is not None
    assert (pointer.champion.version, pointer.champion.day, pointer.canary) == ("e" * 16, DAYS[1], None)
    assert pointer.previous is not None
    assert (pointer.previous.version, pointer.changes) == ("d" * 16, ())
    assert [champion.version for champion in pointer.withdrawn] == ["f" * 16]
    version = deploy(storage, tmp_path / "1", day=DAYS[2], expected="e" * 16)
    written = json.loads(storage.read("champion.json"))
    assert written["format"] == 2
    assert [entry["version"] for entry in written["history"]] == ["d" * 16, "e" * 16]
    assert [entry["version"] for entry in written["changes"]] == [version]


def test_a_pointer_of_a_later_format_is_refused_in_words(storage: Storage) -> None:
    storage.write("champion.json", json.dumps(FORMAT_1 | {"format": 3}).encode())
    with pytest.raises(ModelError, match="format 3, this program reads formats 1 and 2"):
        read_champion(storage)


@given(
    days=st.lists(st.dates(), min_size=1, max_size=5),
    texts=st.lists(st.text(max_size=30), min_size=5, max_size=5),
    with_canary=st.booleans(),
)
def test_every_pointer_survives_its_json(days: list[date], texts: list[str], with_canary: bool) -> None:
    champions = tuple(Champion(f"{number:016x}", day, texts[0]) for number, day in enumerate(days))
    change = Change(texts[1], texts[2], "promote", "a" * 16, texts[3], texts[4])
    canary = Canary("c" * 16, days[-1], texts[0], share=0.05, since=texts[1]) if with_canary else None
    pointer = Pointer(champions[0], canary, champions, champions[1:], (change,))
    assert Pointer.from_json(pointer.to_json()) == pointer


RACER = """
import sys
from datetime import date
from storyrec.errors import Conflict
from storyrec.registry import switch_champion
from storyrec.storage import open_storage

storage = open_storage(sys.argv[1], s3_endpoint=sys.argv[2])
storage.read_versioned("champion.json")  # imports and connections are made before the start
print("ready", flush=True)
sys.stdin.readline()
try:
    switch_champion(storage, version=sys.argv[3], day=date(2026, 3, 9), expected_version=sys.argv[4], why="raced")
except Conflict:
    print("lost")
else:
    print("won")
"""


def test_of_two_deployers_in_two_processes_one_wins(storage: Storage, tmp_path: Path) -> None:
    expected = deploy(storage, tmp_path / "0", day=DAYS[0], expected=None)
    endpoint = storage.endpoint if isinstance(storage, S3Storage) else ""
    for attempt in range(3):
        versions = [f"{2 * attempt + number + 1:016x}" for number in range(2)]
        command = [sys.executable, "-c", RACER, storage.url, endpoint]
        racers = [
            subprocess.Popen([*command, version, expected], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for version in versions
        ]
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
        assert sorted(said) == ["lost", "won"]
        pointer = read_champion(storage)
        assert pointer is not None
        assert pointer.champion.version == versions[said.index("won")]
        assert len(pointer.changes) == attempt + 2
        expected = pointer.champion.version


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"version": "a", "day": "never", "deployed_at": ""}'])
def test_a_damaged_pointer_is_named(storage: Storage, content: bytes) -> None:
    storage.write("champion.json", content)
    with pytest.raises(ModelError, match=r"champion\.json"):
        read_champion(storage)


def test_the_version_follows_from_model_files_and_day(tmp_path: Path) -> None:
    versions = {
        make_bundle(tmp_path / "a", day=DAYS[0]),
        make_bundle(tmp_path / "b", day=DAYS[1]),
        make_bundle(tmp_path / "c", day=DAYS[0], content=b"other"),
    }
    assert len(versions) == 3
    assert make_bundle(tmp_path / "d", day=DAYS[0]) in versions


@pytest.mark.parametrize("name", ["../outside", "/etc/outside"])
def test_a_manifest_cannot_name_files_outside_of_the_bundle(tmp_path: Path, name: str) -> None:
    make_bundle(tmp_path / "bundle", day=DAYS[0])
    manifest = verify_folder(tmp_path / "bundle")
    evil = replace(manifest, files={**manifest.files, name: "0" * 64})
    (tmp_path / "bundle" / "manifest.json").write_bytes(evil.to_json())
    with pytest.raises(ModelError, match="outside of the bundle"):
        verify_folder(tmp_path / "bundle")


def test_a_file_beside_the_manifest_is_refused(tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", day=DAYS[0])
    (tmp_path / "bundle" / "extra.npy").write_bytes(b"")
    with pytest.raises(ModelError, match=r"extra\.npy is not in the manifest"):
        verify_folder(tmp_path / "bundle")


def test_a_registry_that_refuses_ends_in_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    make_bundle(tmp_path / "bundle", day=DAYS[0])
    with pytest.raises(StorageError, match="cannot write"):
        push_bundle(FolderStorage(tmp_path / "file"), tmp_path / "bundle")


def test_a_deployment_between_reading_and_writing_the_pointer_wins(storage: Storage, tmp_path: Path) -> None:
    first = deploy(storage, tmp_path / "1", day=DAYS[0], expected=None)
    read = storage.read_versioned
    quicker: list[str] = []

    def read_then_be_overtaken(key: str) -> tuple[bytes, str] | None:
        found = read(key)
        if not quicker:
            quicker.append("d" * 16)
            switch_champion(storage, version=quicker[0], day=DAYS[1], expected_version=first)
        return found

    storage.read_versioned = read_then_be_overtaken  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        switch_champion(storage, version="e" * 16, day=DAYS[2], expected_version=first)
    pointer = read_champion(storage)
    assert pointer is not None
    assert pointer.champion.version == "d" * 16
