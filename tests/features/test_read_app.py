"""Lookups over HTTP: the faster answers are Feast's own, field by field, and all else is Feast's indeed."""

import asyncio
import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import pytest
from feast.errors import FeastError
from feature_world import World, at, microseconds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from online_world import opened
from redis import Redis
from redis_server import free_port, running_redis

from storyrec.features.packed import ARRAYS, TEXT, Layout, Row
from storyrec.features.store import FeatureStoreClient

KNOWN = (1, 2, 3, 5, 2**40)
UNKNOWN = (4, 4_711, 0, -1, 2**63 - 1)
MODELS = ("8c1f0a6b2e4d9713", "00aa00aa00aa00aa")
PATH = "/get-online-features"
SERVICES = (
    *("ranker_v1", "user_interest_v1", "story_embedding_v1", "product_embedding_v1", "stories_for_product_v1"),
    *("stories_for_story_v1", "story_embedding_v2", "product_embedding_v2", "stories_for_product_v2"),
    "stories_for_story_v2",
)


@dataclass
class Both:
    """Feast's application, alone and behind the faster lookups.

    Attributes:
        client: of the definitions, over the same online store.
        num_passed_on: requests that came through to Feast's.
    """

    client: FeatureStoreClient
    alone: Any = field(init=False)
    faster: Any = field(init=False)
    num_passed_on: int = 0

    def __post_init__(self) -> None:
        from feast.feature_server import get_app
        from starlette.testclient import TestClient

        from storyrec.features.read_app import ReadApp

        feast = get_app(self.client._store, registry_ttl_sec=0)

        async def counting(*arguments: Any) -> None:
            self.num_passed_on += 1
            await feast(*arguments)

        app = ReadApp(counting, self.client._store)
        self.alone, self.faster = (TestClient(one, raise_server_exceptions=False) for one in (feast, app))

    def ask(self, body: bytes | Mapping[str, Any], **more: Any) -> tuple[Any, bool]:
        """The answer, which must be the same of both, and whether it came without Feast."""
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        more = {"headers": {"Content-Type": "application/json"}, **more}
        before, faster = self.num_passed_on, self.faster.post(PATH, content=body, **more)
        was_faster = self.num_passed_on == before
        alone = self.alone.post(PATH, content=body, **more)
        assert faster.headers["content-type"] == alone.headers["content-type"]
        if alone.status_code == 500:  # over what was asked wrongly, or what it was not asked for
            assert faster.status_code in (200, 404, 422), (faster.text, alone.text)
        elif faster.status_code == 422 != alone.status_code:
            asked = json.loads(body)
            # two features are wrong: Feast names an unknown view, we what is no feature
            is_either = "FeatureViewNotFound" in alone.text and "there is no feature" in faster.text
            assert is_either or has_odd_key(asked["entities"]), (faster.text, alone.text)
        else:
            assert faster.status_code == alone.status_code, (faster.text, alone.text)
            answer, of_feast = by_name(faster.json()), by_name(alone.json())
            if faster.status_code == 200:
                without_spare_keys(of_feast, answer)
            assert answer == of_feast
        return faster, was_faster


def has_odd_key(entities: dict[str, list[Any]]) -> bool:
    """Whether Feast may take a key for one that it is not."""
    return any(
        type(key) is not str or not key if name == "model" else type(key) is not int and not str(key).isdecimal()
        for name in entities
        for key in entities[name]
    )


def by_name(answer: Any) -> Any:
    """An answer without the order of a view's features, which Feast does not keep from process to process."""
    if not isinstance(answer, dict) or "results" not in answer:
        return answer
    names = answer["metadata"].pop("feature_names")
    assert len(names) == len(answer["results"])
    results = dict(zip(names, answer.pop("results"), strict=True))
    return answer | {"results": results, "num_names": len(names)}


