"""Listing, verifying and tidying a registry, and promotion by hand."""

import json
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from s3_server import S3Server
from storyrec.cli import app
from storyrec.config import Config, Locations, save_config
from storyrec.errors import Conflict, ModelError
from storyrec.manifest import seal_folder
from storyrec.promote import promote, set_canary, withdraw_canary
from storyrec.registry import fetch_bundle, push_bundle, read_champion, rollback, switch_champion
from storyrec.registry_care import (
    NUM_KEPT,
    find_damage,
    find_garbage,
    list_bundles,
    remove_garbage,
    verify_bundle,
)
from storyrec.storage import FolderStorage, Storage

FIRST = date(2026, 3, 1)
NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=2)


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "registry")
    server: S3Server = request.getfixturevalue("s3")
    return server.new_storage()


def push(storage: Storage, folder: Path, *, number: int, blessed: bool | None = True, judged: str | None = None) -> str:
    folder = folder / str(number)
    (folder / "items").mkdir(parents=True)
    (folder / "ranker.onnx").write_bytes(b"weights" * 100)
    (folder / "items" / "story_ids.npy").write_bytes(b"\x00")
    version = seal_folder(folder, day=FIRST + timedelta(days=number)).version
    verdict = json.dumps({"blessed": blessed, "challenger": judged or version}).encode()
    push_bundle(storage, folder, records={} if blessed is None else {"verdict.json": verdict})
    return version


def deploy(storage: Storage, folder: Path, *, number: int) -> str:
    version = push(storage, folder, number=number)
    pointer = read_champion(storage)
    day = FIRST + timedelta(days=number)
    switch_champion(storage, version=version, day=day, expected_version=pointer.champion.version if pointer else None)
    return version


def test_the_list_tells_day_size_blessing_and_role(storage: Storage, tmp_path: Path) -> None:
    assert list_bundles(storage) == ()
    versions = [deploy(storage, tmp_path, number=number) for number in range(4)]
    rollback(storage)
    other, refused = push(storage, tmp_path, number=4, blessed=None), push(storage, tmp_path, number=5, blessed=False)
    set_canary(storage, versions[0], share=0.05, why="a try")
    storage.write("bundles/0123456789abcdef/ranker.onnx", b"half")
    held = {bundle.version: bundle for bundle in list_bundles(storage)}
    roles = [held[version].role for version in (*versions, other, refused)]
    assert roles == ["canary", "previous", "champion", "withdrawn", "", ""]
    assert [held[version].blessed for version in (versions[0], other, refused)] == [True, None, False]
    assert held[versions[1]].day == FIRST + timedelta(days=1)
    sizes = {key: len(storage.read(key)) for key in storage.list(f"bundles/{versions[1]}/")}
    assert (held[versions[1]].num_files, held[versions[1]].num_bytes) == (len(sizes), sum(sizes.values()))
    assert held["0123456789abcdef"].day is None


def test_gc_removes_only_what_nobody_needs(storage: Storage, tmp_path: Path) -> None:
    deployed = [deploy(storage, tmp_path, number=number) for number in range(NUM_KEPT + 3)]
    orphan = push(storage, tmp_path, number=50)
    canary = push(storage, tmp_path, number=51)
    set_canary(storage, canary, share=0.05, why="a try")
    assert find_garbage(storage, at=NOW) == ()  # all were pushed just now
    garbage = find_garbage(storage, at=LATER)
    assert {bundle.version for bundle in garbage} == {*deployed[:2], orphan}
    for bundle in garbage:
        assert bundle.num_bytes == sum(len(storage.read(key)) for key in storage.list(f"bundles/{bundle.version}/"))
    before = {key: storage.read(key) for key in storage.list() if not any(g.version in key for g in garbage)}
    assert remove_garbage(storage, garbage, at=LATER) == garbage
    assert {key: storage.read(key) for key in storage.list()} == before
    for version in (*deployed[2:], canary):
        verify_bundle(storage, version)
    rollback(storage)  # and again and again
    assert find_garbage(storage, at=LATER)[0].version == deployed[-1]


def test_gc_leaves_an_upload_alone_until_it_is_old(storage: Storage, tmp_path: Path) -> None:
    deploy(storage, tmp_path, number=0)
    version = push(storage, tmp_path, number=1)
    storage.delete(f"bundles/{version}/manifest.json")  # as if the push were on its last write
    assert find_garbage(storage, at=NOW + timedelta(hours=23)) == ()
    (garbage,) = find_garbage(storage, at=LATER)
    assert (garbage.version, garbage.why) == (version, "its upload never finished")
    push_bundle(storage, tmp_path / "1")
    assert find_garbage(storage, at=NOW + timedelta(hours=23)) == ()
    storage.write(f"uploads/{version}", b"some day")  # unreadable: kept
    assert find_garbage(storage, at=LATER) == ()


