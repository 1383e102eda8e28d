"""The plain routes: ranking, recommending, explaining, and what they refuse."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_world import INFER, NOW_US, body, client_of, outputs

from storyrec.explain import load_ranker
from storyrec.schema import Domain
from storyrec.serving.ranking import NO_CLICKS, Clicks, cut_history, rank, ranker_inputs
from storyrec.serving.served import ServedBundle

HOUR_US = 3_600_000_000


def clicks_of(champion: ServedBundle) -> tuple[Clicks, Clicks]:
    """A user's clicks of the last hours, of items that the model knows."""
    assert champion.bundle is not None
    stories, products = champion.bundle.stories, champion.bundle.products
    return (
        Clicks(stories.ids_N[[5, 9, 2]], NOW_US - np.array([9, 5, 1]) * HOUR_US),
        Clicks(products.ids_N[[3, 8]], NOW_US - np.array([7, 6]) * HOUR_US),
    )


def as_json(clicks: Clicks) -> list[dict[str, int]]:
    pairs = zip(np.asarray(clicks.item_ids_C).tolist(), np.asarray(clicks.clicked_us_C).tolist(), strict=True)
    return [{"item_id": item_id, "clicked_us": clicked_us} for item_id, clicked_us in pairs]


def test_ranked_stories_are_sorted_and_scored_as_by_the_protocol(champion: ServedBundle) -> None:
    assert champion.bundle is not None
    stories, products = clicks_of(champion)
    ids = [*champion.bundle.stories.ids_N[1:20].tolist(), 999_999]
    with client_of(champion, sequences=lambda user: (stories, products)) as client:
        answer = client.post("/v1/rank", json={"user_id": 7, "candidates": ids, "request_id": "mine"}).json()
        given = client.post(
            "/v1/rank",
            json={"story_clicks": as_json(stories), "product_clicks": as_json(products), "candidates": ids},
        ).json()
        scores = dict(zip(ids, outputs(client.post(INFER, json=body(7, ids)))["scores"], strict=True))
    assert [story["story_id"] for story in answer["stories"]] == sorted(ids, key=lambda story_id: -scores[story_id])
    assert {story["story_id"]: story["probability"] for story in answer["stories"]} == scores
    assert {story["story_id"] for story in answer["stories"] if story["status"] == "unknown"} == {999_999}
    assert (answer["request_id"], answer["sequences"], answer["user_id"]) == ("mine", "online", 7)
    assert answer["model_version"] == champion.bundle.version
    assert answer["sequence_age_seconds"] == 3_600
    assert (given["stories"], given["sequences"], given["user_id"]) == (answer["stories"], "given", None)
    assert len(given["request_id"]) == 32


def test_recommended_are_the_nearest_to_the_clicks_without_them(champion: ServedBundle) -> None:
    bundle = champion.bundle
    assert bundle is not None
    stories, products = clicks_of(champion)
    with client_of(champion, sequences=lambda user: (stories, products)) as client:
        answer = client.post("/v1/recommend", json={"user_id": 7, "top": 50}).json()
        best = client.post("/v1/recommend", json={"user_id": 7, "top": 3}).json()
    clicks_CM = np.concatenate([bundle.stories.match_NM[[5, 9, 2]], bundle.products.match_NM[[3, 8]]])
    distances_NC = np.linalg.norm(bundle.stories.match_NM[1:, None] - clicks_CM, axis=2)
    # of each click only as many stories are looked at as are wanted, the clicked ones included
    reach_C = np.sort(distances_NC, axis=0)[12 + 3 - 1]
    soft_N = -np.log(np.where(distances_NC <= reach_C, np.exp(-distances_NC.astype(np.float64)), 1e-300).mean(axis=1))
    clicked = set(np.asarray(stories.item_ids_C).tolist())
    nearest = [
        story_id for story_id in bundle.stories.ids_N[1:][np.argsort(soft_N)].tolist() if story_id not in clicked
    ]
    expected = rank(bundle, story_clicks=stories, product_clicks=products, now_us=NOW_US, candidate_ids=nearest[:12])
    found = {story["story_id"]: story["probability"] for story in answer["stories"]}
    assert found == pytest.approx(dict(zip(nearest[:12], expected.tolist(), strict=True)), abs=1e-6)
    assert answer["retrieval"] == "neighbours"
    assert best["stories"] == answer["stories"][:3]