def without_spare_keys(answer: dict[str, Any], other: dict[str, Any]) -> None:
    """Leave out keys that no view needs: Feast gives them back where they are called as their entity is."""
    for name in {"user_id", "story_id", "product_id", "model"} & answer["results"].keys() - other["results"].keys():
        del answer["results"][name]
        answer["num_names"] -= 1


@pytest.fixture(scope="module", params=["local", "cluster"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, redis_server: str) -> Iterator[Both]:
    """Both applications over values of every view, in both profiles; the cluster's in a real Redis."""
    folder = tmp_path_factory.mktemp("read")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORYREC_REDIS", f"{redis_server},db=5")
        patch.setenv("STORYREC_FEAST_REGISTRY", f"sqlite:///{folder}/registry.sqlite")
        client = opened(World(folder).config.model_copy(update={"profile": request.param}))
        fill_online(client)
        both = Both(client)
        with both.alone, both.faster:  # one event loop for all requests
            yield both


def fill_online(client: FeatureStoreClient) -> None:
    """Drawn values of every view, and two models."""
    from storyrec.features.online_models import OnlineModels

    random, online, config = np.random.default_rng(0), client._online, client._config
    for name in client._views:
        layout = client.layout(name)
        for part in [layout.of_model(model) for model in MODELS] if layout.by_model else [layout]:
            online.create(config, [part.view])
            values = {key: drawn_row(part, random) for key in KNOWN}
            online.put(config, part, values)
            online.mark_complete(config, part, microseconds(at(1)))
    online.publish_models(config, OnlineModels(MODELS[1], MODELS), published_us=1)


def drawn_row(layout: Layout, random: np.random.Generator) -> bytes:
    length, fields = int(random.integers(1, 20)), []
    for name, kind in layout.fields:
        if kind == TEXT:
            fields.append("modèle".encode())
        elif name.endswith("_us"):
            fields.append(np.sort(random.integers(microseconds(at(0)), microseconds(at(1)), length)).tobytes())
        else:
            fields.append(random.integers(1, 2**40, length).astype(ARRAYS[kind]).tobytes())
            if kind == "FLOAT_LIST":
                fields[-1] = random.normal(size=length).astype(np.float32).tobytes()
    event_us = microseconds(at(0)) + int(random.choice([0, 1_000, 123_456, 999_999]))
    return layout.pack(Row(event_us, microseconds(at(1)), tuple(fields)))


def keys_of(service: str, *ids: Any, model: str = "current") -> dict[str, list[Any]]:
    domain = next((one for one in ("story", "product") if service.startswith((one, f"stories_for_{one}"))), "user")
    return {f"{domain}_id": list(ids)} | ({"model": [model] * len(ids)} if service.endswith("_v2") else {})


@pytest.mark.parametrize("full_names", [False, True])
@pytest.mark.parametrize("service", SERVICES)
def test_every_service_is_answered_as_by_feast_without_it(both: Both, service: str, full_names: bool) -> None:
    entities = keys_of(service, *KNOWN, *UNKNOWN, KNOWN[0], model=MODELS[0])
    answer, was_faster = both.ask({"feature_service": service, "entities": entities, "full_feature_names": full_names})
    assert (answer.status_code, was_faster) == (200, True)
    assert {"PRESENT", "NOT_FOUND"} == {status for one in answer.json()["results"] for status in one["statuses"]}


@pytest.mark.parametrize("service", SERVICES)
def test_the_client_gives_what_feast_gives(both: Both, service: str) -> None:
    ids = [*KNOWN, *UNKNOWN]
    (key, _), *others = keys_of(service, *ids, model=MODELS[0]).items()
    values = {name: column[0] for name, column in others}
    store, rows = both.client._store, [{key: number, **values} for number in ids]
    expected = store.get_online_features(store.get_feature_service(service), rows).to_dict()
    assert both.client.online(ids, join_key=key, service=service, **values) == expected


def test_all_services_are_asked_for(both: Both) -> None:
    assert set(SERVICES) == set(both.client._services)


def test_features_of_two_entities_are_answered_as_by_feast_without_it(both: Both) -> None:
    features = [
        "user_story_sequence:story_ids",
        "story_embedding_by_model:embedding",
        "product_embedding:model_version",
    ]
    entities = {"product_id": [1, 9], "model": ["current", MODELS[0]], "user_id": [2, 3], "story_id": [4, 5]}
    answer, was_faster = both.ask({"features": features, "entities": entities})
    assert (answer.status_code, was_faster) == (200, True)


IDS = st.lists(st.sampled_from([*KNOWN, *UNKNOWN]), min_size=1, max_size=4)
ODD = st.sampled_from(["7", "x", 1.0, 1.5, True, None, [1], {}, 2**63, -(2**63), float("nan"), "\ud800"])
FEATURES = st.sampled_from(
    [
        *("user_story_sequence:story_ids", "user_story_sequence:story_clicked_us", "user_product_sequence:product_ids"),
        *("story_embedding:embedding", "story_embedding:model_version", "story_embedding_by_model:embedding"),
        *("stories_for_story:story_ids", "nowhere:story_ids", "user_story_sequence:nothing", "story_ids", "a:b:c"),
        *("user_story_sequence@v1:story_ids", "user_story_sequence:user_id", ""),
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """What clients may send, right and wrong."""
    asked: dict[str, Any] = {}
    if draw(st.booleans()):
        asked["feature_service"] = draw(st.sampled_from([*SERVICES, "nothing_v1", "", None, 7]))
    if "feature_service" not in asked or draw(st.integers(0, 4)) == 0:
        asked["features"] = draw(st.lists(FEATURES, max_size=3) | st.sampled_from([None, "story_ids", [7]]))
    entities: dict[str, Any] = {}
    num_keys = draw(st.integers(0, 3))
    for name in draw(st.permutations(["user_id", "story_id", "product_id", "model"])):
        if draw(st.booleans()):
            known = st.sampled_from([*MODELS, "current", "gone", ""] if name == "model" else [*KNOWN, *UNKNOWN])
            some = known | ODD if draw(st.integers(0, 5)) == 0 else known
            length = draw(st.integers(0, 3)) if draw(st.integers(0, 9)) == 0 else num_keys
            entities[name] = draw(st.lists(some, min_size=length, max_size=length))
    if draw(st.integers(0, 9)) == 0:
        entities[draw(st.sampled_from(["user", "price", ""]))] = draw(st.sampled_from([[1], [], 7, None, ["a"]]))
    asked["entities"] = entities if draw(st.integers(0, 19)) else draw(st.sampled_from([None, [], 7]))
    for name in ("full_feature_names", "include_feature_view_version_metadata"):
        if draw(st.integers(0, 3)) == 0:
            asked[name] = draw(st.sampled_from([True, False, "true", None, 1]))
    return asked


@pytest.mark.filterwarnings("ignore:Using entity name is deprecated")
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=requests())
def test_whatever_is_asked_is_answered_as_by_feast(both: Both, asked: dict[str, Any]) -> None:
    both.ask(asked)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(service=st.sampled_from(SERVICES), ids=IDS, model=st.sampled_from([*MODELS, "current"]))
def test_any_keys_of_a_service_are_answered_without_feast(both: Both, service: str, ids: list[int], model: str) -> None:
    answer, was_faster = both.ask({"feature_service": service, "entities": keys_of(service, *ids, model=model)})
    assert (answer.status_code, was_faster) == (200, True)


@pytest.mark.parametrize(
    ("body", "more", "status"),
    [
        (b"{", {}, 422),
        (b"", {}, 422),
        (b"[]", {}, 422),
        (b"\xff", {}, 400),
        ({"feature_service": "nothing_v1", "entities": {"user_id": [1]}}, {}, 404),
        ({"features": ["nowhere:story_ids"], "entities": {"user_id": [1]}}, {}, 404),
        ({"feature_service": "ranker_v1", "entities": {"user_id": [1]}}, {"headers": {}}, 422),
    ],
)
def test_what_cannot_be_answered_is_refused_by_feast(both: Both, body: Any, more: dict[str, Any], status: int) -> None:
    answer, was_faster = both.ask(body, **more)
    assert (answer.status_code, was_faster) == (status, False)


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"entities": {"story_id": [1]}}, 422, "no user_id, but story_id"),
        ({"entities": {}}, 422, "no user_id, but nothing"),
        ({"entities": {"user_id": [1, "x"]}}, 422, "user_id is 'x'"),
        ({"entities": {"user": [1, "x"]}}, 422, "user_id is 'x'"),
        ({"entities": {"user_id": [1], "story_id": [1, 2]}}, 422, "1 of user_id, 2 of story_id"),
        ({"entities": {"user_id": []}}, 422, "0 of user_id"),
        ({"entities": {"user_id": [], "user": [1]}}, 422, "0 of user_id, 1 of user"),
        ({"feature_service": None, "entities": {"user_id": [1]}}, 422, "there is no feature ''"),
        (
            {"feature_service": None, "features": ["user_story_sequence:nothing"], "entities": {"user_id": [1]}},
            422,
            "no feature 'user_story_sequence:nothing'",
        ),
        (
            {"feature_service": None, "features": ["user_story_sequence:story_ids"] * 2, "entities": {"user_id": [1]}},
            422,
            "two features of one name",
        ),
        ({"feature_service": None, "features": ["story_ids"], "entities": {"user_id": [1]}}, 422, "'story_ids'"),
        ({"feature_service": None, "features": ["nowhere:story_ids", "x"], "entities": {"user_id": [1]}}, 422, "'x'"),
        ({"entities": {"user_id": [1.5]}}, 422, "user_id is 1.5"),
        ({"entities": {"user_id": [True]}}, 422, "user_id is True"),
        ({"entities": {"user_id": [None]}}, 422, "user_id is None"),
        ({"entities": {"user_id": [2**63]}}, 422, "64 bits"),
        ({"feature_service": "story_embedding_v2", "entities": {"story_id": [1]}}, 422, "no model, but story_id"),
        ({"feature_service": "story_embedding_v2", "entities": {"story_id": [1], "model": [7]}}, 422, "model is 7"),
        (
            {"feature_service": "story_embedding_v2", "entities": {"story_id": [1], "model": ["gone"]}},
            404,
            "model gone is not online",
        ),
    ],
)
def test_what_is_wrong_with_the_keys_is_said(both: Both, asked: dict[str, Any], status: int, message: str) -> None:
    answer, was_faster = both.ask({"feature_service": "ranker_v1"} | asked)
    assert (answer.status_code, was_faster) == (status, True)
    error = FeastError.from_error_detail(answer.json())
    assert type(error) is FeastError  # which a client has that knows nothing of storyrec
    assert message in str(error)


