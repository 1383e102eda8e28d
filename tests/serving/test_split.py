"""A canary beside the champion in one server: who is answered by which, what fails, and who withdraws it."""

import asyncio
import gc
import json
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pytest
from served_world import DAYS, client_of, recommender_of

from storyrec.bundle import Bundle
from storyrec.errors import ModelError, StorageError
from storyrec.manifest import seal_folder
from storyrec.promote import promote, set_canary, withdraw_canary
from storyrec.registry import push_bundle, read_champion, switch_champion
from storyrec.rollout.checks import CanaryLimits
from storyrec.serving.answer_log import AnswerLog
from storyrec.serving.ranking import NO_CLICKS, rank
from storyrec.serving.recommender import Asked, Recommender
from storyrec.serving.served import NotServed, ServedBundle
from storyrec.serving.split import Split, is_in_canary

LIMITS = CanaryLimits(min_requests=20, max_error_rate=0.1, max_latency_ratio=50.0, max_drift=0.25)
USERS = range(400)


@dataclass
class Two:
    """A champion that serves, and a second bundle in the registry whose scores are others."""

    split: Split
    second: str
    folder: Path

    @property
    def first(self) -> str:
        assert self.split.bundle is not None
        return self.split.bundle.version

    def try_out(self, share: float) -> None:
        set_canary(self.split.champion.registry, self.second, share=share, why="a try")
        self.split.refresh()


def push_changed(champion: ServedBundle, packed: Path, folder: Path, *, change: Callable[[Path], None]) -> str:
    shutil.copytree(packed, folder)
    change(folder)
    version = seal_folder(folder, day=DAYS[1]).version
    verdict = json.dumps({"blessed": True, "challenger": version}).encode()
    push_bundle(champion.registry, folder, records={"verdict.json": verdict})
    return version


def louder(folder: Path) -> None:
    file = folder / "items" / "story_vectors.npy"
    np.save(file, np.load(file) * 1.1)


@pytest.fixture
def two(champion: ServedBundle, packed: Path, tmp_path: Path) -> Two:
    second = push_changed(champion, packed, tmp_path / "second", change=louder)
    split = Split(champion, ServedBundle(champion.registry, tmp_path / "canary"), limits=LIMITS)
    split.refresh()
    return Two(split, second, tmp_path)


def ask(recommender: Recommender, user_id: int) -> tuple[str, str, np.ndarray]:
    asked = Asked(route="rank", user_id=user_id)
    answer = asyncio.run(recommender.rank(asked, candidate_ids=[1_000, 1_001, 1_002]))
    return answer.model_version, answer.role, answer.scores_B


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_a_share_of_the_users_always_the_same_and_more_with_a_larger_one(share: float) -> None:
    users = range(10_000)
    in_canary = {user for user in users if is_in_canary(user, canary="a" * 16, share=share)}
    assert len(in_canary) == pytest.approx(share * len(users), rel=0.1)
    assert in_canary <= {user for user in users if is_in_canary(user, canary="a" * 16, share=min(1.0, 2 * share))}
    others = {user for user in users if is_in_canary(user, canary="b" * 16, share=share)}
    assert len(in_canary & others) == pytest.approx(share**2 * len(users), rel=0.5)


def test_each_user_gets_her_bundle_and_the_scores_are_its(two: Two) -> None:
    two.try_out(0.25)
    recommender = recommender_of(two.split)
    bundles = {
        version: Bundle.load(folder)
        for version, folder in ((two.first, two.folder / "first"), (two.second, two.folder / "second"))
    }
    for user_id in USERS:
        version, role, scores_B = ask(recommender, user_id)
        is_hers = is_in_canary(user_id, canary=two.second, share=0.25)
        assert (version, role) == ((two.second, "canary") if is_hers else (two.first, "champion"))
        expected = rank(
            bundles[version],
            story_clicks=NO_CLICKS,
            product_clicks=NO_CLICKS,
            now_us=1,
            candidate_ids=[1_000, 1_001, 1_002],
        )
        np.testing.assert_allclose(scores_B, expected, atol=1e-7)
    assert two.split.tried is not None
    served = weakref.ref(two.split.tried.served)
    withdraw_canary(two.split.champion.registry, two.second, why="enough")
    two.split.refresh()
    assert {ask(recommender, user_id)[0] for user_id in USERS} == {two.first}
    gc.collect()
    assert served() is None  # a bundle takes its memory


def test_a_version_that_is_asked_for_answers_and_who_is_nobody_gets_the_champion(two: Two) -> None:
    two.try_out(0.25)
    assert two.split.choose(two.second, user_id=None).served.bundle.version == two.second
    assert two.split.choose(two.first, user_id=None).served.bundle.version == two.first
    assert two.split.choose(None, user_id=None).role == "champion"
    with client_of(two.split) as client:
        assert client.get(f"/v2/models/storyrec/versions/{two.second}/ready").status_code == 200
        assert client.get(f"/v2/models/storyrec/versions/{'0' * 16}/ready").status_code == 404


