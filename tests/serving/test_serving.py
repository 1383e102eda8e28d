"""The model server: the protocol, what it refuses, and the change of champions while it runs."""

import json
import os
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from served_world import DAYS, INFER, NOW_US, body, client_of, deploy, outputs, running_server

from storyrec.bundle import Bundle
from storyrec.config import Config, Locations, load_config
from storyrec.errors import ModelError, PlatformError, StorageError
from storyrec.features.build import build_features, materialize_features
from storyrec.manifest import seal_folder
from storyrec.match import nearest_stories
from storyrec.promote import set_canary, withdraw_canary
from storyrec.registry import push_bundle, rollback
from storyrec.serving import server
from storyrec.serving.ranking import NO_CLICKS, Clicks, rank
from storyrec.serving.served import ServedBundle
from storyrec.serving.server import serve
from storyrec.serving.split import Split
from storyrec.storage import FolderStorage, open_storage
from trained import World


def test_scores_are_those_of_the_ranker_on_the_users_clicks(champion: ServedBundle) -> None:
    bundle = champion.bundle
    assert bundle is not None
    clicks = {
        7: (
            Clicks(bundle.stories.ids_N[1:4], NOW_US - np.array([9, 5, 1]) * 10**9),
            Clicks(bundle.products.ids_N[1:6], NOW_US - np.array([8, 7, 6, 5, 4]) * 10**9),
        )
    }
    ids = [int(i) for i in bundle.stories.ids_N[1:20]]
    with client_of(champion, sequences=lambda user: clicks.get(user, (NO_CLICKS, NO_CLICKS))) as client:
        answer = client.post(INFER, json=body(7, ids, id="request-1"))
        other = client.post(INFER, json=body(8, ids))
        later = client.post(INFER, json=body(7, ids, now_us=NOW_US + 86_400_000_000))
    expected = rank(bundle, story_clicks=clicks[7][0], product_clicks=clicks[7][1], now_us=NOW_US, candidate_ids=ids)
    assert outputs(answer)["scores"] == pytest.approx(expected.tolist(), abs=1e-7)
    read = answer.json()
    assert (read["id"], read["model_name"], read["model_version"]) == ("request-1", "storyrec", bundle.version)
    assert read["parameters"] == {"sequences": "online"}
    assert "id" not in other.json()
    assert outputs(other)["scores"] != outputs(answer)["scores"] != outputs(later)["scores"]


def test_unknown_candidates_get_the_default_score_and_are_listed(champion: ServedBundle) -> None:
    assert champion.bundle is not None
    known = int(champion.bundle.stories.ids_N[1])
    with client_of(champion) as client:
        found = outputs(client.post(INFER, json=body(1, [999_999, known, -5, 0, 2**63 - 1])))
    assert found["unknown_candidate_ids"] == [999_999, -5, 0, 2**63 - 1]
    scores = found["scores"]
    assert scores[0] == scores[2] == scores[3] == scores[4] != scores[1]


def test_a_feature_store_that_fails_costs_the_clicks_and_not_the_answer(champion: ServedBundle) -> None:
    def down(user_id: int) -> tuple[Clicks, Clicks]:
        raise ConnectionError("no route to the store")

    with client_of(champion, sequences=down) as client, client_of(champion) as without:
        answer = client.post(INFER, json=body(1, [1_000, 1_001]))
        assert answer.json()["parameters"] == {"sequences": "unavailable"}
        expected = without.post(INFER, json=body(1, [1_000, 1_001]))
    assert expected.json()["parameters"] == {"sequences": "none"}
    assert outputs(answer) == outputs(expected)


def changed(**changes: Any) -> dict[str, Any]:
    """A good request with one input's fields replaced, or dropped where the value is None."""
    good = body(1, [1_000, 1_001])
    for name, fields in changes.items():
        (tensor,) = [tensor for tensor in good["inputs"] if tensor["name"] == name]
        if fields is None:
            good["inputs"].remove(tensor)
        else:
            tensor.update(fields)
    return good


