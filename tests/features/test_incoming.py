"""Rows over HTTP: what is wrong with a request is said with 422 and nothing of it is written; our own fault is 500."""

from collections.abc import Iterator
from typing import Any

import pytest
from feast.errors import FeastError
from feature_world import World, at, microseconds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_world import opened

from storyrec.features.store import FeatureStoreClient

TIME = at(0).isoformat()
LATER = "2026-03-01T09:00:00.25+01:00"


class App:
    """The server's application over a store of its own."""

    def __init__(self, client: FeatureStoreClient) -> None:
        from feast.feature_server import get_app
        from starlette.testclient import TestClient

        from storyrec.features.read_app import ReadApp

        self.client = client
        app = ReadApp(get_app(client._store, registry_ttl_sec=0), client._store)
        self.http: Any = TestClient(app, raise_server_exceptions=False)

    def stored(self) -> dict[tuple[str, int], bytes | None]:
        online, config = self.client._online, self.client._config
        views = [name for name in self.client._layouts if not self.client.layout(name).by_model]
        return {(view, key): online.get(config, view, [key])[0] for view in views for key in online.ids(config, view)}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = App(opened(World(tmp_path_factory.mktemp("incoming")).config))
    with app.http:
        yield app


def clicks(**other: Any) -> dict[str, Any]:
    """A push of two users' clicks."""
    times = [[microseconds(at(0))], [microseconds(at(0, second=1)), microseconds(at(0, second=2))]]
    rows = {"user_id": [1, 2], "story_ids": [[3], [4, 5]], "story_clicked_us": times}
    frame = rows | {"event_timestamp": [TIME, LATER], "known_at": [LATER, TIME]} | other
    return {"push_source_name": "story_clicks", "df": {name: column for name, column in frame.items() if column}}


def embedding(**other: Any) -> dict[str, Any]:
    """Two stories' embeddings, one of whole numbers."""
    rows = {"story_id": [1, 2], "embedding": [[1] * 64, [0.5] * 64], "model_version": ["a", "b"]}
    frame = rows | {"event_timestamp": [TIME, LATER], "known_at": [LATER, TIME]} | other
    return {"feature_view_name": "story_embedding", "df": frame}


def test_rows_are_taken_however_their_times_and_numbers_are_written(app: App) -> None:
    assert app.http.post("/push", json=clicks(unasked=[{"a": 1}, 2])).status_code == 200
    assert app.http.post("/write-to-online-store", json=embedding()).status_code == 200
    found = app.client.online([1, 2], join_key="user_id", service="ranker_v1")
    assert found["story_ids"] == [[3], [4, 5]]
    found = app.client.online([1, 2], join_key="story_id", service="story_embedding_v1")
    assert found["embedding"] == [[1.0] * 64, [0.5] * 64]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (clicks(user_id=[1, 1.5]), "user_id of row 2 is 1.5"),
        (clicks(user_id=["1", 2]), "user_id of row 1 is '1'"),
        (clicks(user_id=[True, 2]), "user_id of row 1 is True"),
        (clicks(user_id=[1, 2**63]), "user_id of row 2"),
        (clicks(user_id=[1]), "1 of user_id, 2 of story_ids"),
        (clicks(story_ids=None), "no story_ids\n"),
        (clicks(story_ids=[None, None], story_clicked_us=[None, None]), "story_ids of row 1 is None"),
        (clicks(story_ids=[[3], [4, None]]), "story_ids of row 2 is [4, None]"),
        (clicks(story_ids=[[3], []]), "story_ids of row 2 is []"),
        (clicks(event_timestamp=[TIME, "2026-03-01T09:00:00"]), "with its zone"),
        (clicks(known_at=[TIME, 1_772_323_200]), "known_at of row 2 is 1772323200"),
        (clicks(known_at=[TIME, "0001-01-01T00:00:00Z"]), "this century"),
        (clicks() | {"to": "offline"}, "to: 'offline'"),
        (embedding(model_version=["a", 7]), "model_version of row 2 is 7"),
        (embedding(model_version=["a", "b\nc"]), "a text of one line"),
        (embedding(embedding=[[1] * 64, [0.5] * 63 + ["x"]]), "embedding of row 2"),
        (embedding(embedding=[[1] * 64, [0.5] * 65]), "embedding of 65 numbers"),
        (embedding(embedding=[[1] * 64, [0.5] * 63 + [1e300]]), "all finite"),
    ],
)
def test_what_is_wrong_with_rows_is_said_and_nothing_is_written(app: App, body: dict[str, Any], message: str) -> None:
    before = app.stored()
    answer = app.http.post("/push" if "push_source_name" in body else "/write-to-online-store", json=body)
    assert answer.status_code == 422, answer.text
    assert message in str(FeastError.from_error_detail(answer.json()))
    assert app.stored() == before


VALUES = st.sampled_from([1, 0, -1, 2**63, 1.5, True, None, "1", "", TIME, "x", [], [1], [[1]], {}, [0.5] * 64, ["a"]])


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_is_taken_for_a_fault_of_the_server(app: App, data: st.DataObject) -> None:
    body = data.draw(st.sampled_from([clicks(), embedding()]))
    columns: Any = {**body["df"]}
    for name in data.draw(st.lists(st.sampled_from([*columns, "price"]), max_size=2)):
        columns[name] = data.draw(st.lists(VALUES, max_size=3) | VALUES)
    for name in data.draw(st.lists(st.sampled_from([*columns]), max_size=1)):
        del columns[name]
    body = body | {"df": columns}
    for name in data.draw(st.lists(st.sampled_from([*body, "to", "transform_on_write"]), max_size=1)):
        body[name] = data.draw(VALUES)
    before = app.stored()
    answer = app.http.post("/push" if "push_source_name" in body else "/write-to-online-store", json=body)
    assert answer.status_code in (200, 404, 422), answer.text
    if answer.status_code != 200:
        assert app.stored() == before


def test_a_fault_of_the_store_is_no_fault_of_the_request(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("not the caller's")

    monkeypatch.setattr(type(app.client._online), "put", fails)
    assert app.http.post("/push", json=clicks()).status_code == 500