def test_a_user_without_clicks_is_recommended_what_is_best_for_nobody(champion: ServedBundle) -> None:
    bundle = champion.bundle
    assert bundle is not None
    unheard = Clicks([10**9], [NOW_US - HOUR_US])  # of a product that the model does not know
    for clicks in ((NO_CLICKS, NO_CLICKS), (NO_CLICKS, unheard)):
        with client_of(champion, sequences=lambda user, clicks=clicks: clicks) as client:
            answer = client.post("/v1/recommend", json={"user_id": 7, "top": 12}).json()
        assert answer["retrieval"] == "no_clicks"
        ids = bundle.stories.ids_N[1:]
        scores = rank(bundle, story_clicks=NO_CLICKS, product_clicks=NO_CLICKS, now_us=NOW_US, candidate_ids=ids)
        best = set(ids[np.argsort(-scores, kind="stable")[:12]].tolist())
        assert {story["story_id"] for story in answer["stories"]} == best


def test_explained_weights_are_the_heads_attention(champion: ServedBundle) -> None:
    import torch

    bundle = champion.bundle
    assert bundle is not None
    stories, products = clicks_of(champion)
    candidate = int(bundle.stories.ids_N[12])
    with client_of(champion, sequences=lambda user: (stories, products)) as client:
        answer = client.post("/v1/explain", json={"user_id": 7, "candidate": candidate}).json()
        ranked = client.post("/v1/rank", json={"user_id": 7, "candidates": [candidate]}).json()
    history = cut_history(bundle, story_clicks=stories, product_clicks=products, now_us=NOW_US)
    inputs = ranker_inputs(bundle, history, candidate_ids=[candidate], stories=bundle.stories)
    with torch.no_grad():
        _, weights = load_ranker(bundle).of_one_user(**{k: torch.from_numpy(np.asarray(v)) for k, v in inputs.items()})
    for name, domain, number in (("story", Domain.STORY, 3), ("product", Domain.PRODUCT, 2)):
        expected_HC = weights[domain][0, :, :number].numpy()
        found = answer[f"{name}_clicks"]
        assert [click["item_id"] for click in found] == getattr(history, f"{name}_ids_C").tolist()
        np.testing.assert_allclose([click["head_weights"] for click in found], expected_HC.T, atol=1e-5)
        np.testing.assert_allclose([click["weight"] for click in found], expected_HC.mean(axis=0), atol=1e-5)
        assert sum(click["weight"] for click in found) == pytest.approx(1.0, abs=1e-5)
    assert answer["stories"] == ranked["stories"]


