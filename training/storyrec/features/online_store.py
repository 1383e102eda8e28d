"""An online store behind Feast's interface: packed values, merged instead of overwritten.

`feature_store.yaml` names the class, of `redis_store` or `sqlite_store`. One value a (view, key), see `packed`;
what an arriving value does to a stored one, see `merge`. Writers may race: a value is replaced only by what was
made of it.

Key 0 of each view holds until when the view as a whole is complete, written after the rows. A view that is
by model has the rows of each model apart, named view:version; which are there, see `online_models`.
"""

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from storyrec.features import online_models
from storyrec.features.feast_rows import layout_of, pack_row, read_key, to_feast
from storyrec.features.merge import merge, settle
from storyrec.features.online_models import OnlineModels, pack_models, unpack_models
from storyrec.features.packed import CURRENT, Layout, Row
from storyrec.features.refusals import StoreSilent

MARK = 0

Merge = Callable[[Layout, bytes | None, bytes], bytes]
Rows = Sequence[tuple[EntityKey, dict[str, Value], datetime, datetime | None]]


class PackedOnlineStore(OnlineStore):
    """What both stores share; a backend gets values and replaces them."""

    def hurried(self) -> "PackedOnlineStore":
        """The same store for who cannot wait for it: it is silent sooner."""
        return self

    @abstractmethod
    def get(self, config: RepoConfig, view: str, ids: Sequence[int]) -> list[bytes | None]:
        """The value of each key; None where there is none.

        Raises:
            StoreSilent: the store does not answer.
        """

    def get_each(self, config: RepoConfig, asked: Sequence[tuple[str, Sequence[int]]]) -> list[list[bytes | None]]:
        """As `get`, of some views."""
        return [self.get(config, view, ids) for view, ids in asked]

    @abstractmethod
    def put(self, config: RepoConfig, layout: Layout, values: Mapping[int, bytes], *, rule: Merge = merge) -> None:
        """Replace each key's value by what `rule` makes of it and the arriving one, whoever else writes.

        Raises:
            StoreSilent: the store does not answer.
        """

    @abstractmethod
    def ids(self, config: RepoConfig, view: str) -> Iterator[int]:
        """All keys of a view, in any order; some may come twice."""

    @abstractmethod
    def create(self, config: RepoConfig, views: Iterable[str]) -> None:
        """Make room for views that may be there already."""

    @abstractmethod
    def drop(self, config: RepoConfig, views: Iterable[str]) -> None:
        """Remove views with all their values."""

    def incarnation(self, config: RepoConfig) -> str:
        """Another one after a restart, which may have lost what was written last."""
        return ""

    def since_last_read(self, config: RepoConfig, layout: Layout) -> timedelta | None:
        """How long ago the rows of a model were read or written; None where nobody counts that."""
        return None

    def read(
        self, config: RepoConfig, layout: Layout, ids: Sequence[int], *, model: str = CURRENT
    ) -> list[bytes | None]:
        """The value of each key as readers see it; None where it is unknown.

        A sequence is without pushed clicks that the logs turned out not to hold.

        Args:
            model: whose rows, in a view that is by model: a version, or the current one.

        Raises:
            ModelNotOnline: there are no rows of this model.
        """
        if layout.by_model:
            return self.read_model(config, layout, ids, model=model)[1]
        return self._read_each(config, [(layout, ids)])[0]

    def _read_each(self, config: RepoConfig, asked: Sequence[tuple[Layout, Sequence[int]]]) -> list[list[bytes | None]]:
        """As `read`, of views that are not by model, together."""
        keys = [(layout.view, [MARK, *ids] if layout.length else ids) for layout, ids in asked]
        found = self.get_each(config, keys)
        for place, (layout, _) in enumerate(asked):
            if layout.length:
                mark, *values = found[place]
                _, until_us = layout.times(mark) or (0, 0)
                found[place] = [value and settle(layout, value, until_us=until_us) for value in values]
        return found

    def read_model(
        self, config: RepoConfig, layout: Layout, ids: Sequence[int], *, model: str
    ) -> tuple[str, list[bytes | None]]:
        """Which model a reader means, and its value of each key. Arguments and errors as for `read`."""
        version = self.models(config).version_of(model)
        _, *values = self.get(config, layout.of_model(version).view, [MARK, *ids])  # the mark notes the reading
        if None in values:
            self.models(config).version_of(version)  # retired meanwhile: its rows go after its name
        return version, values

    def rows(
        self, config: RepoConfig, asked: Sequence[tuple[Layout, Sequence[int]]], models: Sequence[str]
    ) -> list[list[Row | None]]:
        """The rows of some views as readers see them, a row a key; None where it is unknown.

        Args:
            asked: views and their keys.
            models: of the views that are by model, one a key: a version or "current".

        Raises:
            ModelNotOnline: there are no rows of a model.
        """
        together = iter(self._read_each(config, [one for one in asked if not one[0].by_model]))
        return [
            [
                layout.unpack(value) if key > MARK else None
                for key, value in zip(
                    ids,
                    self._read_models(config, layout, ids, models) if layout.by_model else next(together),
                    strict=True,
                )
            ]
            for layout, ids in asked
        ]

    def _read_models(
        self, config: RepoConfig, layout: Layout, ids: Sequence[int], models: Sequence[str]
    ) -> list[bytes | None]:
        """As `read`, of the model that each key names."""
        values: list[bytes | None] = [None] * len(ids)
        for model in dict.fromkeys(models):
            places = [place for place, of in enumerate(models) if of == model]
            found = self.read(config, layout, [ids[place] for place in places], model=model)
            for place, value in zip(places, found, strict=True):
                values[place] = value
        return values

    def models(self, config: RepoConfig) -> OnlineModels:
        """The models whose rows are online."""
        return unpack_models(self.get(config, online_models.LAYOUT.view, [online_models.KEY])[0])

    def publish_models(self, config: RepoConfig, models: OnlineModels, *, published_us: int) -> None:
        """Say that the rows of models are online, and which one is current unless a later one is; all at once."""
        value = pack_models(models, published_us=published_us)
        self.put(config, online_models.LAYOUT, {online_models.KEY: value}, rule=online_models.publish)

    def retire_model(self, config: RepoConfig, layouts: Iterable[Layout], version: str) -> None:
        """Say that a model is not online any more, then remove its rows from views; not those of the current one."""
        value = pack_models(OnlineModels("", (version,)), published_us=0)
        self.put(config, online_models.LAYOUT, {online_models.KEY: value}, rule=online_models.retire)
        if version not in self.models(config).versions:
            self.drop(config, [layout.of_model(version).view for layout in layouts])

    def complete_until(self, config: RepoConfig, layout: Layout) -> int | None:
        """Until when the logs are in a view, epoch microseconds; None where no window was written to its end."""
        if layout.by_model:
            layout, key = online_models.LAYOUT, online_models.KEY
        else:
            key = MARK
        times = layout.times(self.get(config, layout.view, [key])[0])
        return times[1] if times else None

    def mark_complete(self, config: RepoConfig, layout: Layout, until_us: int) -> None:
        """Say that the logs before `until_us` are in a view; never goes back."""
        mark = layout.pack(Row(until_us, until_us, (b"",) * len(layout.fields)))
        self.put(config, layout, {MARK: mark}, rule=_newest)

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: Rows, progress: Callable[[int], Any] | None
    ) -> None:
        """Merge rows in, all or, where one is refused, none.

        Rows of a model that is not online are left out: `publish_features` brings them as a whole.

        Raises:
            RowsRefused: a value is missing or no value of its view.
        """
        layout = layout_of(table)
        values: dict[str, dict[int, bytes]] = {}
        now_us = time.time_ns() // 1_000
        for key, features, event_time, _ in data:
            entity, model = read_key(layout, key)
            of_model = values.setdefault(model, {})
            row = pack_row(layout, entity, features, event_time, now_us=now_us)
            of_model[entity] = merge(layout, of_model.get(entity), row)
        versions = self.models(config).versions if layout.by_model else ()
        for model, of_model in values.items():
            if not layout.by_model or model in versions:
                self.put(config, layout.of_model(model) if layout.by_model else layout, of_model)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: Sequence[EntityKey],
        requested_features: Sequence[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Event time and features of each key, as Feast's values; None where a key is unknown.

        Raises:
            ModelNotOnline: a key names a model whose rows are not online.
        """
        layout = layout_of(table)
        keys = [read_key(layout, key) for key in entity_keys]
        answer: list[tuple[datetime | None, dict[str, Value] | None]] = []
        (rows,) = self.rows(config, [(layout, [entity for entity, _ in keys])], [model for _, model in keys])
        for row in rows:
            if row is None:
                answer.append((None, None))
            else:
                features = {name: to_feast(layout, row, name) for name in requested_features or layout.names}
                answer.append((datetime.fromtimestamp(row.event_us / 1e6, UTC), features))
        return answer

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make room for new views, remove those that are gone."""
        self.drop(config, [view.name for view in tables_to_delete])
        self.create(config, [online_models.LAYOUT.view, *(layout_of(view).view for view in tables_to_keep)])

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove all views."""
        self.drop(config, [online_models.LAYOUT.view, *(view.name for view in tables)])


def _newest(layout: Layout, stored: bytes | None, arriving: bytes) -> bytes:
    times, arriving_times = layout.times(stored), layout.times(arriving)
    return stored if stored and times and arriving_times and times > arriving_times else arriving


@contextmanager
def answering(*errors: type[Exception]) -> Iterator[None]:
    """Say of a store's own errors that it does not answer.

    Raises:
        StoreSilent: one of them was raised.
    """
    try:
        yield
    except errors as error:
        raise StoreSilent(
            f"the online store does not answer: {type(error).__name__}: {error}",
            expected="one that is there and takes what it is sent",
            where="the online store that feature_store.yaml or feature_store.cluster.yaml names",
            remedy="ask again; if it stays so, look whether the store runs",
        ) from error
