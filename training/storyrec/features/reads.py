"""Online reads as Feast defines them, without its way there: a plan of what is asked for, then packed values.

Plans are made by Feast's own functions, which know the registry and who may read what, and are kept until the
registry changes. Of what no plan covers Feast itself knows the answer, or what is wrong with it.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, cast

from feast import FeatureStore, FeatureView
from feast.errors import FeatureNameCollisionError, FeatureViewNotFoundException
from feast.infra.registry.caching_registry import CachingRegistry
from feast.permissions.action import AuthzedAction
from feast.permissions.security_manager import assert_permissions, get_security_manager
from feast.permissions.user import User
from feast.utils import _get_online_request_context

from storyrec.errors import DataError
from storyrec.features.feast_rows import MODEL, layout_of
from storyrec.features.incoming import INT64
from storyrec.features.online_store import PackedOnlineStore
from storyrec.features.packed import Layout, Row
from storyrec.features.refusals import Refusal

PLANS_KEPT = 1_000
ID_MEANS = "a whole number of 64 bits, without a fraction"
MODEL_MEANS = "a model's version, or current"


class LookupRefused(DataError, Refusal):
    """Features or keys that cannot be looked up."""

    status = 422


class Wanted(NamedTuple):
    """What a reader names.

    Attributes:
        service: a feature service; empty: the features below.
        features: each as view:feature.
        full_names: whether the answer names a feature view__feature.
    """

    service: str
    features: tuple[str, ...] = ()
    full_names: bool = False


@dataclass(frozen=True)
class Part:
    """What is read of a view.

    Attributes:
        layout: of its values.
        features: in the order of the layout.
        names: of the features in the answer.
    """

    layout: Layout
    features: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A view's features of the asked keys.

    Attributes:
        part: which.
        columns: the values of each feature, one a key, of JSON's types; None where the key is unknown.
        event_us: of each key, epoch microseconds; None where it is unknown.
    """

    part: Part
    columns: list[list[Any]]
    event_us: list[int | None]


