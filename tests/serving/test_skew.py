"""The skew check, against sequences made by hand and against a store that is behind."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from feature_world import World, at, day_of, fill, microseconds
from typer.testing import CliRunner

from storyrec.cli import app
from storyrec.config import save_config
from storyrec.errors import DataError
from storyrec.features.build import build_features
from storyrec.features.catalog import Catalog, read_catalog
from storyrec.features.repository import feature_repo
from storyrec.serving.answer_log import AnswerLog
from storyrec.serving.ranking import Clicks, History
from storyrec.serving.recommender import Answer
from storyrec.serving.skew import _compare, check_skew
from storyrec.serving.store import Looked, Origin

NOW = datetime(2026, 4, 1, tzinfo=UTC)
A, B, C, D = (1, 10), (2, 20), (3, 30), (4, 40)


@pytest.mark.parametrize(
    ("online", "offline", "verdict"),
    [
        ([], [], "equal"),
        ([A, B], [A, B], "equal"),
        ([A, B], [A, B, C], "late"),
        ([A, B, C], [B, C, D], "late"),  # the window of offline moved on
        ([], [A], "late"),
        ([A, B], [A, C], "different"),  # a click that offline never had
        ([A, C], [A, B, C], "different"),  # one is lost in the middle
        ([A], [], "different"),
        ([A, B], [B], "different"),  # offline had room for it
        ([A, B, C], [C, D], "different"),
    ],
)
def test_verdicts(online: list[tuple[int, int]], offline: list[tuple[int, int]], verdict: str) -> None:
    assert _compare(online, offline) == verdict


def answer(user: int, moment: datetime, clicks: dict[str, list[tuple[int, int]]], origin: Origin = "online") -> Answer:
    """What the log holds of an answer, with a user's clicks as (item, microseconds)."""
    stories, products = (
        Clicks([item for item, _ in clicks[domain]], [us for _, us in clicks[domain]])
        for domain in ("story", "product")
    )
    none, nothing = np.empty(0, np.int64), np.empty(0, bool)
    return Answer(
        request_id=f"{user} at {moment}",
        user_id=user,
        route="rank",
        answered_us=microseconds(moment),
        model_version="0" * 16,
        role="champion",
        latency_ms=1.0,
        looked=Looked(stories, products, origin),
        history=History(none, none, none, none, now_us=microseconds(moment)),
        candidate_ids_B=none,
        scores_B=np.empty(0, np.float32),
        unknown_B=nothing,
        appended_B=nothing,
        retrieval=None,
        age_seconds=None,
    )


def write(folder: Path, answers: list[Answer]) -> None:
    log = AnswerLog(folder, flush_seconds=60.0)
    for one in answers:
        log.put(one)
    log.close()


@pytest.fixture
def built(tmp_path: Path) -> World:
    """Four days of clicks in the offline store."""
    world = fill(World(tmp_path), num_days=4)
    for number in range(4):
        build_features(world.config, day=day_of(number))
    return world


def catalog_of(world: World) -> Catalog:
    return read_catalog(feature_repo(), features=world.folder / "work" / "features")


def test_each_answer_is_held_against_the_store_of_its_moment(built: World, tmp_path: Path) -> None:
    moment, yesterday = at(3, second=43_200), at(3)
    sequences = {
        (user, before): {domain: built.sequence(domain, user=user, before=before) for domain in ("story", "product")}
        for user in range(1, 12)
        for before in (moment, yesterday)
    }
    fresh = [answer(user, moment, sequences[user, moment]) for user in range(1, 12)]
    write(tmp_path / "fresh", [*fresh, answer(3, moment, {"story": [], "product": []}, "unavailable")])
    found = check_skew(tmp_path / "fresh", catalog=catalog_of(built), now=NOW)
    assert (found.num_answers, found.num_compared) == (12, 11)
    assert (found.equal, found.late, found.different) == (22, 0, 0)

    write(tmp_path / "behind", [answer(user, moment, sequences[user, yesterday]) for user in range(1, 12)])
    behind = check_skew(tmp_path / "behind", catalog=catalog_of(built), now=NOW)
    changed = sum(
        sequences[user, moment][domain] != sequences[user, yesterday][domain]
        for user in range(1, 12)
        for domain in ("story", "product")
    )
    assert changed > 3
    assert (behind.equal, behind.late, behind.different) == (22 - changed, changed, 0)
    assert behind.largest_late_seconds is not None
    assert 0 < behind.largest_late_seconds <= 43_200

    wrong = {domain: [(item + 1, us) for item, us in clicks] for domain, clicks in sequences[3, moment].items()}
    write(tmp_path / "wrong", [answer(3, moment, wrong), answer(4, moment, sequences[4, moment])])
    broken = check_skew(tmp_path / "wrong", catalog=catalog_of(built), now=NOW)
    assert (broken.equal, broken.different) == (2, 2)
    assert {difference.user_id for difference in broken.differences} == {3}


def test_a_server_whose_clock_is_ahead_is_counted_and_spoils_nothing(built: World, tmp_path: Path) -> None:
    moment = at(3)
    sequences = {domain: built.sequence(domain, user=3, before=moment) for domain in ("story", "product")}
    ahead = [answer(3, moment + timedelta(hours=1), sequences) for _ in range(3)]
    write(tmp_path / "answers", [answer(3, moment, sequences), *ahead])
    found = check_skew(tmp_path / "answers", catalog=catalog_of(built), now=moment + timedelta(minutes=1))
    assert (found.num_answers, found.num_compared, found.num_ahead, found.equal) == (4, 1, 3, 2)
    write(tmp_path / "alone", ahead)
    with pytest.raises(DataError, match=f"until {moment:%Y-%m-%d}"):
        check_skew(tmp_path / "alone", catalog=catalog_of(built), now=moment)


def test_the_command_ends_with_2_where_a_sequence_differs(built: World, tmp_path: Path) -> None:
    save_config(built.config, tmp_path / "settings.toml")
    moment = at(2)
    good = {domain: built.sequence(domain, user=5, before=moment) for domain in ("story", "product")}
    write(tmp_path / "good", [answer(5, moment, good)])
    write(tmp_path / "bad", [answer(5, moment, good | {"story": [(1, microseconds(moment) - 7)]})])
    for name, code in (("good", 0), ("bad", 2)):
        command = ["serving", "skew", str(tmp_path / name), "--config", str(tmp_path / "settings.toml")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == code, done.output
        assert json.loads(done.stdout)["different"] == (code == 2)


def test_a_folder_without_answers_is_refused(built: World, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no answers"):
        check_skew(tmp_path / "nothing", catalog=catalog_of(built), now=NOW)
    moment = at(1) + timedelta(hours=1)
    write(tmp_path / "given", [answer(1, moment, {"story": [], "product": []}, "given")])
    with pytest.raises(DataError, match="none of 1 answers"):
        check_skew(tmp_path / "given", catalog=catalog_of(built), now=NOW)