def test_gc_leaves_what_was_pushed_or_promoted_after_it_looked(storage: Storage, tmp_path: Path) -> None:
    deploy(storage, tmp_path, number=0)
    versions = [push(storage, tmp_path, number=number) for number in (1, 2, 3)]
    garbage = find_garbage(storage, at=LATER)
    assert {bundle.version for bundle in garbage} == set(versions)
    promote(storage, versions[0], why="by hand")
    storage.write(f"uploads/{versions[1]}", LATER.isoformat().encode())  # pushed again
    gone = remove_garbage(storage, garbage, at=LATER)
    assert [bundle.version for bundle in gone] == [versions[2]]
    for version in versions[:2]:
        verify_bundle(storage, version)


def test_what_a_gc_that_ended_half_way_leaves_is_no_bundle(storage: Storage, tmp_path: Path) -> None:
    deploy(storage, tmp_path, number=0)
    version = push(storage, tmp_path, number=1)
    delete, gone = storage.delete, list[str]()

    def end_after_one(key: str) -> None:
        if gone:
            raise KeyboardInterrupt
        gone.append(key)
        delete(key)

    storage.delete = end_after_one  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        remove_garbage(storage, find_garbage(storage, at=LATER), at=LATER)
    with pytest.raises(ModelError, match=r"has no manifest\.json"):
        verify_bundle(storage, version)
    storage.delete = delete  # type: ignore[method-assign]
    remove_garbage(storage, find_garbage(storage, at=LATER), at=LATER)
    assert not storage.list(f"bundles/{version}/")


def test_gc_removes_nothing_where_the_pointer_is_damaged(storage: Storage, tmp_path: Path) -> None:
    version = push(storage, tmp_path, number=0)
    garbage = find_garbage(storage, at=LATER)
    storage.write("champion.json", b"{")
    with pytest.raises(ModelError, match=r"champion\.json"):
        find_garbage(storage, at=LATER)
    with pytest.raises(ModelError, match=r"champion\.json"):
        remove_garbage(storage, garbage, at=LATER)
    verify_bundle(storage, version)


def test_verify_finds_each_damage_and_only_that(storage: Storage, tmp_path: Path) -> None:
    versions = [deploy(storage, tmp_path, number=number) for number in range(5)]
    assert find_damage(storage) == {}
    storage.write(f"bundles/{versions[0]}/ranker.onnx", b"tampered")
    storage.delete(f"bundles/{versions[1]}/items/story_ids.npy")
    storage.write(f"bundles/{versions[2]}/extra.npy", b"")
    storage.delete(f"bundles/{versions[3]}/manifest.json")
    fresh = push(storage, tmp_path, number=9)
    storage.delete(f"bundles/{fresh}/manifest.json")  # may be on its way
    problems = find_damage(storage)
    assert list(problems) == sorted(versions[:4])
    assert problems[versions[0]] == f"bundle {versions[0]} is damaged: ranker.onnx was changed"
    assert problems[versions[1]] == f"bundle {versions[1]} is damaged: items/story_ids.npy is missing"
    assert problems[versions[2]] == f"bundle {versions[2]} is damaged: extra.npy is not in the manifest"
    assert "has no manifest.json" in problems[versions[3]]


def test_a_pointer_to_nothing_is_damage(storage: Storage, tmp_path: Path) -> None:
    version = deploy(storage, tmp_path, number=0)
    for key in storage.list("bundles/"):
        storage.delete(key)
    assert list(find_damage(storage)) == [version]


def test_promotion_makes_a_blessed_bundle_the_champion_and_says_who_and_why(storage: Storage, tmp_path: Path) -> None:
    first, second = (deploy(storage, tmp_path, number=number) for number in range(2))
    rollback(storage)
    pointer = promote(storage, second, why="it was the network")
    assert read_champion(storage) == pointer
    assert pointer.champion.version == second
    assert [champion.version for champion in pointer.history] == [first]
    assert pointer.withdrawn == ()  # a rerun of its day says "already deployed" again
    change = pointer.changes[-1]
    assert (change.action, change.version, change.why) == ("promote", second, "it was the network")
    assert change.blessing is not None
    fetch_bundle(storage, second, tmp_path / "copy")
    with pytest.raises(ModelError, match="is the champion"):
        promote(storage, second, why="")


def test_what_is_damaged_unblessed_or_not_there_is_not_promoted(storage: Storage, tmp_path: Path) -> None:
    champion = deploy(storage, tmp_path, number=0)
    damaged = push(storage, tmp_path, number=1)
    storage.write(f"bundles/{damaged}/ranker.onnx", b"tampered")
    bad = {
        damaged: "ranker.onnx was changed",
        push(storage, tmp_path, number=2, blessed=False): "has no blessing",
        push(storage, tmp_path, number=3, blessed=None): "has no blessing",
        push(storage, tmp_path, number=4, judged=champion): "has no blessing",
        "0" * 16: "is not in the registry",
    }
    before = storage.read("champion.json")
    for version, said in bad.items():
        for change in (promote, partial(set_canary, share=0.05)):
            with pytest.raises(ModelError, match=said):
                change(storage, version, why="")
    with pytest.raises(ModelError, match="is the champion"):
        set_canary(storage, champion, share=0.05, why="")
    assert storage.read("champion.json") == before