@pytest.mark.parametrize("path", [PATH, "/push", "/materialize", "/health"])
@pytest.mark.parametrize("query", ["project=other", "project=storyrec&project=other", "project=", "a=1&project=%20"])
def test_nobody_gets_around_the_permissions_by_another_project(both: Both, path: str, query: str) -> None:
    before = both.num_passed_on
    body = {"feature_service": "ranker_v1", "entities": {"user_id": [1]}}
    answer = both.faster.post(f"{path}?{query}", json=body)
    assert (answer.status_code, both.num_passed_on) == (404, before)
    assert "expected: storyrec" in str(FeastError.from_error_detail(answer.json()))


@pytest.mark.parametrize("query", ["project=storyrec", "trace=7", "a"])
def test_a_lookup_with_a_query_is_answered_as_without(both: Both, query: str) -> None:
    body = {"feature_service": "ranker_v1", "entities": {"user_id": [1]}}
    answer, was_faster = both.ask(body, params=query)
    assert (answer.status_code, was_faster) == (200, True)


def test_other_routes_are_feasts(both: Both) -> None:
    before = both.num_passed_on
    assert both.faster.get("/health").status_code == 200
    assert both.faster.get(PATH).status_code == 405
    assert both.faster.get("/docs").status_code == 200
    assert both.num_passed_on == before + 3


