"""Clicks as they happen: through Feast's own server on a real Redis, and from files."""

import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from select import select
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from feature_server import Server, running_server
from feature_world import NOW, World, at, microseconds

from storyrec.errors import DataError
from storyrec.features.push import push_clicks, read_clicks
from storyrec.features.store import open_feature_store
from storyrec.schema import TIMESTAMP, Domain


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Server]:
    with running_server(tmp_path_factory.mktemp("served"), redis_server) as server:
        yield server


def asked(server: Server, path: str, token: str | None) -> int:
    """How the server answers a lookup or a push with a token."""
    headers = {"Authorization": f"Bearer {token}" if token else ""}
    time_ = at(4, second=9).isoformat()
    row = {"user_id": [9], "product_ids": [[5]], "product_clicked_us": [[microseconds(at(4, second=9))]]}
    bodies = {
        "/get-online-features": {"feature_service": "ranker_v1", "entities": {"user_id": [9]}},
        "/push": {
            "push_source_name": "product_clicks",
            "df": row | {"event_timestamp": [time_], "known_at": [time_]},
        },
    }
    return server.client.post(path, json=bodies[path.partition("?")[0]], headers=headers).status_code


def test_a_client_that_never_ends_its_headers_is_hung_up_on(server: Server) -> None:
    with socket.create_connection((server.client.base_url.host, server.client.base_url.port), timeout=20) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: here\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("path", ["/push", "/get-online-features", "/materialize"])
