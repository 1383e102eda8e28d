"""Whatever a client sends, drawn from the server's own OpenAPI document and bent: nothing ends in a 5xx."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_world import client_of

from storyrec.serving.served import ServedBundle

NUM_EXAMPLES = 300
Strategy = st.SearchStrategy[Any]

JUNK: Strategy = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**63) - 1, 10**400, 2**53 + 1, 0, -1])
    | st.floats()
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=10,
)


def values(schema: dict[str, Any], components: dict[str, Any]) -> Strategy:
    """What a schema allows, and in one place of ten what it does not."""
    return st.integers(0, 9).flatmap(lambda die: JUNK if die == 0 else _fitting(schema, components))


def _fitting(schema: dict[str, Any], components: dict[str, Any]) -> Strategy:
    if "$ref" in schema:
        return _fitting(components[schema["$ref"].rsplit("/", 1)[-1]], components)
    if "anyOf" in schema:
        return st.one_of(*(values(option, components) for option in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return st.sampled_from(schema.get("enum") or [schema["const"]])
    kind = schema.get("type")
    if kind == "object":
        parts = {name: values(part, components) for name, part in schema.get("properties", {}).items()}
        required = {name: parts[name] for name in schema.get("required", ())}
        return st.fixed_dictionaries(required, optional={k: v for k, v in parts.items() if k not in required})
    if kind == "array":
        return st.lists(values(schema["items"], components), max_size=60)
    if kind == "integer":
        return st.integers(-(2**63), 2**63 - 1) | st.integers(900, 1_100) | st.just(20_600 * 86_400_000_000)
    return {"string": st.text(max_size=250), "null": st.none(), "boolean": st.booleans()}.get(str(kind), JUNK)


@pytest.mark.slow
def test_no_request_ends_in_a_server_error(champion: ServedBundle) -> None:
    import json

    with client_of(champion) as client:
        schema = client.get("/openapi.json").json()
        components = schema["components"]["schemas"]
        posts = {
            path: values(route["post"]["requestBody"]["content"]["application/json"]["schema"], components)
            for path, route in schema["paths"].items()
            if "post" in route
        }
        gets = [path for path, route in schema["paths"].items() if "get" in route]
        statuses: set[int] = set()

        @settings(max_examples=NUM_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
        @given(st.data())
        def ask(data: st.DataObject) -> None:
            path = data.draw(st.sampled_from([*posts, *gets]))
            part = data.draw(st.sampled_from(["1000", "-1", "0", "x" * 300, "%00", "1e3", str(10**30)]))
            url = path.replace("{version}", part).replace("{product_id}", part)
            if path in posts and (path not in gets or data.draw(st.booleans())):
                content = data.draw(posts[path].map(json.dumps).map(str.encode) | st.binary(max_size=200))
                answer = client.post(url, content=content, headers={"content-type": "application/json"})
            else:
                answer = client.get(url, params={"top": data.draw(st.sampled_from(["1", "x", "-1", "99999", ""]))})
            assert answer.status_code < 500, (url, answer.text)
            statuses.add(answer.status_code)

        ask()
    assert statuses >= {200, 400, 404}