@pytest.mark.parametrize(
    ("request_body", "said"),
    [
        ({}, "inputs"),
        ({"inputs": []}, "'user_id' is missing"),
        ({"inputs": "all"}, "inputs"),
        ([], "body"),
        (changed(candidate_ids=None), "'candidate_ids' is missing"),
        (changed(user_id=None), "'user_id' is missing"),
        (changed(user_id={"data": []}), "0 values"),
        (changed(user_id={"data": [1, 2], "shape": [2]}), "takes one value"),
        (changed(user_id={"data": ["1"]}), "integer"),
        (changed(user_id={"data": [1.5]}), "integer"),
        (changed(user_id={"data": [True]}), "integer"),
        (changed(user_id={"data": [2**63]}), "less than"),
        (changed(user_id={"datatype": "FP32"}), "INT64"),
        (changed(user_id={"name": "user"}), "user_id"),
        (changed(candidate_ids={"data": [], "shape": [0]}), "1 to 50"),
        (changed(candidate_ids={"data": list(range(51)), "shape": [51]}), "1 to 50"),
        (changed(candidate_ids={"shape": [3]}), "2 values and shape [3]"),
        (changed(candidate_ids={"shape": [-2]}), "shape [-2]"),
        (changed(candidate_ids={"shape": [-1, -2]}), "shape [-1, -2]"),
        (body(1, [1_000], now_us=-1), "now_us"),
        (body(1, [1_000], now_us=2**63 - 1), "now_us"),
        ({"inputs": [*body(1, [1_000])["inputs"], body(2, [1_000])["inputs"][0]]}, "twice"),
    ],
)
def test_a_malformed_request_is_told_what_is_wrong(champion: ServedBundle, request_body: Any, said: str) -> None:
    with client_of(champion) as client:
        answer = client.post(INFER, json=request_body)
        assert answer.status_code == 400, answer.text
        assert said in answer.json()["error"]
        assert client.post(INFER, json=body(1, [1_000])).status_code == 200


def test_what_is_no_json_and_what_does_not_exist_is_refused(champion: ServedBundle) -> None:
    with client_of(champion) as client:
        assert client.post(INFER, content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert client.get("/v2/models/other").status_code == 404
        assert client.get(INFER).status_code == 405


def test_health_and_metadata(champion: ServedBundle, tmp_path: Path) -> None:
    assert champion.bundle is not None
    with client_of(champion) as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True, "refused": None}
        assert client.get("/v2/models/storyrec/ready").status_code == 200
        model = client.get("/v2/models/storyrec").json()
        assert (model["name"], model["versions"]) == ("storyrec", [champion.bundle.version])
        assert {tensor["name"] for tensor in model["inputs"]} == {"user_id", "candidate_ids", "now_us"}
        assert client.get("/v2").json()["name"] == "storyrec"


def test_without_a_champion_the_server_lives_and_is_not_ready(packed: Path, tmp_path: Path) -> None:
    champion = ServedBundle(FolderStorage(tmp_path / "registry"), tmp_path / "cache")
    assert not champion.refresh()
    with client_of(champion) as client:
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/health/ready").status_code == 503
        answer = client.post(INFER, json=body(1, [1_000]))
        assert (answer.status_code, answer.json()) == (503, {"error": "no champion is deployed yet"})
        deploy(champion.registry, packed, tmp_path / "first", day=DAYS[0])
        champion.refresh()
        assert client.get("/v2/health/ready").status_code == 200
        assert client.post(INFER, json=body(1, [1_000])).status_code == 200


def test_readiness_is_answered_as_described_without_a_champion_too(tmp_path: Path) -> None:
    champion = ServedBundle(FolderStorage(tmp_path / "registry"), tmp_path / "cache")
    with client_of(champion) as client:
        paths = client.get("/openapi.json").json()["paths"]
        for path in ("/v2/health/ready", "/v2/models/storyrec/ready", "/v2/models/storyrec/versions/{version}/ready"):
            answer = client.get(path)
            described = paths[path]["get"]["responses"]["503"]["content"]["application/json"]["schema"]["$ref"]
            keys = {"Readiness": {"ready", "refused"}, "Refusal": {"error"}}[described.rsplit("/", 1)[-1]]
            assert (answer.status_code, set(answer.json())) == (503, keys), path


def test_a_version_is_asked_for_in_the_path_alone(champion: ServedBundle) -> None:
    with client_of(champion) as client:
        described = client.get("/openapi.json").json()["paths"]["/v2/models/storyrec"]["get"]
        assert "parameters" not in described
        plain = client.get("/v2/models/storyrec")
        assert plain.status_code == 200
        for query in ("version=", "version=0", "version=0&version=1"):
            assert client.get(f"/v2/models/storyrec?{query}").json() == plain.json()
        assert client.get("/v2/models/storyrec/versions/0").status_code == 404


