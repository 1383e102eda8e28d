"""Whatever a client sends, drawn from the server's description, fitting or not: no 5xx, and answers as described."""

import contextlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from served_world import client_of

from storyrec.serving.served import ServedBundle

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
HOSTILE = [b"", b"{", b"null", b"[1e999]", b"\xff\xfe", b"[" * 9_000, b'{"user_id": 1' + b"0" * 5_000 + b"}"]


def fuzz(operation: APIOperation[Any, Any, Any], mode: GenerationMode, *, num_examples: int) -> set[int]:
    """Ask and check; the statuses of the answers."""
    statuses: set[int] = set()

    @seed(0)
    @settings(max_examples=num_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        response = case.call()
        case.validate_response(response, checks=CHECKS)
        statuses.add(response.status_code)

    with contextlib.suppress(Unsatisfiable):  # without parameters nothing can be bent
        ask()
    return statuses


@pytest.mark.parametrize("num_examples", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_every_route_answers_as_described(champion: ServedBundle, num_examples: int) -> None:
    with client_of(champion) as client:
        schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
        statuses = {
            (operation.method, operation.path, mode): fuzz(operation, mode, num_examples=num_examples)
            for operation in (result.ok() for result in schema.get_all_operations())
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
        }
    assert len(statuses) == 2 * 14
    posts = {key: seen for key, seen in statuses.items() if key[0].upper() == "POST"}
    assert all(400 in seen for (*_, mode), seen in posts.items() if mode == GenerationMode.NEGATIVE)
    assert 200 in set.union(*posts.values())


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