def test_a_body_that_is_slow_or_too_large_is_refused(server: Server, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: 20000000\r\n"
    head += f"Authorization: Bearer {server.provider.token('admin')}\r\n\r\n"
    address = (server.client.base_url.host, server.client.base_url.port)
    with socket.create_connection(address, timeout=30) as slow, socket.create_connection(address, timeout=30) as large:
        slow.sendall(head.encode())
        large.sendall(head.encode() + b"[" * 10_500_000)
        assert large.recv(65_536).startswith(b"HTTP/1.1 413 ")
        while not select([slow], [], [], 1)[0]:
            slow.sendall(b" ")
        assert slow.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_a_role_does_what_it_may_and_nobody_else_does_anything(server: Server) -> None:
    reader, writer, other = (server.provider.token(role) for role in ("reader", "writer", "gardener"))
    before = server.stored()
    assert asked(server, "/get-online-features", reader) == 200
    assert asked(server, "/push", reader) == 403
    wrong, as_reader = (
        {"push_source_name": "product_clicks", "df": {"user_id": []}},
        {"Authorization": f"Bearer {reader}"},
    )
    assert server.client.post("/push", json=wrong, headers=as_reader).status_code == 403
    assert asked(server, "/get-online-features", other) == 403
    assert asked(server, "/push", server.provider.token()) == 403
    for path in ("/push", "/get-online-features"):  # of a project without permissions, where Feast lets all in
        assert asked(server, f"{path}?project=nowhere", other) == 404
    elsewhere = server.provider.token("admin", audience="another-program")
    for token in (None, server.provider.token("admin", lifetime=-60), elsewhere, _forged(server), "no token"):
        assert asked(server, "/get-online-features", token) == 401
        assert asked(server, "/push", token) == 401
    assert server.stored() == before
    assert asked(server, "/push", writer) == 200
    assert server.stored() != before


def test_who_asks_wrongly_is_told_without_a_traceback_in_the_log(server: Server) -> None:
    log = server.world.folder / "server.log"
    before, client = log.stat().st_size, server.client
    unknown = {"feature_service": "nothing_v1", "entities": {"user_id": [9]}}
    answer = client.post("/get-online-features", json=unknown)
    assert (answer.status_code, "nothing_v1 does not exist" in answer.text) == (404, True)
    rows = {"push_source_name": "nothing", "df": {"user_id": [9]}}
    answer = client.post("/push", json=rows)
    assert (answer.status_code, "push source 'nothing'" in answer.text) == (422, True)
    assert asked(server, "/push", server.provider.token("reader")) == 403
    assert b"Traceback" not in log.read_bytes()[before:]


def _forged(server: Server) -> str:
    return server.provider.token("admin", key=rsa.generate_private_key(public_exponent=65_537, key_size=2_048))


def test_a_click_is_in_the_sequence_within_a_second_and_in_order(server: Server) -> None:
    user, before = 5, server.world.sequence("product", user=5, before=at(4))
    later, first = at(4, second=50), at(4, second=20)
    started = time.monotonic()
    assert server.push(user, 91, later).status_code == 200
    assert server.sequence(user) == [*before, (91, microseconds(later))]
    assert time.monotonic() - started < 1
    server.push(user, 90, first)  # out of order
    expected = [*before, (90, microseconds(first)), (91, microseconds(later))]
    assert server.sequence(user) == expected
    server.push(user, 91, later)  # again
    assert server.sequence(user) == expected
    server.push(user, 92, at(3, second=7))  # late: of a day whose logs are online
    assert server.sequence(user) == expected
    server.push(4_711, 3, first)  # of nobody the logs know
    assert server.sequence(4_711) == [(3, microseconds(first))]


def test_feasts_client_for_remote_stores_reads_through_the_server(server: Server, tmp_path: Path) -> None:
    from feast import FeatureStore, RepoConfig
    from feast.errors import FeastPermissionError
    from feast.repo_config import RegistryConfig

    def ask(role: str) -> dict[str, list[Any]]:
        config = RepoConfig(
            project="storyrec",
            provider="local",
            entity_key_serialization_version=3,
            registry=RegistryConfig(path=str(tmp_path / "registry.db")),
            online_store={"type": "remote", "path": str(server.client.base_url).rstrip("/")},
            auth={"type": "oidc", "token": server.provider.token(role)},
        )
        rows = [{"user_id": 8}, {"user_id": 4_712}]
        return FeatureStore(config=config).get_online_features(["user_story_sequence:story_ids"], rows).to_dict()

    items = [item for item, _ in server.world.sequence("story", user=8, before=at(4))]
    assert items
    assert ask("reader") == {"user_id": [8, 4_712], "story_ids": [items, None]}
    with pytest.raises(FeastPermissionError, match="Requires roles"):
        ask("gardener")


@pytest.mark.parametrize(
    ("other", "status", "message"),
    [
        ({"product_clicked_us": None}, 422, "product_clicked_us"),
        ({"user_id": None}, 422, "user_id"),
        ({"event_timestamp": None}, 422, "event_timestamp"),
        ({"user_id": "x"}, 422, "'x'"),
        ({"product_clicked_us": [microseconds(datetime.now(UTC)) + 2 * 3_600 * 1_000_000]}, 422, "not in the future"),
        ({"product_clicked_us": [1_772_323_200]}, 422, "epoch microseconds"),
        ({"product_ids": [1, 2]}, 422, "as many items"),
        ({"user_id": 0}, 422, "id > 0"),
    ],
)
def test_what_is_wrong_with_a_click_is_named_and_nothing_is_written(
    server: Server, other: dict[str, Any], status: int, message: str
) -> None:
    before = server.stored()
    answer = server.push(6, 90, at(4), **other)
    assert answer.status_code == status
    assert message in answer.text
    assert server.stored() == before


ROWS = [(3, 7, at(4, second=9)), (3, 8, at(4, second=2)), (5, 9, at(4))]


def write_clicks(path: Path, *, item: str = "story_id") -> Path:
    names = ("user_id", item, "clicked_at")
    if path.suffix == ".parquet":
        columns = [pa.array(column) for column in zip(*ROWS, strict=True)]
        pq.write_table(pa.table([*columns[:2], columns[2].cast(TIMESTAMP)], names=names), path)
    else:
        rows = [dict(zip(names, (*row[:2], row[2].isoformat()), strict=True)) for row in ROWS]
        path.write_text(json.dumps(rows) if path.suffix == ".json" else "\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("name", ["clicks.parquet", "clicks.json", "clicks.jsonl"])
def test_clicks_are_read_from_files(tmp_path: Path, name: str) -> None:
    log, domain = read_clicks(write_clicks(tmp_path / name, item="product_id"), now=NOW)
    assert domain is Domain.PRODUCT
    assert log.user_ids_C.tolist() == [3, 3, 5]
    assert log.item_ids_C.tolist() == [8, 7, 9]
    assert log.clicked_us_C.tolist() == [microseconds(at(4, second=second)) for second in (2, 9, 0)]


def test_a_file_is_pushed_and_again_without_effect(tmp_path: Path) -> None:
    config = World(tmp_path).config
    path = write_clicks(tmp_path / "clicks.parquet")
    for _ in range(2):
        pushed = push_clicks(config, clicks=path)
        assert (pushed.domain, pushed.num_clicks, pushed.num_users) == ("story", 3, 2)
        served = open_feature_store(config.locations.work, profile="local").online_sequences([3, 5, 6])
        assert [one.story_ids.tolist() for one in served] == [[8, 7], [9], []]
        assert served[0].updated_us == microseconds(at(4, second=9))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clicks.csv", "user_id,story_id", r"\.parquet, \.json"),
        ("clicks.json", "{", "cannot be read"),
        ("clicks.parquet", "PAR1", "cannot be read"),
        (
            "clicks.json",
            '[{"user_id": 1, "clicked_at": "2026-03-09T12:00:00Z"}]',
            "story_id, clicked_at or user_id, product_id",
        ),
        ("clicks.json", '[{"user_id": 1, "story_id": 2, "clicked_at": 1772000000}]', "clicked_at is BIGINT"),
        (
            "clicks.json",
            '[{"user_id": "a", "story_id": 2, "clicked_at": "2026-03-09T12:00:00Z"}]',
            "user_id is VARCHAR",
        ),
        ("clicks.json", '[{"user_id": 0, "story_id": 2, "clicked_at": "2026-03-09T12:00:00Z"}]', "1 clicks cannot be"),
        ("clicks.json", '[{"user_id": 1, "story_id": 2, "clicked_at": "1970-01-21T12:00:00Z"}]', "1 clicks cannot be"),
        ("clicks.json", '[{"user_id": 1, "story_id": 2, "clicked_at": "2026-04-01T02:00:00Z"}]', "1 clicks cannot be"),
        ("clicks.json", '[{"user_id": 1, "story_id": 2, "clicked_at": "2026-03-09T12:00:00"}]', "is TIMESTAMP\n"),
        (
            "clicks.json",
            '[{"user_id": 1, "story_id": 2, "clicked_at": "2026-03-09T12:00:00Z"}, {"user_id": 1, "story_id": 2}]',
            "1 values are missing",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_clicks(tmp_path / name, now=NOW)
    assert str(tmp_path / name) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json"):
        read_clicks(tmp_path / "nowhere.json", now=NOW)