def test_stories_for_a_product_are_its_nearest(champion: ServedBundle) -> None:
    bundle = champion.bundle
    assert bundle is not None
    product_id = int(bundle.products.ids_N[4])
    with client_of(champion) as client:
        answer = client.get(f"/v1/products/{product_id}/stories").json()
        five = client.get(f"/v1/products/{product_id}/stories", params={"top": 5}).json()
        for missing in (999_999_999, 0, -1, 10**30):
            assert client.get(f"/v1/products/{missing}/stories").status_code == 404
        assert client.get("/v1/products/seven/stories").status_code == 400
        assert client.get(f"/v1/products/{product_id}/stories", params={"top": 0}).status_code == 400
    distances_N = np.linalg.norm(bundle.stories.match_NM[1:] - bundle.products.match_NM[4], axis=1)
    expected = np.argsort(distances_N, kind="stable")[:5]
    assert [story["story_id"] for story in five["stories"]] == bundle.stories.ids_N[1:][expected].tolist()
    assert [story["distance"] for story in five["stories"]] == pytest.approx(distances_N[expected].tolist(), rel=1e-4)
    assert answer["stories"] == five["stories"][:3]
    assert answer["model_version"] == bundle.version
    assert nearest_stories(bundle.products.match_NM[4:5], bundle.stories.match_NM[1:], top_k=1)[0][0, 0] == expected[0]


def test_a_new_champion_takes_over_and_its_predecessor_after_a_rollback(
    champion: ServedBundle, packed: Path, tmp_path: Path
) -> None:
    first = champion.bundle
    second = deploy(champion.registry, packed, tmp_path / "second", day=DAYS[1])
    assert champion.refresh()
    assert champion.bundle is not None
    assert champion.bundle.version == second
    assert first is not None
    first.probe()  # a request in flight goes on with the bundle that it began with
    assert not champion.refresh()
    third = deploy(champion.registry, packed, tmp_path / "third", day=date(2026, 3, 6))
    assert champion.refresh()
    assert {path.name for path in champion.cache.iterdir()} == {
        name for version in (second, third) for name in (version, f"{version}.neighbours")
    }
    for key in champion.registry.list("bundles/"):  # a rollback waits for nothing to be fetched
        if not key.endswith("manifest.json"):
            champion.registry.delete(key)
    rollback(champion.registry)
    assert champion.refresh()
    assert champion.bundle.version == second


def test_a_server_that_follows_the_canary_serves_it_and_else_the_champion(
    champion: ServedBundle, packed: Path, tmp_path: Path
) -> None:
    assert champion.bundle is not None
    first, registry = champion.bundle.version, champion.registry
    shutil.copytree(packed, tmp_path / "second")
    second = seal_folder(tmp_path / "second", day=DAYS[1]).version
    verdict = json.dumps({"blessed": True, "challenger": second}).encode()
    push_bundle(registry, tmp_path / "second", records={"verdict.json": verdict})
    follower = ServedBundle(registry, tmp_path / "canary", follow_canary=True)

    def served(*those: ServedBundle) -> list[str]:
        for one in those:
            one.refresh()
        return [one.bundle.version for one in those if one.bundle is not None]

    assert served(champion, follower) == [first, first]
    set_canary(registry, second, share=0.05, why="a try")
    assert served(champion, follower) == [first, second]
    withdraw_canary(registry, second, why="enough")
    assert served(champion, follower) == [first, first]