@pytest.mark.parametrize(
    ("path", "request_body", "status", "said"),
    [
        ("rank", {"candidates": [1]}, 400, "neither 'user_id' nor clicks"),
        ("rank", {"user_id": 1, "candidates": []}, 400, "1 to 50"),
        ("rank", {"user_id": 1, "candidates": [1] * 51}, 400, "1 to 50"),
        ("rank", {"user_id": 1}, 400, "candidates"),
        ("rank", {"user_id": "1", "candidates": [1]}, 400, "integer"),
        ("rank", {"user_id": True, "candidates": [1]}, 400, "integer"),
        ("rank", {"user_id": 1, "candidates": ["1"]}, 400, "candidates.0"),
        ("rank", {"user_id": 2**63, "candidates": [1]}, 400, "less than"),
        ("rank", {"user_id": 1, "candidates": [1], "now_us": -1}, 400, "now_us"),
        ("rank", {"user_id": 1, "candidates": [1], "now_us": 1_773_057_600_000_000_000}, 400, "now_us"),  # nanoseconds
        ("rank", {"user_id": 1, "candidates": [1], "candidate": 2}, 400, "Extra inputs"),
        ("rank", {"user_id": 1, "candidates": [1], "request_id": "x" * 201}, 400, "request_id"),
        ("rank", {"story_clicks": [{"item_id": 1}], "candidates": [1]}, 400, "clicked_us"),
        ("rank", {"story_clicks": [{"item_id": 1, "clicked_us": 1}] * 31, "candidates": [1]}, 400, "at most 30"),
        ("rank", {"user_id": 1, "candidates": list(range(10_000))}, 413, "20,000 bytes"),
        ("recommend", {"user_id": 1, "top": 0}, 400, "top"),
        ("explain", {"user_id": 1, "candidate": None}, 400, "candidate"),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(
    champion: ServedBundle, path: str, request_body: Any, status: int, said: str
) -> None:
    with client_of(champion) as client:
        answer = client.post(f"/v1/{path}", json=request_body)
    assert answer.status_code == status, answer.text
    assert said in answer.json()["error"]


def test_a_body_full_of_wrong_values_is_one_error(champion: ServedBundle) -> None:
    with client_of(champion) as client:
        answer = client.post("/v1/rank", json={"user_id": 1, "candidates": ["x"] * 4_000})
        tensor = body(1, [1_000])
        tensor["inputs"][1]["shape"] = [2**62] * 500
        refused = client.post(INFER, json=tensor)
    assert answer.json()["error"].count("candidates.") == 1
    assert (refused.status_code, "shape" in refused.json()["error"]) == (400, True)


def test_of_clocks_that_differ_the_requests_counts(champion: ServedBundle) -> None:
    stories, products = clicks_of(champion)  # the newest is an hour old
    with client_of(champion, sequences=lambda user: (stories, products)) as client:

        def ask(now_us: int) -> tuple[float | None, list[int]]:
            asked = {"user_id": 7, "candidate": 1_000, "now_us": now_us}
            answer = client.post("/v1/explain", json=asked).json()
            return answer["sequence_age_seconds"], [click["item_id"] for click in answer["story_clicks"]]

        ids = np.asarray(stories.item_ids_C).tolist()
        assert ask(NOW_US) == (3_600, ids)
        assert ask(NOW_US + HOUR_US) == (7_200, ids)  # ahead: the same clicks, older
        assert ask(NOW_US - 2 * HOUR_US) == (3 * 3_600, ids[:2])  # behind: what is yet to come does not count
        assert ask(253_402_300_799_999_999) == (None, [])  # so far ahead that all is out of the windows


def test_a_lone_surrogate_is_refused_and_not_a_crash(champion: ServedBundle) -> None:
    content = b'{"user_id": 1, "candidates": [1], "request_id": "\\ud800", "\\ud801": 1}'
    with client_of(champion) as client:
        answer = client.post("/v1/rank", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_a_version_that_does_not_serve_is_refused_by_name(champion: ServedBundle) -> None:
    assert champion.bundle is not None
    version = champion.bundle.version
    with client_of(champion) as client:
        for path in (f"versions/{version}/infer", "infer"):
            answer = client.post(f"/v2/models/storyrec/{path}", json=body(1, [1_000]))
            assert answer.json()["model_version"] == version
            assert answer.headers["storyrec-model-version"] == version
        refused = client.post("/v2/models/storyrec/versions/0/infer", json=body(1, [1_000]))
        assert (refused.status_code, version in refused.json()["error"]) == (404, True)
        assert client.get(f"/v2/models/storyrec/versions/{version}").json()["versions"] == [version]
        assert client.get(f"/v2/models/storyrec/versions/{version}/ready").status_code == 200
        assert client.get("/v2/models/storyrec/versions/0/ready").status_code == 404


def test_figures_count_what_was_asked(champion: ServedBundle) -> None:
    assert champion.bundle is not None

    def figures(client: Any) -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def down(user_id: int) -> tuple[Clicks, Clicks]:
        raise ConnectionError("no route")

    asked = f'storyrec_requests_total{{route="/v1/rank",status="200",version="{champion.bundle.version}"}}'
    refused = 'storyrec_requests_total{route="/v1/rank",status="400",version=""}'
    names = (asked, refused, "storyrec_candidates_sum", "storyrec_unknown_candidates_total")
    names = (*names, 'storyrec_fallbacks_total{reason="error"}', 'storyrec_request_seconds_count{route="/v1/rank"}')
    with client_of(champion, sequences=down) as client:
        before = figures(client)
        client.post("/v1/rank", json={"user_id": 1, "candidates": [1_000, 999_999, 1_001]})
        client.post("/v1/rank", json={"user_id": 1, "candidates": []})
        after = figures(client)
    assert [after[name] - before.get(name, 0.0) for name in names] == [1, 1, 3, 1, 1, 2]


def test_the_documentation_has_every_route_with_an_example_that_works(champion: ServedBundle) -> None:
    with client_of(champion) as client:
        schema = client.get("/openapi.json").json()
        assert client.get("/docs").status_code == 200
        routes = [(path, route["post"]) for path, route in schema["paths"].items() if "post" in route]
        assert {path for path, _ in routes} >= {"/v1/rank", "/v1/recommend", "/v1/explain", INFER}
        for path, route in routes:
            reference = route["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            examples = schema["components"]["schemas"][reference.rsplit("/", 1)[-1]]["examples"]
            for example in examples:
                answer = client.post(path.replace("{version}", champion.bundle.version), json=example)  # type: ignore[union-attr]
                assert answer.status_code == 200, (path, answer.text)


def test_a_slow_body_is_refused(packed: Path, champion: ServedBundle) -> None:
    import asyncio

    from served_world import recommender_of

    from storyrec.serving.app import create_app

    app = create_app(recommender_of(champion), num_stories=3, max_body_bytes=1_000, body_seconds=0.05)
    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(30)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/rank", "raw_path": b"", "query_string": b"", "headers": []}
    asyncio.run(
        app(scope | {"http_version": "1.1", "scheme": "http", "server": ("h", 1), "root_path": ""}, never, send)
    )
    assert sent[0]["status"] == 408