def test_promotion_hands_all_users_over(two: Two) -> None:
    two.try_out(0.25)
    promote(two.split.champion.registry, two.second, why="good")
    two.split.refresh()
    recommender = recommender_of(two.split)
    assert {ask(recommender, user_id)[:2] for user_id in USERS} == {(two.second, "champion")}


def test_a_shadow_is_seen_by_nobody_and_logged(two: Two) -> None:
    two.try_out(0.0)
    log = AnswerLog(two.folder / "answers", flush_seconds=60)
    recommender = recommender_of(two.split, answers=log)
    with pytest.raises(NotServed, match="does not serve"):
        two.split.choose(two.second, user_id=1)
    seen = {}
    for user_id in range(30):
        version, role, scores_B = ask(recommender, user_id)
        assert (version, role) == (two.first, "champion")
        seen[user_id] = scores_B
    recommender.close()
    log.close()
    rows = duckdb.execute(
        "SELECT user_id, request_id, model_version, role, scores FROM read_parquet(?)",
        [str(two.folder / "answers/*/*.parquet")],
    ).fetchall()
    champion = {user_id: (request, scores) for user_id, request, _, role, scores in rows if role == "champion"}
    shadow = {user_id: (request, scores) for user_id, request, _, role, scores in rows if role == "shadow"}
    assert {(version, role) for _, _, version, role, _ in rows} == {(two.first, "champion"), (two.second, "shadow")}
    assert set(champion) == set(shadow) == set(range(30))
    for user_id in champion:
        assert champion[user_id][0] == shadow[user_id][0]
        np.testing.assert_array_equal(np.float32(champion[user_id][1]), seen[user_id])
        assert champion[user_id][1] != shadow[user_id][1]