@pytest.mark.parametrize("damage", ["changed", "unfinished", "gone", "newer", "nan", "pointer"])
def test_a_champion_that_cannot_be_used_is_refused_and_the_old_one_serves(
    champion: ServedBundle, packed: Path, tmp_path: Path, damage: str
) -> None:
    assert champion.bundle is not None
    first, broken = champion.bundle.version, tmp_path / "broken"
    shutil.copytree(packed, broken)
    if damage == "nan":
        vectors_ND = np.load(broken / "items" / "story_vectors.npy")
        np.save(broken / "items" / "story_vectors.npy", vectors_ND * np.nan)
    second = deploy(champion.registry, broken, tmp_path / "second", day=DAYS[1])
    if damage == "changed":
        champion.registry.write(f"bundles/{second}/ranker.onnx", b"tampered")
    elif damage == "unfinished":
        champion.registry.delete(f"bundles/{second}/manifest.json")
    elif damage == "gone":
        for key in champion.registry.list(f"bundles/{second}/"):
            champion.registry.delete(key)
    elif damage == "newer":
        manifest = json.loads(champion.registry.read(f"bundles/{second}/manifest.json"))
        champion.registry.write(
            f"bundles/{second}/manifest.json", json.dumps(manifest | {"format": manifest["format"] + 1}).encode()
        )
    elif damage == "pointer":
        champion.registry.write("champion.json", b"{")
    with client_of(champion) as client:
        with pytest.raises(ModelError):
            champion.refresh()
        answer = client.post(INFER, json=body(1, [1_000]))
        assert answer.json()["model_version"] == first
        ready = client.get("/v2/health/ready")
        assert ready.status_code == 200
        if damage == "pointer":
            assert "the champion pointer cannot be read" in ready.json()["refused"]
        else:
            assert second in ready.json()["refused"]
    if damage in ("changed", "unfinished"):
        champion.registry.delete(f"bundles/{second}/manifest.json")
        push_bundle(champion.registry, tmp_path / "second")
        assert champion.refresh()
        assert champion.bundle.version == second
        assert champion.refused is None