class OnlineReader:
    """Reads what Feast's definitions name from the packed store behind Feast.

    Args:
        store: whose registry and online store.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._online = cast("PackedOnlineStore", store._get_provider().online_store)
        self._hurried = self._online.hurried()
        self._registry: object = None
        self._plans = lru_cache(PLANS_KEPT)(self._plan)

    def plan(self, wanted: Wanted, *, user: User | None = None) -> tuple[Part, ...] | None:
        """What to read, a part a view; None where Feast has to.

        Args:
            wanted: what is asked for.
            user: who asks, where there are permissions; a verdict is kept as long as this object.

        Raises:
            Exception: what Feast raises, such as for an unknown service or a missing role.
        """
        known = cast("CachingRegistry", self._store.registry)
        known._refresh_cached_registry_if_necessary()  # type: ignore[no-untyped-call]
        registry = known.cached_registry_proto
        if registry is not self._registry:
            if registry != self._registry:  # mostly it was read again and says the same
                self._plans = lru_cache(PLANS_KEPT)(self._plan)
            self._registry = registry
        return self._plans(wanted, user)

    def keys(self, plan: Sequence[Part], entities: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """The keys of a plan, as they are looked up: what else was sent is left out.

        Args:
            plan: what is read.
            entities: a column a key, or what Feast takes for one: an entity's name, an id as text.

        Raises:
            LookupRefused: a key is missing or of another type, or there are not as many of each.
        """
        readers: dict[str, Callable[[Any, str], int | str]] = {part.layout.key: _id for part in plan}
        if any(part.layout.by_model for part in plan):
            readers[MODEL] = _model
        named = entities
        if entities.keys() != readers.keys():
            join_keys = {entity.name: entity.join_key for entity in self._store.list_entities(allow_cache=True)}
            named = {join_keys.get(name, name): column for name, column in entities.items()}
        _require_columns(entities, named.keys(), readers.keys())
        return {name: [readers[name](key, name) for key in column] for name, column in named.items() if name in readers}

    def read(self, plan: Sequence[Part], keys: Mapping[str, Sequence[Any]], *, hurried: bool = False) -> list[Found]:
        """The features of the asked keys.

        Args:
            plan: what to read.
            keys: of the plan, as `keys` gives them.
            hurried: for who cannot wait for the store.

        Raises:
            ModelNotOnline: a key names a model whose rows are not online.
            StoreSilent: the store does not answer.
        """
        asked = [(part.layout, keys[part.layout.key]) for part in plan]
        online = self._hurried if hurried else self._online
        rows = online.rows(self._store.config, asked, keys.get(MODEL, ()))
        return [_found(part, of_part) for part, of_part in zip(plan, rows, strict=True)]

    def _plan(self, wanted: Wanted, user: User | None) -> tuple[Part, ...] | None:
        store = self._store
        service = store.get_feature_service(wanted.service, allow_cache=True) if wanted.service else None
        if not service:
            self._require_features(wanted.features)
        features = service or [*wanted.features]
        try:
            context = _get_online_request_context(store.registry, store.project, features, wanted.full_names)
        except FeatureNameCollisionError:
            raise LookupRefused(
                f"two features of one name: {', '.join(wanted.features)}",
                expected="each feature once, no two of one name unless full_feature_names is true",
                where="features",
                remedy="ask for them in two requests, or by their full names",
            ) from None
        on_demand, views = context[1], context[5]
        security = get_security_manager()
        if security is not None:
            security.set_current_user(cast("User", user))  # None: nobody, who may nothing
            for resource in [service] if service else [view for view, _ in views]:
                assert_permissions(resource, actions=[AuthzedAction.READ_ONLINE])
        if on_demand or any(type(view) is not FeatureView or view.projection.join_key_map for view, _ in views):
            return None
        parts = []
        for view, asked in views:
            layout = layout_of(view)
            names = tuple(name for name in layout.names if name in asked)
            prefix = f"{view.projection.name_to_use()}__" if wanted.full_names else ""
            parts.append(Part(layout, names, tuple(prefix + name for name in names)))
        return tuple(parts)

    def _require_features(self, features: Sequence[str]) -> None:
        """Refuse what is no feature of its view; an unknown view is Feast's to refuse, if nothing else is wrong."""
        unknown_view: FeatureViewNotFoundException | None = None
        for feature in features or [""]:
            view, _, name = feature.partition(":")
            view = view.partition("@")[0]  # of versions written so Feast makes an error of its own
            try:
                of_view = self._store.get_feature_view(view, allow_registry_cache=True) if name else None
            except FeatureViewNotFoundException as error:
                unknown_view = error
                continue
            known = [f"{view}:{field.name}" for field in of_view.features] if of_view else []
            if feature not in known:
                raise LookupRefused(
                    f"there is no feature '{feature}'",
                    expected=", ".join(known) or "a service, or features as view:feature",
                    where="features",
                    remedy="name what is in the catalog, docs/feature-catalog.md",
                )
        if unknown_view is not None:
            raise unknown_view


def _found(part: Part, rows: Sequence[Row | None]) -> Found:
    columns = []
    for name in part.features:
        values = [None if row is None else part.layout.value(row, name) for row in rows]
        columns.append([value if value is None or isinstance(value, str) else value.tolist() for value in values])
    return Found(part, columns, [None if row is None else row.event_us for row in rows])


def _require_columns(entities: Mapping[str, Sequence[Any]], named: Set[str], keys: Set[str]) -> None:
    missing = keys - named
    if missing:
        found = f"no {', '.join(sorted(missing))}, but {', '.join(sorted(entities)) or 'nothing'}"
    elif len({len(column) for column in entities.values()}) != 1 or not all(entities.values()):
        found = ", ".join(f"{len(column)} of {name}" for name, column in entities.items())
    else:
        return
    raise _refused(
        found,
        expected=f"the keys {', '.join(sorted(keys))}, at least one, as many of each",
        remedy="name the keys of the service, see docs/feature-catalog.md",
    )


def _id(key: Any, name: str) -> int:
    number = int(key) if isinstance(key, str) and key.isdecimal() else key
    if type(number) is not int or number not in INT64:
        raise _refused(f"{name} is {key!r}", expected=ID_MEANS, remedy="send the ids of the logs, as JSON numbers")
    return number


def _model(key: Any, name: str) -> str:
    if not isinstance(key, str) or not key:
        raise _refused(f"{name} is {key!r}", expected=MODEL_MEANS, remedy="name a model that is online")
    return key


def _refused(found: str, *, expected: str, remedy: str) -> LookupRefused:
    return LookupRefused(found, expected=expected, where="entities", remedy=remedy)
