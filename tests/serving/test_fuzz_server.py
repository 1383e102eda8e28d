"""Whatever a client sends, drawn from the server's description, fitting or not: no 5xx, and answers as described."""

import contextlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, Config, GenerationMode
from served_world import NOW_US, client_of

from storyrec.serving.ranking import Clicks
from storyrec.serving.served import ServedBundle

CLICKS = (Clicks([1_001, 1_005], [NOW_US - 2, NOW_US - 1]), Clicks([500_003], [NOW_US - 3]))
# a body that fits can still name neither a user nor clicks, or too many candidates
CONFIG = Config.from_dict({"checks": {"positive_data_acceptance": {"enabled": False}}})
HOSTILE = [b"", b"{", b"null", b"[1e999]", b"\xff\xfe", b"[" * 9_000, b'{"user_id": 1' + b"0" * 5_000 + b"}"]


def fuzz(
    operation: "APIOperation[Any, Any, Any, Any]", mode: GenerationMode, *, known: dict[str, Any], num_examples: int
) -> set[int]:
    """Ask, and compare the answers with the description; `known` are parts of the path. The statuses."""
    statuses: set[int] = set()

    @seed(0)
    @settings(max_examples=num_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=known or None))
    def ask(case: Case) -> None:
        statuses.add(case.call_and_validate().status_code)

    with contextlib.suppress(Unsatisfiable):  # what takes no parameters cannot be asked wrongly
        ask()
    return statuses


@pytest.mark.slow
@pytest.mark.parametrize("num_examples", [10, 300])
def test_every_route_answers_as_described(champion: ServedBundle, num_examples: int) -> None:
    assert champion.bundle is not None
    parts = {"version": champion.bundle.version, "product_id": 500_003}
    with client_of(champion, sequences=lambda user: CLICKS) as client:
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app, config=CONFIG)
        operations = [found.ok() for found in schema.get_all_operations()]
        assert len(operations) == 13
        for operation in operations:
            known = {name: value for name, value in parts.items() if f"{{{name}}}" in operation.path}
            fits, bent = GenerationMode.POSITIVE, GenerationMode.NEGATIVE
            answered = fuzz(operation, fits, known=known, num_examples=num_examples)
            refused = fuzz(operation, bent, known=known, num_examples=num_examples)
            # few of the bodies that are drawn name a user or clicks, as most POST routes want
            is_get = operation.method.upper() == "GET"
            assert 200 in answered or not is_get, operation.label
            assert 400 in refused or is_get, operation.label
            if known:
                unknown = fuzz(operation, fits, known={}, num_examples=num_examples)
                assert unknown <= {400, 404}, operation.label
                assert 404 in unknown or not is_get, operation.label


@pytest.mark.parametrize("content", HOSTILE)
def test_what_is_no_json_is_refused_everywhere(champion: ServedBundle, content: bytes) -> None:
    with client_of(champion) as client:
        paths = client.get("/openapi.json").json()["paths"]
        posts = [path.replace("{version}", "1") for path, route in paths.items() if "post" in route]
        assert len(posts) == 5
        for path in posts:
            answer = client.post(path, content=content)
            assert answer.status_code == 400, (path, answer.text)
            assert answer.json()["error"].startswith("body")
