"""What the online store holds of one user, story or product, with its times."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.console import Console

from storyrec.config import Config
from storyrec.errors import ConfigError
from storyrec.features.packed import CURRENT, Value

if TYPE_CHECKING:
    from storyrec.features.store import FeatureStoreClient

STALE_AFTER = timedelta(days=2)
"""A day's clicks are online on the morning after it; sequences that are complete for longer ago missed one."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Found:
    """A view's row of one entity.

    Attributes:
        view: its name.
        event_time: since when it is valid; None where the entity is unknown.
        features: name and value.
        complete_until: until when the view's logs are online; None before the first time.
        is_stale: a sequence view whose logs of more than STALE_AFTER are not online.
    """

    view: str
    event_time: datetime | None
    features: tuple[tuple[str, Value], ...]
    complete_until: datetime | None
    is_stale: bool


def look_up(
    config: Config,
    *,
    entity: str,
    key: str,
    service: str | None,
    feature: str | None,
    now: datetime,
    model: str | None = None,
) -> list[Found]:
    """The online rows of one entity, a view each.

    Args:
        config: settings; locations.work and profile.
        entity: user, story or product.
        key: its id as it was typed.
        service: only the features of this service; None: of every view of the entity.
        feature: only this one.
        now: decides what is stale.
        model: whose rows, of the views by model, a version or "current"; None: without a service, of the other
            views; with one, the current one.

    Raises:
        ConfigError: there is no such entity, service or feature, the service is of another entity or not by
            model, or the key is no id.
        ModelError: this model is not online.
        PlatformError: the feature store does not answer.
    """
    from storyrec.features.store import open_feature_store

    store = open_feature_store(config.locations.work, profile=config.profile)
    views = store.views_of(entity)
    if not key.isascii() or not key.isdecimal() or not 0 < int(key) < 2**63:
        raise ConfigError(
            f"'{key}' is no id",
            expected="a whole number > 0",
            where=entity,
            remedy=f"give the {entity}'s id of the logs",
        )
    if service is None:
        asked = [store.layout(view) for view in views if store.layout(view).by_model == (model is not None)]
        features = {layout.view: layout.names for layout in asked}
    else:
        features = store.features_of(service)
    if not set(features) <= set(views):
        raise ConfigError(
            f"the service {service} is not of {entity}",
            expected=f"a service of {', '.join(views)}",
            where="--service",
            remedy="name another service, or another entity",
        )
    if model is not None and not (features and all(store.layout(view).by_model for view in features)):
        raise ConfigError(
            f"{service or entity} is not by model",
            expected="a service of version 2 of story or product",
            where="--model-version",
            remedy="name such a service, or leave the model out",
        )
    if feature is not None:
        features = _only(features, feature)
    return [_find(store, view, names, int(key), now=now, model=model) for view, names in features.items()]


def print_found(found: Sequence[Found], *, now: datetime, console: Console) -> None:
    """Print rows with their event time and age."""
    for row in found:
        until = f"{row.complete_until:%Y-%m-%d %H:%M} UTC" if row.complete_until else "never materialized"
        if row.event_time is None:
            console.print(f"{row.view}: unknown (complete until: {until})")
        else:
            since = f"{row.event_time:%Y-%m-%d %H:%M:%S.%f} UTC, {_age(now - row.event_time)} ago"
            console.print(f"{row.view}: valid since {since} (complete until: {until})")
            for name, value in row.features:
                console.print(f"  {name}: {value if isinstance(value, str) else value.tolist()}")
        if row.is_stale:
            console.print(f"  stale: run materialize-features for the days since {until}")


def _find(
    store: "FeatureStoreClient", view: str, names: Sequence[str], key: int, *, now: datetime, model: str | None
) -> Found:
    layout, until = store.layout(view), store.materialized_until(view)
    is_stale = bool(layout.length) and (until is None or now - until > STALE_AFTER)
    row = layout.unpack(store.online_values(view, [key], model=model or CURRENT)[0])
    if row is None:
        return Found(view, None, (), until, is_stale)
    values = tuple((name, layout.value(row, name)) for name in names)
    return Found(view, EPOCH + timedelta(microseconds=row.event_us), values, until, is_stale)


def _only(features: dict[str, tuple[str, ...]], feature: str) -> dict[str, tuple[str, ...]]:
    kept: dict[str, tuple[str, ...]] = {view: (feature,) for view, names in features.items() if feature in names}
    if not kept:
        raise ConfigError(
            f"there is no feature '{feature}'",
            expected=", ".join(dict.fromkeys(name for names in features.values() for name in names)),
            where="--feature",
            remedy="name one of these",
        )
    return kept


def _age(age: timedelta) -> str:
    days, hours, minutes = age.days, age.seconds // 3600, age.seconds // 60 % 60
    return (
        f"{days} d {hours} h"
        if days
        else f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {age.seconds % 60} s"
    )