def test_a_canary_comes_is_promoted_or_goes(storage: Storage, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not the canary"):
        withdraw_canary(storage, "a" * 16, why="")
    with pytest.raises(ModelError, match="nothing is deployed"):
        set_canary(storage, "a" * 16, share=0.05, why="")
    first = deploy(storage, tmp_path, number=0)
    second = push(storage, tmp_path, number=1)
    with pytest.raises(Conflict, match=f"the champion is {first}"):
        set_canary(storage, second, share=0.05, why="", beside="a" * 16)
    pointer = set_canary(storage, second, share=0.05, why="a try", beside=first)
    assert pointer.canary is not None
    assert (pointer.champion.version, pointer.canary.version, pointer.history) == (first, second, ())
    assert (pointer.canary.share, pointer.canary.since) == (0.05, pointer.canary.deployed_at)
    pointer = withdraw_canary(storage, second, why="slow")
    assert (pointer.canary, [gone.version for gone in pointer.withdrawn]) == (None, [second])
    pointer = set_canary(storage, second, share=0.0, why="mended")
    assert pointer.withdrawn == ()
    pointer = promote(storage, second, why="better")
    assert (pointer.champion.version, pointer.canary) == (second, None)
    assert [change.action for change in pointer.changes] == ["deploy", "canary", "withdraw", "canary", "promote"]
    assert [change.version for change in pointer.changes] == [first, second, second, second, second]
    assert read_champion(storage) == pointer


def test_a_canary_with_another_share_keeps_when_it_began(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy(storage, tmp_path, number=0)
    version = push(storage, tmp_path, number=1)
    times = iter(["2026-03-09T04:00:00+00:00", "2026-03-09T05:00:00+00:00"])
    monkeypatch.setattr("storyrec.promote.now", lambda: next(times))
    set_canary(storage, version, share=0.0, why="a try")
    canary = set_canary(storage, version, share=0.25, why="good").canary
    assert canary is not None
    assert (canary.deployed_at[11:13], canary.since[11:13], canary.share) == ("04", "05", 0.25)


def test_a_canary_that_a_rollback_makes_champion_is_no_canary_any_more(storage: Storage, tmp_path: Path) -> None:
    first, second, third = (deploy(storage, tmp_path, number=number) for number in range(3))
    set_canary(storage, first, share=0.05, why="a try")
    pointer = rollback(storage)
    assert (pointer.champion.version, pointer.canary is not None) == (second, True)
    pointer = rollback(storage)
    assert (pointer.champion.version, pointer.canary) == (first, None)
    assert [gone.version for gone in pointer.withdrawn] == [third, second]
    assert read_champion(storage) == pointer


def test_promotion_loses_against_a_deployment_in_between(storage: Storage, tmp_path: Path) -> None:
    deploy(storage, tmp_path, number=0)
    version = push(storage, tmp_path, number=1)
    sha256 = storage.sha256

    def overtaken(key: str) -> str:
        storage.sha256 = sha256  # type: ignore[method-assign]
        deploy(storage, tmp_path, number=2)
        return sha256(key)

    storage.sha256 = overtaken  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        promote(storage, version, why="")
    pointer = read_champion(storage)
    assert pointer is not None
    assert pointer.champion.day == FIRST + timedelta(days=2)


def test_the_commands_say_what_they_do(tmp_path: Path) -> None:
    registry = FolderStorage(tmp_path / "registry")
    save_config(Config(locations=Locations(registry=registry.url)), tmp_path / "settings.toml")

    def said(*arguments: str) -> str:
        answer = CliRunner().invoke(app, ["registry", *arguments, "--config", str(tmp_path / "settings.toml")])
        if answer.exception is not None:
            raise answer.exception
        return answer.output

    assert said("list") == "the registry holds no bundle\n"
    assert said("show") == "null\n"
    first, second = (deploy(registry, tmp_path, number=number) for number in range(2))
    third = push(registry, tmp_path, number=2)
    listed = said("list").splitlines()
    assert [line.split()[0] for line in listed[1:]] == [first, second, third]
    assert listed[2].split()[-1] == "champion"
    assert said("rollback", "--why", "clicks fell") == f"champion {first}; withdrawn {second}\n"
    assert "clicks fell" in said("show")
    assert said("promote", second, "--why", "back") == f"champion {second}, canary none\n"
    assert said("verify") == "3 bundles are whole\n"
    assert said("gc") == "nothing to remove\n"
    registry.write(f"uploads/{third}", b"2026-03-01T00:00:00+00:00")
    size = sum(len(registry.read(key)) for key in registry.list(f"bundles/{third}/"))
    total = f"{size / 1e6:.1f} MB"
    assert said("gc").splitlines() == [
        f"{third}  {total:>10}  no pointer names it",
        f"1 bundles would go, {total}; --delete removes them",
    ]
    assert registry.list(f"bundles/{third}/")
    assert "1 bundles removed" in said("gc", "--delete")
    assert not registry.list(f"bundles/{third}/")
    registry.write(f"bundles/{first}/ranker.onnx", b"tampered")
    with pytest.raises(ModelError, match=f"bundle {first} is damaged"):
        said("verify")
