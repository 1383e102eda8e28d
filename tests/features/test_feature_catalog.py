"""The catalog: the committed page is what the command writes, and every example is a value of its type."""

import json
import shutil
from pathlib import Path

import pytest

from storyrec.features.catalog import (
    PAGE,
    Catalog,
    CatalogField,
    read_catalog,
    render_catalog,
    version_of,
    write_catalog,
)
from storyrec.schema import TABLES

ROOT = Path(__file__).parents[2]
REPO = ROOT / "feature_repo"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return read_catalog(REPO)


def is_of(value: object, kind: str) -> bool:
    """Whether a JSON value is one of a Feast type."""
    if kind.startswith("Array("):
        return isinstance(value, list) and bool(value) and all(is_of(entry, kind[6:-1]) for entry in value)
    kinds: dict[str, type | tuple[type, ...]] = {"Int64": int, "Float32": (int, float), "String": str}
    return isinstance(value, kinds[kind]) and not isinstance(value, bool)


def test_the_committed_page_is_what_the_command_writes(tmp_path: Path, catalog: Catalog) -> None:
    shutil.copytree(REPO, tmp_path / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    written = write_catalog(tmp_path / "feature_repo")
    assert written == tmp_path / PAGE
    assert written.read_text() == render_catalog(catalog)
    assert (ROOT / PAGE).read_text() == written.read_text(), "run `storyrec features catalog`"


def test_everything_declared_is_described(catalog: Catalog) -> None:
    page = render_catalog(catalog)
    for declared in (*catalog.entities.values(), *catalog.views.values(), *catalog.services.values()):
        assert declared.owner == "storyrec"
        assert declared.meaning in page
        assert declared.name in page
    for view in catalog.views.values():
        assert view.freshness
        section = page.partition(f"### {view.name}\n")[2].partition("\n### ")[0]
        assert f"online never older than {'30h' if view.kind == 'sequence' else '36h'} |" in section
        assert set(view.lineage) <= set(TABLES)
        assert view.keys[0] == view.fields[0].name
        for field in view.fields:
            assert all((field.meaning, field.shape, field.unit)), field.name
            assert f"`{field.example}`" in page
    assert all(service.consumer for service in catalog.services.values())


def test_examples_are_of_their_types(catalog: Catalog) -> None:
    fields = [field for view in catalog.views.values() for field in view.fields]
    assert len(fields) == 38
    for field in fields:
        assert is_of(json.loads(field.example), field.type), field
    wrong = CatalogField("story_ids", "Array(Int64)", "", "", "", '["17"]')
    assert not is_of(json.loads(wrong.example), wrong.type)


def test_services_name_their_features_and_keys(catalog: Catalog) -> None:
    service = catalog.services["user_interest_v1"]
    assert service.features == {"user_story_sequence": ("story_ids",), "user_product_sequence": ("product_ids",)}
    assert catalog.keys_of(service) == {"user_id": "Int64"}
    assert catalog.keys_of(catalog.services["story_embedding_v2"]) == {"story_id": "Int64", "model": "String"}
    assert catalog.services["story_embedding_v1"].features == {"story_embedding": ("embedding", "model_version")}
    assert [version_of(name) for name in ("ranker_v1", "ranker_v12", "user_story_sequence", "v2_of")] == [1, 12, 1, 1]


def test_feasts_own_page_shows_what_is_described(tmp_path: Path, catalog: Catalog) -> None:
    from feast.ui_server import get_app
    from starlette.testclient import TestClient

    from storyrec.features.store import open_feature_store

    store = open_feature_store(str(tmp_path), profile="local")._store
    client = TestClient(get_app(store, store.project, 60))
    for view in catalog.views.values():
        spec = client.get(f"/api/v1/feature_views/{view.name}", params={"project": store.project}).json()["spec"]
        assert (spec["owner"], spec["description"]) == (view.owner, view.meaning)
        assert spec["tags"]["freshness"] == view.freshness
        assert tuple(spec["tags"]["lineage"].split(",")) == tuple(view.lineage)
        shown = {field["name"]: field for field in spec["features"]}
        for field in view.fields[len(view.keys) :]:
            tags = shown[field.name]["tags"]
            assert (shown[field.name]["description"], tags["unit"], tags["shape"]) == (
                field.meaning,
                field.unit,
                field.shape,
            )
            assert tags["example"] == field.example
    for service in catalog.services.values():
        spec = client.get(f"/api/v1/feature_services/{service.name}", params={"project": store.project}).json()["spec"]
        assert (spec["owner"], spec["description"]) == (service.owner, service.meaning)
        assert (spec["tags"]["owner"], spec["tags"]["meaning"]) == (
            service.owner,
            service.meaning,
        )  # its page shows tags
