"""Whatever a client sends, drawn from the server's description, fitting or not: no 5xx, and answers as described."""

import contextlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, Config, GenerationMode
from served_world import NOW_US, client_of

from storyrec.serving.ranking import Clicks
from storyrec.serving.served import ServedBundle

CLICKS = (Clicks([1_001, 1_005], [NOW_US - 2, NOW_US - 1]), Clicks([500_003], [NOW_US - 3]))
# a body that fits can still name neither a user nor clicks, or too many candidates
# some that are bent are also too large, which is looked at first
CONFIG = Config.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {"enabled": False},
            "negative_data_rejection": {"expected-statuses": [400, 404, 413]},
        }
    }
)
HOSTILE = [b"", b"{", b"null", b"[1e999]", b"\xff\xfe", b"[" * 9_000, b'{"user_id": 1' + b"0" * 5_000 + b"}"]


def fuzz(
    operation: "APIOperation[Any, Any, Any, Any]", mode: GenerationMode, *, known: dict[str, Any], num_examples: int
) -> set[int]:
    """Ask, and compare the answers with the description; `known` are parts of the path. The statuses."""
    statuses: set[int] = set()

    @seed(0)
    @settings(
        max_examples=num_examples,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=known or None))
    def ask(case: Case) -> None:
        statuses.add(case.call_and_validate().status_code)

    with contextlib.suppress(Unsatisfiable):  # what takes no parameters cannot be asked wrongly
        ask()
    return statuses


def ask_examples(operation: "APIOperation[Any, Any, Any, Any]", *, known: dict[str, Any]) -> int:
    """Ask what the description gives as examples, which must be answered; how many they are."""
    strategies = operation.get_strategies_from_examples(path_parameters=known or None)
    statuses: list[int] = []

    @settings(max_examples=1, deadline=None, database=None)
    @given(cases=st.tuples(*strategies))
    def ask(cases: tuple[Case, ...]) -> None:
        statuses[:] = [case.call_and_validate().status_code for case in cases]

    ask()
    assert set(statuses) <= {200}, operation.label
    return len(statuses)


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
            is_get = operation.method.upper() == "GET"
            examples = 0 if is_get else ask_examples(operation, known=known)
            # few of the bodies that are drawn name a user or clicks, as most POST routes want
            assert 200 in answered or examples, operation.label
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