def test_where_the_canary_fails_the_champion_answers_until_it_is_withdrawn(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.try_out(0.25)
    assert two.split.tried is not None
    broken = two.split.tried.served.bundle
    good = Bundle.rank_candidates

    def failing(self: Bundle, **inputs: np.ndarray) -> np.ndarray:
        if self is broken:
            raise RuntimeError("out of memory")
        return good(self, **inputs)

    monkeypatch.setattr(Bundle, "rank_candidates", failing)
    log = AnswerLog(two.folder / "answers", flush_seconds=60)
    recommender = recommender_of(two.split, answers=log)
    hers = [user_id for user_id in USERS if is_in_canary(user_id, canary=two.second, share=0.25)]
    for user_id in hers[:2]:
        assert ask(recommender, user_id)[:2] == (two.first, "champion")
    two.split.judge()
    assert two.split.tried is not None  # two of the twenty that it takes: a tenth may fail
    ask(recommender, hers[2])
    two.split.judge()
    assert two.split.tried is None
    pointer = read_champion(two.split.champion.registry)
    assert pointer is not None
    assert (pointer.champion.version, pointer.canary) == (two.first, None)
    assert [gone.version for gone in pointer.withdrawn] == [two.second]
    assert "3 of 3 requests failed" in pointer.changes[-1].why
    log.close()
    failures = duckdb.execute(
        "SELECT role, model_version, error FROM read_parquet(?) WHERE error IS NOT NULL",
        [str(two.folder / "answers/*/*.parquet")],
    ).fetchall()
    assert failures == [("canary", two.second, "RuntimeError('out of memory')")] * 3


def test_what_a_shadow_fails_in_without_a_user_does_not_count(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.try_out(0.0)
    assert two.split.tried is not None
    broken, good = two.split.tried.served.bundle, Bundle.rank_candidates

    def failing(self: Bundle, **inputs: np.ndarray) -> np.ndarray:
        if self is broken:
            raise RuntimeError("out of memory")
        return good(self, **inputs)

    monkeypatch.setattr(Bundle, "rank_candidates", failing)
    recommender = recommender_of(two.split)
    nobody = Asked(route="rank", clicks=(NO_CLICKS, NO_CLICKS))
    for _ in range(3):
        asyncio.run(recommender.rank(nobody, candidate_ids=[1_000]))
    recommender.close()
    two.split.judge()
    assert two.split.tried is not None  # its answers to nobody do not count either


def test_drifted_scores_are_withdrawn_in_the_shadow(champion: ServedBundle, packed: Path, tmp_path: Path) -> None:
    def silent(folder: Path) -> None:
        file = folder / "items" / "story_vectors.npy"
        np.save(file, np.load(file) * 0)

    second = push_changed(champion, packed, tmp_path / "second", change=silent)
    split = Split(champion, ServedBundle(champion.registry, tmp_path / "canary"), limits=LIMITS)
    set_canary(champion.registry, second, share=0.0, why="a try")
    split.refresh()
    recommender = recommender_of(split)
    for user_id in range(25):
        ask(recommender, user_id)
    recommender.close()
    split.judge()
    pointer = read_champion(champion.registry)
    assert pointer is not None
    assert pointer.canary is None
    assert "stability index" in pointer.changes[-1].why


def test_the_canary_goes_though_the_new_champion_cannot_be_used(two: Two) -> None:
    two.try_out(0.25)
    registry = two.split.champion.registry
    withdraw_canary(registry, two.second, why="enough")
    switch_champion(registry, version="0" * 16, day=DAYS[1], expected_version=two.first)
    with pytest.raises(ModelError):
        two.split.refresh()
    recommender = recommender_of(two.split)
    assert {ask(recommender, user_id)[:2] for user_id in USERS} == {(two.first, "champion")}


def test_another_share_is_judged_by_its_own_answers(two: Two) -> None:
    two.try_out(0.05)
    assert two.split.traffic is not None
    two.split.traffic.note_failure(two.second)
    two.split.refresh()
    assert two.split.traffic.arms()[1].num_errors == 1
    two.try_out(0.25)
    assert two.split.traffic.arms()[1].num_errors == 0


def test_a_canary_that_failed_stays_away_when_the_registry_cannot_be_told(
    two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    two.try_out(0.25)
    assert two.split.traffic is not None
    for _ in range(3):
        two.split.traffic.note_failure(two.second)

    def refuse(*arguments: object, **more: object) -> None:
        raise StorageError("the bucket is read-only", where="registry", remedy="ask who owns it")

    monkeypatch.setattr(two.split.champion.registry, "write_if", refuse)
    with pytest.raises(StorageError):
        two.split.judge()
    two.split.refresh()
    assert two.split.tried is None
    pointer = read_champion(two.split.champion.registry)
    assert pointer is not None
    assert pointer.canary is not None
    monkeypatch.undo()
    two.split.judge()
    pointer = read_champion(two.split.champion.registry)
    assert pointer is not None
    assert (pointer.canary, [gone.version for gone in pointer.withdrawn]) == (None, [two.second])


def test_a_canary_that_failed_is_tried_again_when_somebody_says_so(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(f"2026-03-10T04:00:0{second}+00:00" for second in range(9))
    monkeypatch.setattr("storyrec.promote.now", lambda: next(times))
    two.try_out(0.25)
    assert two.split.traffic is not None
    for _ in range(3):
        two.split.traffic.note_failure(two.second)
    two.split.judge()
    two.split.refresh()
    assert two.split.tried is None
    two.try_out(0.25)
    assert two.split.tried is not None
    two.split.judge()
    assert two.split.tried is not None


def test_what_another_canary_failed_in_does_not_count(two: Two) -> None:
    two.try_out(0.25)
    assert two.split.traffic is not None
    for _ in range(30):
        two.split.traffic.note_failure("0" * 16)
        two.split.traffic.note("0" * 16, latency_ms=1.0, scores_B=np.zeros(3, np.float32))
    assert [arm.num_requests for arm in two.split.traffic.arms()] == [0, 0]


def test_the_canary_is_judged_while_the_registry_is_down(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.try_out(0.25)
    assert two.split.traffic is not None
    for _ in range(3):
        two.split.traffic.note_failure(two.second)
    registry = two.split.champion.registry

    def down(*arguments: object, **more: object) -> None:
        raise StorageError("no route to the bucket", where="registry", remedy="wait")

    monkeypatch.setattr(registry, "read_versioned", down)
    stop = threading.Event()
    watcher = threading.Thread(target=two.split.watch, args=(stop,), kwargs={"poll_seconds": 0.01})
    watcher.start()
    deadline = time.monotonic() + 20
    while two.split.tried is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    monkeypatch.undo()
    while (pointer := read_champion(registry)) is None or pointer.canary is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    watcher.join()


def test_scores_that_are_no_numbers_are_a_failure(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    two.try_out(0.25)
    assert two.split.tried is not None
    broken, good = two.split.tried.served.bundle, Bundle.rank_candidates

    def nan(self: Bundle, **inputs: np.ndarray) -> np.ndarray:
        return good(self, **inputs) * (np.nan if self is broken else 1)

    monkeypatch.setattr(Bundle, "rank_candidates", nan)
    recommender = recommender_of(two.split)
    hers = next(user_id for user_id in USERS if is_in_canary(user_id, canary=two.second, share=0.25))
    version, _, scores_B = ask(recommender, hers)
    assert version == two.first
    assert np.isfinite(scores_B).all()
    asked = Asked(route="rank", user_id=hers, version=two.second)
    with pytest.raises(ArithmeticError):  # who asks for a version gets no other
        asyncio.run(recommender.rank(asked, candidate_ids=[1_000]))


def test_a_tampered_canary_is_not_tried(two: Two) -> None:
    set_canary(two.split.champion.registry, two.second, share=0.25, why="a try")
    two.split.champion.registry.write(f"bundles/{two.second}/ranker.onnx", b"tampered")
    two.split.refresh()
    assert two.split.tried is None
    two.split.judge()
    pointer = read_champion(two.split.champion.registry)
    assert pointer is not None
    assert pointer.canary is None
    assert "cannot be loaded" in pointer.changes[-1].why
    assert {two.split.choose(None, user_id=user_id).served.bundle.version for user_id in USERS} == {two.first}
