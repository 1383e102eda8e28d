"""Released schemas: what other teams built upon, as `feature_repo/schemas.json` keeps it.

A released view keeps its keys and its fields' types, shapes and units, a released service its features; both
may gain some. Whatever else changes is a new version under a new name, and the old one lives on
beside it until it is retired. A retired name never comes back with another meaning.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from storyrec.errors import SchemaMismatch
from storyrec.features.catalog import Catalog, read_catalog
from storyrec.storage import write_file

FILE = "schemas.json"


@dataclass(frozen=True)
class ViewSchema:
    """What is promised of a view.

    Attributes:
        keys: the join keys, in order.
        fields: type, shape and unit of every column, the keys among them.
    """

    keys: list[str]
    fields: dict[str, dict[str, str]]


@dataclass(frozen=True)
class Schemas:
    """What is promised, by name.

    Attributes:
        views: the schemas of the views.
        services: the features of the services, as view:feature.
        retired: names that were released once.
    """

    views: dict[str, ViewSchema]
    services: dict[str, list[str]]
    retired: list[str]


def declared_schemas(catalog: Catalog) -> Schemas:
    """What a catalog would promise."""
    views = {
        view.name: ViewSchema(
            list(view.keys),
            {field.name: {"type": field.type, "shape": field.shape, "unit": field.unit} for field in view.fields},
        )
        for view in catalog.views.values()
    }
    services = {
        service.name: [f"{view}:{name}" for view, names in service.features.items() for name in names]
        for service in catalog.services.values()
    }
    return Schemas(views, services, [])


def broken_promises(released: Schemas, declared: Schemas) -> list[str]:
    """What a catalog breaks of what was released, a sentence each."""
    broken = [f"'{name}' was retired" for name in released.retired if name in {**declared.views, **declared.services}]
    for name, view in released.views.items():
        now = declared.views.get(name)
        if now is None:
            broken.append(f"view '{name}' is gone")
            continue
        if now.keys != view.keys:
            broken.append(f"view '{name}' has the keys {', '.join(now.keys)}, released: {', '.join(view.keys)}")
        for field, promised in view.fields.items():
            found = now.fields.get(field)
            if found is None:
                broken.append(f"view '{name}' lost {field}")
            else:
                broken += [
                    f"the {what} of {field} in view '{name}' is {found[what]}, released: {value}"
                    for what, value in promised.items()
                    if found[what] != value
                ]
    for name, features in released.services.items():
        if name not in declared.services:
            broken.append(f"service '{name}' is gone")
        else:
            lost = [feature for feature in features if feature not in declared.services[name]]
            broken += [f"service '{name}' lost {feature}" for feature in lost]
    return broken


def check_schemas(repo: Path) -> Schemas:
    """Refuse definitions that break what was released, or that hold what is not released yet.

    Raises:
        SchemaMismatch: each difference is named.
    """
    released, declared = read_schemas(repo), declared_schemas(read_catalog(repo))
    _refuse_broken(released, declared, repo=repo)
    if released != _with_retired(declared, released):
        raise SchemaMismatch(
            f"not released yet: {', '.join(_unreleased(released, declared))}",
            expected="every declared view, service and field in the released schemas",
            where=str(repo / FILE),
            remedy="run `storyrec features release` and commit the file with the definitions",
        )
    return released


def release_schemas(repo: Path) -> list[str]:
    """Take what is new in the definitions into the released schemas.

    Returns:
        The views and services that are new or gained fields.

    Raises:
        SchemaMismatch: the definitions break what was released; nothing is written.
    """
    released, declared = read_schemas(repo), declared_schemas(read_catalog(repo))
    _refuse_broken(released, declared, repo=repo)
    new = _unreleased(released, declared)
    _write(repo, _with_retired(declared, released))
    return new


def retire_schema(repo: Path, name: str) -> None:
    """Take back the promise of a view or service whose definition is removed; its name is never used again.

    Raises:
        SchemaMismatch: it was not released, is still declared, or a released service reads it; nothing is written.
    """
    released, declared = read_schemas(repo), declared_schemas(read_catalog(repo))
    readers = [service for service, names in released.services.items() if any(n.startswith(f"{name}:") for n in names)]
    if name not in {**released.views, **released.services}:
        found, remedy = "is not released", f"name one of {', '.join([*released.views, *released.services])}"
    elif name in {**declared.views, **declared.services}:
        found, remedy = "is still declared", "remove it from definitions.py first"
    elif readers:
        found, remedy = f"is read by {', '.join(readers)}", "retire these services first"
    else:
        views = {view: schema for view, schema in released.views.items() if view != name}
        services = {service: features for service, features in released.services.items() if service != name}
        _write(repo, Schemas(views, services, sorted([*released.retired, name])))
        return
    raise SchemaMismatch(
        f"'{name}' {found}",
        expected="a released view or service that is not declared and that no service reads",
        where=str(repo / FILE),
        remedy=remedy,
    )


def read_schemas(repo: Path) -> Schemas:
    """The released schemas of a feature repository; empty before the first release.

    Raises:
        SchemaMismatch: the file is damaged.
    """
    path = repo / FILE
    if not path.exists():
        return Schemas({}, {}, [])
    try:
        read = json.loads(path.read_text("utf-8"))
        views = {name: ViewSchema(**view) for name, view in read["views"].items()}
        return Schemas(views, dict(read["services"]), list(read["retired"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SchemaMismatch(
            f"the released schemas cannot be read ({error})",
            expected="what `storyrec features release` wrote",
            where=str(path),
            remedy="take it back from version control",
        ) from error


def _refuse_broken(released: Schemas, declared: Schemas, *, repo: Path) -> None:
    broken = broken_promises(released, declared)
    if broken:
        raise SchemaMismatch(
            "; ".join(broken),
            expected="what was released, unchanged",
            where=f"{repo / 'definitions.py'} against {repo / FILE}",
            remedy="put it back and declare the change under a new name that ends in the next _vN; "
            "or, where nobody reads it any more, run `storyrec features retire NAME`",
        )


def _unreleased(released: Schemas, declared: Schemas) -> list[str]:
    views = [name for name, view in declared.views.items() if released.views.get(name) != view]
    return views + [name for name, service in declared.services.items() if released.services.get(name) != service]


def _with_retired(declared: Schemas, released: Schemas) -> Schemas:
    return Schemas(declared.views, declared.services, released.retired)


def _write(repo: Path, schemas: Schemas) -> None:
    write_file(repo / FILE, (json.dumps(asdict(schemas), indent=2) + "\n").encode())