def test_definitions_applied_while_serving_are_served_when_the_registry_is_read_again(both: Both) -> None:
    from feast import FeatureService, FeatureStore

    asked = {"feature_service": "later_v1", "entities": {"user_id": [1]}}
    assert both.ask(asked)[0].status_code == 404
    store = both.client._store
    other = FeatureStore(repo_path=str(store.repo_path), config=store.config)
    view = other.get_feature_view("user_story_sequence")
    other.apply(FeatureService(name="later_v1", features=[view[["story_ids"]]]))
    store.refresh_registry()
    answer, was_faster = both.ask(asked)
    assert (answer.json()["metadata"]["feature_names"], was_faster) == (["user_id", "story_ids"], True)
    other.apply(FeatureService(name="later_v1", features=[view]))
    store.refresh_registry()
    answer, was_faster = both.ask(asked)
    assert (len(answer.json()["metadata"]["feature_names"]), was_faster) == (3, True)
    other.delete_feature_service("later_v1")
    store.refresh_registry()
    assert both.ask(asked)[0].status_code == 404


def test_answers_are_counted_as_by_feast(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    from feast import metrics
    from prometheus_client import REGISTRY

    monkeypatch.setattr(metrics, "_config", metrics.build_metrics_flags())
    body = {"feature_service": "ranker_v1", "entities": {"user_id": [1, 2, 4_711]}}

    def counted(app: Any) -> dict[Any, float]:
        def samples() -> dict[Any, float]:
            return {
                (one.name, *one.labels.items()): one.value
                for family in REGISTRY.collect()
                for one in family.samples
                if family.name.startswith("feast_") and not one.name.endswith(("_created", "_sum", "_bucket"))
            }

        before = samples()
        assert app.post(PATH, json=body).status_code == 200
        return {key: value - before.get(key, 0) for key, value in samples().items() if value != before.get(key, 0)}

    assert counted(both.faster) == counted(both.alone) != {}


class Parser:
    """Stands in for a provider of tokens that revokes them."""

    def __init__(self) -> None:
        self.num_asked, self.is_revoked = 0, False

    async def user_details_from_access_token(self, token: str) -> Any:
        from feast.permissions.user import User

        self.num_asked += 1
        if self.is_revoked:
            raise PermissionError("revoked")
        return User("somebody", ["reader"])


@pytest.mark.parametrize(("lifetime", "kept"), [(60, 60), (10_000, 300), (None, 0)])
def test_a_verified_token_is_trusted_until_it_expires_and_five_minutes_at_most(
    monkeypatch: pytest.MonkeyPatch, lifetime: int | None, kept: int
) -> None:
    from feast.permissions.auth import auth_manager
    from feast.permissions.server.rest_token_extractor import RestTokenExtractor

    from storyrec.features import read_app

    parser, start = Parser(), 1_800_000_000.0
    manager = auth_manager.AuthManager(token_parser=parser, token_extractor=RestTokenExtractor())
    monkeypatch.setattr(auth_manager, "_auth_manager", manager)
    monkeypatch.setattr(read_app, "get_security_manager", lambda: "there is one")
    claims = {"roles": ["reader"]} | ({"exp": start + lifetime} if lifetime else {})
    header = f"Bearer {jwt.encode(claims, 'k' * 32)}".encode()
    clock = [start]
    users = read_app.Users(now=lambda: clock[0])

    def ask() -> Any:
        return asyncio.run(users.of({"type": "http", "headers": [(b"authorization", header)]}))

    user = ask()
    parser.is_revoked = True
    if kept:
        clock[0] = start + kept - 1
        assert ask() is user
        assert parser.num_asked == 1
    clock[0] = start + kept
    with pytest.raises(PermissionError):
        ask()


def test_a_plan_is_kept_for_one_user_alone(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    """A role is asked for with each user: what one may read, the next one may not."""
    from feast.errors import FeastPermissionError
    from feast.permissions import security_manager
    from feast.permissions.user import User

    from storyrec.features.reads import OnlineReader, Wanted

    store = both.client._store
    monkeypatch.setattr(
        security_manager, "_sm", security_manager.SecurityManager(project=store.project, registry=store.registry)
    )
    reader = OnlineReader(store)
    for wanted in (Wanted("ranker_v1"), Wanted("", ("user_story_sequence:story_ids",))):
        assert reader.plan(wanted, user=User("a", ["reader"]))
        with pytest.raises(FeastPermissionError):
            reader.plan(wanted, user=User("b", ["gardener"]))
        with pytest.raises(FeastPermissionError):
            reader.plan(wanted, user=None)


def test_a_plan_is_kept_while_the_registry_says_the_same(both: Both) -> None:
    from feast import FeatureService

    from storyrec.features.reads import OnlineReader, Wanted

    store = both.client._store
    reader, wanted = OnlineReader(store), Wanted("ranker_v1")
    plan = reader.plan(wanted)
    store.refresh_registry()
    assert reader.plan(wanted) is plan
    store.apply(FeatureService(name="another_v1", features=[store.get_feature_view("user_story_sequence")]))
    assert reader.plan(wanted) is not plan
    assert reader.plan(wanted) == plan
    store.delete_feature_service("another_v1")


@pytest.mark.parametrize("both", ["cluster"], indirect=True)
def test_a_store_that_hangs_holds_up_lookups_alone(
    both: Both, redis_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, on_event_loop = both.faster.app, list[bool]()
    app._careful_until = 0.0
    read = app._reader.read

    def noted(*arguments: Any, hurried: bool) -> Any:
        on_event_loop.append(hurried)
        return read(*arguments, hurried=hurried)

    monkeypatch.setattr(app._reader, "read", noted)
    body = {"feature_service": "ranker_v1", "entities": {"user_id": [KNOWN[0]]}}

    def look_up() -> float:
        started = time.monotonic()
        assert both.faster.post(PATH, json=body).status_code == 200
        return time.monotonic() - started

    host, _, port = redis_server.partition(":")
    with Redis(host=host, port=int(port)) as redis, ThreadPoolExecutor(1) as pool:
        redis.client_pause(2_000)
        waiting = pool.submit(look_up)
        time.sleep(0.05)
        started = time.monotonic()
        assert both.faster.get("/health").status_code == 200
        assert time.monotonic() - started < 1
        assert waiting.result() > 1.5
    look_up()  # for a while in a thread, whatever the store does
    app._careful_until = 0.0
    look_up()
    assert on_event_loop[:4] == [True, False, False, True]


def test_a_store_that_is_gone_is_asked_by_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("STORYREC_REDIS", f"127.0.0.1:{port}")
    monkeypatch.setenv("STORYREC_FEAST_REGISTRY", f"sqlite:///{tmp_path}/registry.sqlite")
    asked = {"feature_service": "user_interest_v1", "entities": {"user_id": [1]}}
    with running_redis(port):
        both = Both(opened(World(tmp_path).config.model_copy(update={"profile": "cluster"})))
        assert both.faster.post(PATH, json=asked).status_code == 200
    started = time.monotonic()
    answer = both.faster.post(PATH, json=asked)
    assert time.monotonic() - started < 1
    assert (answer.status_code, both.num_passed_on) == (503, 0)
    assert "the online store does not answer: ConnectionError" in answer.json()
    with running_redis(port):
        assert both.faster.post(PATH, json=asked).status_code == 200
