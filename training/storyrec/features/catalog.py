"""The catalog: what `feature_repo/definitions.py` declares, as plain values and as a page that other teams read.

Nothing here needs an applied registry, an online store or a partition.
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from storyrec.storage import write_file

PAGE = "docs/feature-catalog.md"
_VERSION = re.compile(r"_v(\d+)$")


@dataclass(frozen=True)
class CatalogField:
    """A column of a view.

    Attributes:
        type: as Feast names it, such as Array(Int64).
        shape, unit, meaning: in words.
        example: a value of this type, JSON.
    """

    name: str
    type: str
    shape: str
    unit: str
    meaning: str
    example: str


@dataclass(frozen=True)
class CatalogEntity:
    """What a view's rows are about."""

    name: str
    key: str
    type: str
    meaning: str
    owner: str


@dataclass(frozen=True)
class CatalogView:
    """A feature view.

    Attributes:
        keys: the join keys, in order.
        fields: every column but the two times, the keys among them.
        kind: sequence, embedding or matching.
        freshness: when new values come, in words.
        max_age: the age that its values online never exceed, such as 30h.
        lineage: the log tables that its values come from.
        lifetime: how long a value counts after its event time; 0: for ever.
        path: the offline partitions, a glob pattern.
        event_time, known_time: the columns of the two times, each row's.
    """

    name: str
    keys: tuple[str, ...]
    fields: tuple[CatalogField, ...]
    meaning: str
    owner: str
    kind: str
    freshness: str
    max_age: str
    lineage: tuple[str, ...]
    lifetime: timedelta
    path: str
    event_time: str
    known_time: str

    @property
    def version(self) -> int:
        """As the name ends; 1 where it names none."""
        return version_of(self.name)


@dataclass(frozen=True)
class CatalogService:
    """What a reader asks for by one name: the features of some views.

    Attributes:
        features: their names by view, without the keys.
        consumer: whom it is made for.
    """

    name: str
    features: dict[str, tuple[str, ...]]
    meaning: str
    owner: str
    consumer: str

    @property
    def version(self) -> int:
        """As the name ends."""
        return version_of(self.name)


@dataclass(frozen=True)
class Catalog:
    """All that is declared, by name."""

    entities: dict[str, CatalogEntity]
    views: dict[str, CatalogView]
    services: dict[str, CatalogService]

    def keys_of(self, service: CatalogService) -> dict[str, str]:
        """The join keys of a service's views, each once, and their types."""
        views = [self.views[view] for view in service.features]
        return {field.name: field.type for view in views for field in view.fields if field.name in view.keys}


def version_of(name: str) -> int:
    """The version that a view's or service's name ends with; 1 where it ends with none."""
    found = _VERSION.search(name)
    return int(found[1]) if found else 1


def read_catalog(repo: Path, *, features: Path = Path("features")) -> Catalog:
    """The catalog of a feature repository.

    Args:
        repo: folder of definitions.py.
        features: folder of the offline partitions, for those who read them.

    Raises:
        PlatformError: there is no feature repository.
    """
    from storyrec.features.repository import load_definitions

    declared = load_definitions(repo, features=features)
    entities = [_entity(value) for value in declared.entities]
    keys = {entity.name: entity.key for entity in entities}
    views = [_view(value, keys=keys) for value in declared.views]
    by_name = {view.name: view for view in views}
    services = [_service(value, views=by_name) for value in declared.services]
    return Catalog({entity.name: entity for entity in entities}, by_name, {found.name: found for found in services})


def render_catalog(catalog: Catalog) -> str:
    """The catalog as a Markdown page."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    template = environment.from_string((files("storyrec") / "templates" / "feature-catalog.md.j2").read_text("utf-8"))
    readers = {
        view: [service.name for service in catalog.services.values() if view in service.features]
        for view in catalog.views
    }
    return template.render(catalog=catalog, readers=readers)


def write_catalog(repo: Path) -> Path:
    """Write the page of a feature repository into the docs beside it, and say where."""
    path = repo.parent / PAGE
    write_file(path, render_catalog(read_catalog(repo)).encode())
    return path


def _entity(declared: Any) -> CatalogEntity:
    kind = declared.value_type.name.capitalize()
    return CatalogEntity(declared.name, declared.join_key, kind, declared.description, declared.owner)


def _view(declared: Any, *, keys: dict[str, str]) -> CatalogView:
    tags, source = declared.tags, declared.batch_source
    return CatalogView(
        name=declared.name,
        keys=tuple(keys[entity] for entity in declared.entities),
        fields=tuple(_field(column) for column in (*declared.entity_columns, *declared.features)),
        meaning=declared.description,
        owner=declared.owner,
        kind=tags["kind"],
        freshness=tags["freshness"],
        max_age=tags["max_age"],
        lineage=tuple(tags["lineage"].split(",")),
        lifetime=declared.ttl,
        path=source.path,
        event_time=source.timestamp_field,
        known_time=source.created_timestamp_column,
    )


def _field(declared: Any) -> CatalogField:
    tags = declared.tags
    return CatalogField(
        declared.name, str(declared.dtype), tags["shape"], tags["unit"], declared.description, tags["example"]
    )


def _service(declared: Any, *, views: dict[str, CatalogView]) -> CatalogService:
    features = {
        projection.name: tuple(f.name for f in projection.features if f.name not in views[projection.name].keys)
        for projection in declared.feature_view_projections
    }
    return CatalogService(
        declared.name, features, declared.description, declared.owner, declared.tags.get("consumer", "")
    )
