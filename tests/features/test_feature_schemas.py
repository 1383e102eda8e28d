"""Released schemas: every break is refused by name, what is new is released, what is gone is retired once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from storyrec.errors import ConfigError, SchemaMismatch
from storyrec.features.catalog import Catalog, CatalogService, read_catalog
from storyrec.features.schemas import (
    Schemas,
    broken_promises,
    check_schemas,
    declared_schemas,
    read_schemas,
    release_schemas,
    retire_schema,
)

REPO = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return read_catalog(REPO)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(REPO, tmp_path / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "feature_repo"


def edit(repo: Path, before: str, after: str) -> None:
    path = repo / "definitions.py"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after))


def changed(catalog: Catalog, view: str, **changes: object) -> Schemas:
    """What a catalog would promise with one view changed."""
    views = {**catalog.views, view: replace(catalog.views[view], **changes)}  # type: ignore[arg-type]
    return declared_schemas(replace(catalog, views=views))


def test_the_committed_definitions_keep_what_was_released() -> None:
    released = check_schemas(REPO)
    assert released.views["user_story_sequence"].keys == ["user_id"]
    assert released.services["ranker_v1"] == [
        "user_story_sequence:story_ids",
        "user_story_sequence:story_clicked_us",
        "user_product_sequence:product_ids",
        "user_product_sequence:product_clicked_us",
    ]


def test_each_broken_promise_is_named(catalog: Catalog) -> None:
    released, view = declared_schemas(catalog), catalog.views["story_embedding"]
    key, embedding, version = view.fields
    assert broken_promises(released, released) == []

    def broken(**changes: object) -> list[str]:
        return broken_promises(released, changed(catalog, "story_embedding", **changes))

    assert broken(fields=(key, embedding)) == ["view 'story_embedding' lost model_version"]
    assert broken(fields=(key, replace(embedding, name="vector"), version)) == ["view 'story_embedding' lost embedding"]
    assert broken(fields=(key, replace(embedding, type="Array(Float64)"), version)) == [
        "the type of embedding in view 'story_embedding' is Array(Float64), released: Array(Float32)"
    ]
    assert broken(fields=(key, replace(embedding, shape="128"), version)) == [
        "the shape of embedding in view 'story_embedding' is 128, released: 64"
    ]
    assert broken(fields=(key, replace(embedding, unit="cosine"), version))[0].startswith("the unit of embedding")
    assert broken(fields=(version, embedding, key)) == []
    assert broken(fields=(*view.fields, replace(version, name="language"))) == []


def test_join_keys_keep_their_order(catalog: Catalog) -> None:
    both = changed(catalog, "story_embedding", keys=("story_id", "model_version"))
    swapped = changed(catalog, "story_embedding", keys=("model_version", "story_id"))
    assert broken_promises(both, swapped) == [
        "view 'story_embedding' has the keys model_version, story_id, released: story_id, model_version"
    ]


def test_a_service_keeps_its_features_and_may_gain_some(catalog: Catalog) -> None:
    small = catalog.services["user_interest_v1"]
    large = CatalogService(
        small.name, {**small.features, "user_story_sequence": ("story_ids", "story_clicked_us")}, "", "", ""
    )
    before = declared_schemas(catalog)
    after = declared_schemas(replace(catalog, services={**catalog.services, small.name: large}))
    assert broken_promises(before, after) == []
    assert broken_promises(after, before) == ["service 'user_interest_v1' lost user_story_sequence:story_clicked_us"]


def test_a_change_is_refused_and_nothing_is_released(repo: Path) -> None:
    before = (repo / "schemas.json").read_bytes()
    edit(repo, 'unit="epoch microseconds, UTC"', 'unit="epoch milliseconds, UTC"')
    for command in (check_schemas, release_schemas):
        with pytest.raises(SchemaMismatch, match=r"(?s)unit of story_clicked_us.*milliseconds.*next _vN"):
            command(repo)
    assert (repo / "schemas.json").read_bytes() == before


def test_sequences_of_another_length_are_another_version(repo: Path) -> None:
    edit(repo, "SEQUENCE_LENGTH = 20", "SEQUENCE_LENGTH = 50")
    with pytest.raises(SchemaMismatch, match="shape of story_ids in view 'user_story_sequence' is 1 to 50, released"):
        check_schemas(repo)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('OWNER = "storyrec"', 'OWNER = "storyrec', "SyntaxError: unterminated string literal"),
        ('shape="64"', "shape=width", r"(?s)NameError: name 'width' is not defined.*definitions.py, line \d+"),
    ],
)
def test_definitions_that_are_no_python_are_one_clear_error(repo: Path, before: str, after: str, message: str) -> None:
    edit(repo, before, after)
    with pytest.raises(ConfigError, match=message):
        check_schemas(repo)


def test_a_new_version_is_released_beside_the_old_one_which_is_retired_later(repo: Path) -> None:
    text = (repo / "definitions.py").read_text()
    start = text.index("user_interest_v1 = _service(")
    service = text[start : text.index("\n)\n", start) + 3]
    edit(repo, service, service + service.replace("_v1", "_v2"))
    with pytest.raises(SchemaMismatch, match=r"(?s)not released yet: user_interest_v2.*features release"):
        check_schemas(repo)
    assert release_schemas(repo) == ["user_interest_v2"]
    assert release_schemas(repo) == []
    assert set(check_schemas(repo).services) >= {"user_interest_v1", "user_interest_v2"}

    with pytest.raises(SchemaMismatch, match="'user_interest_v1' is still declared"):
        retire_schema(repo, "user_interest_v1")
    edit(repo, service, "")
    with pytest.raises(SchemaMismatch, match=r"(?s)service 'user_interest_v1' is gone.*features retire"):
        check_schemas(repo)
    retire_schema(repo, "user_interest_v1")
    assert check_schemas(repo).retired == ["user_interest_v1"]
    with pytest.raises(SchemaMismatch, match="'user_interest_v1' is not released"):
        retire_schema(repo, "user_interest_v1")

    (repo / "definitions.py").write_text(text)
    with pytest.raises(SchemaMismatch, match="'user_interest_v1' was retired"):
        check_schemas(repo)


def test_a_view_is_retired_after_the_services_that_read_it(repo: Path) -> None:
    released = json.loads((repo / "schemas.json").read_text())
    released["views"]["old"] = released["views"]["story_embedding"]
    released["services"]["old_v1"] = ["old:embedding"]
    (repo / "schemas.json").write_text(json.dumps(released))
    with pytest.raises(SchemaMismatch, match="'old' is read by old_v1"):
        retire_schema(repo, "old")
    retire_schema(repo, "old_v1")
    retire_schema(repo, "old")
    assert check_schemas(repo).retired == ["old", "old_v1"]


def test_a_damaged_file_is_refused(repo: Path) -> None:
    (repo / "schemas.json").write_text('{"views": {"story_embedding": 3}, "services": {}, "retired": []}')
    with pytest.raises(SchemaMismatch, match="the released schemas cannot be read"):
        read_schemas(repo)