def test_whatever_goes_wrong_the_watcher_looks_again(
    champion: ServedBundle, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = deploy(champion.registry, packed, tmp_path / "second", day=DAYS[1])
    real, looks = champion.refresh, threading.Event()

    def first_broken() -> bool:
        if not looks.is_set():
            looks.set()
            raise ValueError("nobody thought of this")
        return real()

    monkeypatch.setattr(champion, "refresh", first_broken)
    with server.watching(Split(champion), poll_seconds=0.01):
        deadline = time.monotonic() + 20
        while champion.bundle is None or champion.bundle.version != second:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_restart_serves_from_the_cache_unless_it_was_changed(champion: ServedBundle) -> None:
    assert champion.bundle is not None
    version = champion.bundle.version
    reads: list[str] = []
    registry = champion.registry

    class Counted(FolderStorage):
        def read_versioned(self, key: str) -> tuple[bytes, str] | None:
            reads.append(key)
            return super().read_versioned(key)

    restarted = ServedBundle(Counted(Path(registry.url)), champion.cache)
    restarted.refresh()
    assert reads == ["champion.json"]
    (champion.cache / version / "ranker.onnx").write_bytes(b"rotten")
    again = ServedBundle(Counted(Path(registry.url)), champion.cache)
    again.refresh()
    assert f"bundles/{version}/ranker.onnx" in reads
    assert again.bundle is not None
    again.bundle.probe()


def test_requests_never_fail_while_champions_change(packed: Path, tmp_path: Path) -> None:
    registry = FolderStorage(tmp_path / "registry")
    first = deploy(registry, packed, tmp_path / "first", day=DAYS[0])
    with running_server(tmp_path, registry.url) as address, httpx.Client(base_url=address, timeout=20) as client:

        def ask(_: int) -> str:
            answer = client.post(INFER, json=body(1, [1_000, 1_001, 1_002]))
            assert answer.status_code == 200, answer.text
            assert len(answer.json()["outputs"][0]["data"]) == 3
            return answer.json()["model_version"]

        assert ask(0) == first
        second = deploy(registry, packed, tmp_path / "second", day=DAYS[1])
        seen = {first}
        deadline = time.monotonic() + 60
        with ThreadPoolExecutor(4) as pool:
            while second not in seen and time.monotonic() < deadline:
                seen |= set(pool.map(ask, range(20)))
        assert seen == {first, second}
        assert ask(0) == second


@pytest.mark.parametrize("taken_port", ["port", "grpc_port"])
def test_a_taken_port_ends_before_the_server_starts(packed: Path, tmp_path: Path, taken_port: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = Config.model_validate(
            {
                "locations": {"registry": str(tmp_path)},
                "serving": {"port": 0, "cache": str(tmp_path / "cache"), taken_port: port},
            }
        )
        with pytest.raises(PlatformError, match=f"port {port}"):
            serve(config)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_champion_at_the_start_ends_in_one_message(packed: Path, tmp_path: Path) -> None:
    registry = FolderStorage(tmp_path / "registry")
    version = deploy(registry, packed, tmp_path / "first", day=DAYS[0])
    registry.write(f"bundles/{version}/ranker.onnx", b"tampered")
    config = Config(
        locations=Locations(registry=registry.url),
        serving=Config().serving.model_copy(update={"port": 0, "cache": str(tmp_path / "cache")}),
    )
    with pytest.raises(ModelError, match=r"ranker\.onnx was changed"):
        serve(config)


def test_a_registry_that_refuses_at_the_start_ends_in_one_message(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "champion.json")
    (tmp_path / "loop").symlink_to("champion.json")
    serving = Config().serving.model_copy(update={"port": 0, "cache": str(tmp_path / "cache")})
    with pytest.raises(StorageError, match="cannot read"):
        serve(Config(locations=Locations(registry=str(tmp_path)), serving=serving))


def test_an_s3_registry_is_served(s3: Any, packed: Path, tmp_path: Path) -> None:
    storage = s3.new_storage()
    version = deploy(storage, packed, tmp_path / "first", day=DAYS[0])
    champion = ServedBundle(open_storage(storage.url, s3_endpoint=s3.endpoint), tmp_path / "cache")
    assert champion.refresh()
    assert Bundle.load(tmp_path / "cache" / version).version == version
    assert json.loads(storage.read("champion.json"))["version"] == version


def test_the_kubernetes_manifests_fit_together_and_the_server(champion: ServedBundle, tmp_path: Path) -> None:
    documents = yaml.safe_load_all((Path(__file__).parents[2] / "deploy" / "serving.yaml").read_text())
    by_kind = {document["kind"]: document for document in documents}
    pod = by_kind["Deployment"]["spec"]["template"]
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert by_kind[kind]["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert by_kind["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()

    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert {port["targetPort"] for port in by_kind["Service"]["spec"]["ports"]} <= ports.keys()
    (tmp_path / "settings.toml").write_text(by_kind["ConfigMap"]["data"]["settings.toml"])
    settings = load_config(tmp_path / "settings.toml")
    assert settings.serving.port == ports["http"]
    assert settings.serving.host == "0.0.0.0"

    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(Path(settings.serving.cache).parent) in mounts
    assert {mount["name"] for mount in container["volumeMounts"]} == {v["name"] for v in pod["spec"]["volumes"]}
    (config,) = [variable["value"] for variable in container["env"] if variable["name"] == "STORYREC_CONFIG"]
    assert str(Path(config).parent) in mounts
    with client_of(champion) as client:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container[probe]["httpGet"]
            assert get["port"] in ports
            assert client.get(get["path"]).status_code == 200


def test_a_user_is_served_from_the_feature_store_as_from_the_logs(
    world: World, champion: ServedBundle, tmp_path: Path
) -> None:
    data, bundle = world.data, champion.bundle
    assert bundle is not None
    work = tmp_path / "work"
    shutil.copytree(Path(world.config.locations.work), work)
    config = world.config.model_copy(update={"locations": Locations(work=str(work))})
    build_features(config, day=data.day)
    materialize_features(config, day=data.day)
    sequences = server.feature_store(config)
    assert sequences is not None
    now_us = int(datetime.combine(data.day + timedelta(days=1), datetime.min.time(), UTC).timestamp()) * 10**6
    ids = [int(i) for i in bundle.stories.ids_N[1:9]]
    with client_of(champion, sequences=sequences) as client:
        for user in (1, 17, 60, 10**12):
            clicks = [
                Clicks(log.item_ids_C[log.user_ids_C == user], log.clicked_us_C[log.user_ids_C == user])
                for log in (data.story_clicks, data.product_clicks)
            ]
            answer = client.post(INFER, json=body(user, ids, now_us=now_us))
            assert answer.json()["parameters"] == {"sequences": "online"}
            expected = rank(bundle, story_clicks=clicks[0], product_clicks=clicks[1], now_us=now_us, candidate_ids=ids)
            assert outputs(answer)["scores"] == pytest.approx(expected.tolist(), abs=1e-7)
            assert (len(clicks[0].item_ids_C) > 0) == (user < 10**12)
