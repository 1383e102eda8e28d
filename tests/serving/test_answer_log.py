"""The answer log: every answer on disk, whole files alone, and what is dropped is counted."""

import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from served_world import NOW_US, client_of

from storyrec.errors import StorageError
from storyrec.serving import answer_log
from storyrec.serving.answer_log import SCHEMA, AnswerLog
from storyrec.serving.metrics import ANSWERS_DROPPED
from storyrec.serving.ranking import Clicks
from storyrec.serving.served import ServedBundle

DAY = datetime.fromtimestamp(NOW_US / 1e6, UTC).date().isoformat()


def test_answers_are_logged_with_what_they_were_made_from(champion: ServedBundle, tmp_path: Path) -> None:
    assert champion.bundle is not None
    long_ago = Clicks([champion.bundle.stories.ids_N[4], 77], [NOW_US - 10**6, 5])  # the second is out of the window
    products = Clicks([champion.bundle.products.ids_N[4]], [NOW_US - 3 * 10**6])
    answers = AnswerLog(tmp_path / "answers", flush_seconds=60.0)
    with client_of(champion, sequences=lambda user: (long_ago, products), answers=answers) as client:
        ranked = client.post("/v1/rank", json={"user_id": 3, "candidates": [1_000, 999_999], "request_id": "a"}).json()
        client.post("/v1/recommend", json={"story_clicks": [], "request_id": "b"})
        assert client.post("/v1/rank", json={"user_id": 3, "candidates": []}).status_code == 400
    assert not (tmp_path / "answers").exists()
    answers.close()
    (file,) = (tmp_path / "answers" / f"dt={DAY}").iterdir()
    table = pq.ParquetFile(file).read()
    assert table.schema.equals(SCHEMA)
    first, second = table.to_pylist()
    assert (first["request_id"], first["route"], first["user_id"]) == ("a", "rank", 3)
    assert first["model_version"] == champion.bundle.version == second["model_version"]
    assert first["candidate_ids"] == [1_000, 999_999]
    assert first["unknown_ids"] == [999_999]
    assert first["appended_ids"] == []
    scores = {story["story_id"]: story["probability"] for story in ranked["stories"]}
    assert first["scores"] == [scores[1_000], scores[999_999]]
    assert first["story_ids"] == np.asarray(long_ago.item_ids_C).tolist()
    assert first["story_clicked_us"] == [NOW_US - 10**6, 5]
    assert first["product_clicked_us"] == [NOW_US - 3 * 10**6]
    assert first["sequence_age_seconds"] == 1.0
    assert first["answered_at"] == datetime.fromtimestamp(NOW_US / 1e6, UTC)
    assert (first["sequences"], first["fallback"], first["retrieval"]) == ("online", None, None)
    assert (second["sequences"], second["user_id"], second["retrieval"]) == ("given", None, "no_clicks")
    assert second["sequence_age_seconds"] is None


def test_answers_beyond_the_room_are_dropped_and_counted(
    champion: ServedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()

    def slow(path: Path, content: bytes) -> None:
        disk.wait(20)

    monkeypatch.setattr(answer_log, "write_file", slow)
    monkeypatch.setattr(answer_log, "ANSWERS_A_FILE", 1)
    answers = AnswerLog(tmp_path / "answers", flush_seconds=60.0, max_waiting=5)
    before = ANSWERS_DROPPED._value.get()
    with client_of(champion, answers=answers) as client:
        for _ in range(20):
            assert client.post("/v1/rank", json={"user_id": 3, "candidates": [1_000]}).status_code == 200
    dropped = ANSWERS_DROPPED._value.get() - before
    disk.set()
    answers.close()
    assert 13 <= dropped <= 15  # five wait, one is being written, one may be on the way there


@pytest.mark.parametrize("error", [StorageError("the disk is full"), OverflowError("a value that fits no column")])
def test_an_error_of_the_writer_costs_those_answers_alone(
    champion: ServedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real, refused = answer_log.write_file, threading.Event()

    def first_refused(path: Path, content: bytes) -> None:
        if not refused.is_set():
            refused.set()
            raise error
        real(path, content)

    monkeypatch.setattr(answer_log, "write_file", first_refused)
    monkeypatch.setattr(answer_log, "ANSWERS_A_FILE", 2)
    answers = AnswerLog(tmp_path / "answers", flush_seconds=60.0)
    before = ANSWERS_DROPPED._value.get()
    with client_of(champion, answers=answers) as client:
        for number in range(4):
            client.post("/v1/rank", json={"user_id": 3, "candidates": [1_000], "request_id": str(number)})
    answers.close()
    assert ANSWERS_DROPPED._value.get() - before == 2
    (file,) = (tmp_path / "answers").rglob("*.parquet")
    assert pq.ParquetFile(file).read(["request_id"])["request_id"].to_pylist() == ["2", "3"]
