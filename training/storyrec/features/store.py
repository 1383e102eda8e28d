"""The feature store: the only module that imports Feast.

Feast is asked for little and never trusted with time: windows are explicit, retrieval leaves out
what was not known yet, rows in are rows out, and an older window never replaces newer values.
Online values are packed (`online_store`): Feast's SDK and server read them as its own, the methods
here that give arrays read the bytes.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from storyrec.errors import ConfigError, DataError, ModelError, PlatformError, StoryrecError
from storyrec.features.events import EVENT_TIME, VIEWS, latest_sequences, sequence_table
from storyrec.features.merge import restate
from storyrec.features.offline import newest_rows
from storyrec.features.packed import CURRENT, Layout
from storyrec.features.partitions import work_folder
from storyrec.features.repository import feature_repo, light_import, load_definitions, read_settings, settings_file
from storyrec.features.schemas import read_schemas
from storyrec.features.sequences import ClickLog
from storyrec.schema import Domain
from storyrec.storage import one_writer, write_file

with light_import():
    from feast import FeatureService, FeatureStore, FeatureView, FileSource
    from feast.data_source import DataSource
    from feast.repo_config import RepoConfig

    from storyrec.features import online_models
    from storyrec.features.feast_rows import layout_of
    from storyrec.features.online_models import OnlineModels
    from storyrec.features.online_store import PackedOnlineStore
    from storyrec.features.reads import OnlineReader, Wanted

THE_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
ONE_MICROSECOND = timedelta(microseconds=1)
PUSHED_AT_A_TIME = 10_000
LOOK_AFTER = "check that the stores run and that the day's features are built and materialized"
REGISTER_ANEW = (
    "check that the registry's database runs (local: feast/registry.db in the work folder); one that is damaged or of "
    "another Feast may be removed: it is made anew from the definitions, values online and offline stay"
)

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserSequences:
    """A user's most recent clicks, oldest first; empty where the store knows none.

    Attributes:
        story_ids, product_ids: int64.
        story_clicked_us, product_clicked_us: int64, epoch microseconds UTC.
    """

    story_ids: Int64s
    story_clicked_us: Int64s
    product_ids: Int64s
    product_clicked_us: Int64s

    @property
    def updated_us(self) -> int:
        """The newest click, epoch microseconds; 0 without any."""
        return int(
            max((times[-1] for times in (self.story_clicked_us, self.product_clicked_us) if len(times)), default=0)
        )


@dataclass(frozen=True)
class Embeddings:
    """Item embeddings, one row an asked id.

    Attributes:
        values_ND: [N, D] float32; zeros where the item is unknown, D = 0 where every item is.
        version: the model that made them.
        known_N: [N] bool.
    """

    values_ND: npt.NDArray[np.float32]
    version: str
    known_N: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """What a materialization covered: start < event time <= end."""

    start: datetime
    end: datetime


class FeatureStoreClient:
    """The views and services of `feature_repo/`, for one work folder."""

    def __init__(self, store: FeatureStore, *, repo: Path, features: Path, lock: Path) -> None:
        self._store, self._repo, self._features, self._lock = store, repo, features, lock
        self._config = store.config
        self._online = cast("PackedOnlineStore", store._get_provider().online_store)
        self._reader = OnlineReader(store)
        self._views: dict[str, FeatureView] = {}
        self._services: dict[str, FeatureService] = {}
        self._layouts: dict[str, Layout] = {}

    def apply(self) -> None:
        """Register the definitions and remove what was retired, with its values online; nothing where both are done."""
        definitions, retired = load_definitions(self._repo, features=self._features), read_schemas(self._repo).retired
        with one_writer(self._lock), _feast("register the definitions", remedy=REGISTER_ANEW):
            self._store.apply(
                [*definitions.entities, *definitions.views, *definitions.services, *definitions.permissions]
            )
            if retired:
                services = [one for one in self._store.list_feature_services() if one.name in retired]
                views = [one for one in self._store.list_feature_views() if one.name in retired]
                used = {source.name for view in definitions.views for source in _sources(view)}
                sources = {source.name: source for view in views for source in _sources(view)}
                unused = [source for name, source in sources.items() if name not in used]
                if services or views:
                    self._store.apply([], objects_to_delete=[*services, *views, *unused], partial=False)
            self._views = {view.name: view for view in definitions.views}
            self._services = {service.name: service for service in definitions.services}
            self._layouts = {name: layout_of(view) for name, view in self._views.items()}

    def tags(self) -> dict[str, dict[str, str]]:
        """Each view's tags."""
        with _feast("read its registry"):
            return {view.name: dict(view.tags) for view in self._store.list_feature_views()}

    def materialized_until(self, view: str) -> datetime | None:
        """The end of the newest window that is in the online store; None before the first one.

        The online store says so itself: one that was emptied or replaced is filled from the beginning.
        """
        with _feast("read the online store"):
            until_us = self._online.complete_until(self._config, self._layouts[view])
        return None if until_us is None else THE_BEGINNING + until_us * ONE_MICROSECOND

    def freshness(self) -> dict[str, datetime | None]:
        """Until when each view's online values are complete. Feast ignores time-to-live online."""
        return {name: self.materialized_until(name) for name in sorted(self._layouts)}

    def materialize(self, view: str, *, start: datetime, end: datetime) -> Window:
        """Merge each key's newest value of `start` < event time <= `end` into the online store.

        The window is stretched to what is online already, at both ends: nothing between two windows
        is left out, and a day that is built again brings in the days after it with it.

        Returns:
            The stretched window.

        Raises:
            DataError: a sequence is longer than its view says.
            PlatformError: the online store does not answer.
        """
        layout = self._layouts[view]
        with one_writer(self._lock):
            until = self.materialized_until(view)
            window = Window(min(start, until) if until else THE_BEGINNING, max(end, until) if until else end)
            with _feast(f"materialize {view}"):
                incarnation = self._online.incarnation(self._config)
                for values in self.offline_values(view, start=window.start, end=window.end):
                    self._online.put(self._config, layout, values)
                if incarnation != self._online.incarnation(self._config):
                    raise _restarted(view)
                self._online.mark_complete(self._config, layout, _microseconds(window.end))
                self._store.registry.apply_materialization(
                    self._views[view], self._store.project, window.start + ONE_MICROSECOND, window.end
                )
        return window

    def offline_values(
        self, view: str, *, start: datetime, end: datetime, model: str | None = None
    ) -> Iterator[dict[int, bytes]]:
        """Each key's newest row of `start` < event time <= `end`, packed as `materialize` writes it, in parts."""
        layout, complete_us = self._layouts[view], _microseconds(end)
        source = cast(FileSource, self._views[view].batch_source)
        for ids_N, event_us_N, rows in newest_rows(source.path, layout, start=start, end=end, model=model):
            packed = layout.pack_rows(rows, event_us_N=event_us_N, complete_us=complete_us)
            yield dict(zip(ids_N.tolist(), packed, strict=True))

    def online_models(self) -> OnlineModels:
        """The models whose items are online, and which one answers a reader who names none."""
        with _feast("read the online store"):
            return self._online.models(self._config)

    def publish_models(self, current: str, *, others: Callable[[], Iterable[str]], end: datetime) -> OnlineModels:
        """Bring the items of models online, each model's in all views, then make one the current one, at once.

        Args:
            current: the version whose rows are written, whether online already or not.
            others: lists the versions that stay online beside it, asked when none can be retired any more; written
                where they are not, left out where no partition has rows of them.
            end: of the day whose partitions are the last to count, and since when `current` is current; where
                a later one is, that stays.

        Raises:
            PlatformError: the online store does not answer.
        """
        layouts = [layout for layout in self._layouts.values() if layout.by_model]
        with one_writer(self._lock), _feast(f"publish model {current}"):
            incarnation = self._online.incarnation(self._config)
            online = self._online.models(self._config).versions
            missing = [version for version in others() if version not in {current, *online}]
            written = [version for version in missing if self._write(version, layouts, end)]
            self._write(current, layouts, end)
            if incarnation != self._online.incarnation(self._config):
                raise _restarted(f"model {current}")
            models = OnlineModels(current, (*written, current))
            self._online.publish_models(self._config, models, published_us=_microseconds(end))
            return self._online.models(self._config)

    def retire_model(self, version: str, *, unread: timedelta, remove_index: Callable[[], None]) -> None:
        """Take the items of a model offline; nothing happens where they are not online.

        Args:
            version: not the current one.
            unread: for how long nobody must have read or written them, where the online store knows.
            remove_index: called when they are gone, before anybody may publish, so that nobody brings them back.

        Raises:
            ModelError: it is the current one, or was read since; nothing is changed.
            PlatformError: the online store does not answer.
        """
        layouts = [layout for layout in self._layouts.values() if layout.by_model]
        with one_writer(self._lock), _feast(f"retire model {version}"):
            models = self._online.models(self._config)
            ages = [self._online.since_last_read(self._config, layout.of_model(version)) for layout in layouts]
            last_read = min((age for age in ages if age is not None), default=None)
            if version == models.current or (last_read is not None and last_read < unread):
                raise ModelError(
                    f"model {version} is in use: "
                    + ("it is current online" if version == models.current else f"it was read {last_read} ago"),
                    expected=f"a model that is not current and that nobody has read for {unread}",
                    where="the online store",
                    remedy="publish another model first, and wait until its readers ask for another one",
                )
            self._online.retire_model(self._config, layouts, version)
            remove_index()

    def _write(self, version: str, layouts: Sequence[Layout], end: datetime) -> int:
        """Write a model's rows of views, readers of the model do not see them before it is said to be online."""
        num_rows = 0
        for layout in layouts:
            part = layout.of_model(version)
            self._online.create(self._config, [online_models.LAYOUT.view, part.view])
            for values in self.offline_values(layout.view, start=THE_BEGINNING, end=end, model=version):
                self._online.put(self._config, part, values)
                num_rows += len(values)
            self._online.mark_complete(self._config, part, _microseconds(end))  # what notes that somebody reads
        return num_rows

    def push(self, log: ClickLog, *, domain: Domain) -> int:
        """Merge clicks into the online sequences at once, before the logs bring them.

        Returns:
            The number of users.

        Raises:
            DataError: a click has no positive ids, or a time that cannot be.
            PlatformError: the online store does not answer.
        """
        latest = latest_sequences(log, length=self._layouts[VIEWS[domain]].length)
        rows = sequence_table(latest, domain=domain)
        with _feast(f"take the {domain.name.lower()} clicks"):
            for first in range(0, rows.num_rows, PUSHED_AT_A_TIME):
                part = rows.slice(first, PUSHED_AT_A_TIME).to_pandas()
                self._store.push(f"{domain.name.lower()}_clicks", part)
        return rows.num_rows

    def restate(self, view: str, sequences: Mapping[int, bytes]) -> None:
        """Replace the clicks of online sequences before each given one's complete_us; fresher clicks stay."""
        with _feast(f"restate {view}"):
            self._online.put(self._config, self._layouts[view], sequences, rule=restate)

    def layout(self, view: str) -> Layout:
        """How the online values of a view are packed."""
        return self._layouts[view]

    def views_of(self, entity: str) -> list[str]:
        """The views whose key is an entity, alone or with a model.

        Raises:
            ConfigError: there is no such entity.
        """
        found = [name for name, view in self._views.items() if view.entities[0] == entity]
        if not found:
            known = sorted({view.entities[0] for view in self._views.values()})
            raise ConfigError(
                f"there is no entity '{entity}'",
                expected=", ".join(known),
                where="feature_repo/definitions.py",
                remedy="name one of these",
            )
        return found

    def features_of(self, service: str) -> dict[str, tuple[str, ...]]:
        """The features of a service, by view.

        Raises:
            ConfigError: there is no such service.
        """
        if service not in self._services:
            raise ConfigError(
                f"there is no service '{service}'",
                expected=", ".join(self._services),
                where="feature_repo/definitions.py",
                remedy="name one of these",
            )
        projections = self._services[service].feature_view_projections
        return {one.name: tuple(field.name for field in one.features) for one in projections}

    def online_values(self, view: str, ids: Sequence[int], *, model: str = CURRENT) -> list[bytes | None]:
        """The packed value of each key; None where it is unknown.

        Args:
            model: whose rows, in a view that is by model.

        Raises:
            ModelError: this model is not online.
        """
        with _feast("read online features"):
            values = self._online.read(self._config, self._layouts[view], ids, model=model)
        return [value if key > 0 else None for key, value in zip(ids, values, strict=True)]

    def online_ids(self, view: str) -> Iterator[int]:
        """All keys of a view that are online, in any order."""
        with _feast("list online features"):
            yield from self._online.ids(self._config, view)

    def historical(self, entities: pd.DataFrame, *, service: str) -> pd.DataFrame:
        """Feature values as they were known at each row's time.

        Args:
            entities: join keys and `event_timestamp` (datetime64[us, UTC]), any number of rows.
            service: the feature service's name.

        Returns:
            The same rows in the same order with the service's features; null where there was no value.

        Raises:
            DataError: the store did not answer every row once.
        """
        asked = entities.assign(
            entity_row=np.arange(len(entities)), **{EVENT_TIME: entities[EVENT_TIME].astype("datetime64[us, UTC]")}
        )
        with _feast("retrieve historical features"), _quiet():
            found = self._store.get_historical_features(
                entity_df=asked, features=self._store.get_feature_service(service), filter_by_created_timestamp=True
            ).to_df()
        found = found.sort_values("entity_row", ignore_index=True)
        if not np.array_equal(found.pop("entity_row").to_numpy(), np.arange(len(entities))):
            raise DataError(
                f"{len(found)} rows came back for {len(entities)} asked rows",
                expected="every row once",
                where=f"historical retrieval of '{service}'",
                remedy="look for duplicate partitions below the features folder, build the day's features again",
            )
        return found

    def online(self, keys: Sequence[int], *, join_key: str, service: str, **others: str) -> dict[str, list[Any]]:
        """The newest values of a service, one entry a key; None where a key is unknown.

        Args:
            keys: of `join_key`.
            others: the value of each other key, such as model.
        """
        entities: dict[str, list[Any]] = {
            join_key: [int(key) for key in keys],
            **{name: [value] * len(keys) for name, value in others.items()},
        }
        with _feast("read online features"):
            plan = self._reader.plan(Wanted(service))
            if plan is None:
                features = self._store.get_feature_service(service, allow_cache=True)
                return self._store.get_online_features(features=features, entity_rows=entities).to_dict()
            found = self._reader.read(plan, self._reader.keys(plan, entities))
        return entities | {
            name: column for one in found for name, column in zip(one.part.names, one.columns, strict=True)
        }

    def online_sequences(self, user_ids: Sequence[int]) -> list[UserSequences]:
        """Both sequences of every user, as they are served."""
        columns = []
        for view in VIEWS.values():
            rows = [self._layouts[view].unpack(value) for value in self.online_values(view, user_ids)]
            for number in range(2):
                columns.append([np.frombuffer(row.fields[number] if row else b"", np.int64) for row in rows])
        return [UserSequences(*row) for row in zip(*columns, strict=True)]

    def embeddings(self, ids: Sequence[int], *, domain: Domain, model: str = CURRENT) -> Embeddings:
        """The published embedding of every item, all by one model.

        Args:
            model: a version that is online; without it the current one, which the answer names.

        Raises:
            ModelError: nothing is online, or not this version.
        """
        layout = self._layouts[f"{domain.name.lower()}_embedding_by_model"]
        with _feast("read embeddings"):
            version, values = self._online.read_model(self._config, layout, ids, model=model)
        found = [layout.first_field(value) if key > 0 else None for key, value in zip(ids, values, strict=True)]
        known_N = np.array([vector is not None for vector in found], bool)
        vectors = [vector for vector in found if vector is not None]
        values_ND = np.zeros((len(found), len(vectors[0]) // 4 if vectors else 0), np.float32)
        if vectors:
            values_ND[known_N] = np.frombuffer(b"".join(vectors), np.float32).reshape(len(vectors), -1)
        return Embeddings(values_ND, version, known_N)


def open_feature_store(work: str, *, profile: Literal["local", "cluster"]) -> FeatureStoreClient:
    """The feature store whose offline partitions lie below `work`/features, with its definitions applied.

    Args:
        work: the settings' locations.work, a folder.
        profile: "local" takes feature_store.yaml with its files below `work`/feast, "cluster" takes
            feature_store.cluster.yaml with the places that the environment names.

    Raises:
        ConfigError: `work` is no folder, or an environment variable of the cluster is not set.
        PlatformError: there is no feature repository, or Feast refuses.
    """
    repo = feature_repo()
    root = work_folder(work)
    folder = root / "feast"
    folder.mkdir(parents=True, exist_ok=True)
    settings = read_settings(settings_file(repo, profile=profile))
    if profile == "local":
        settings["registry"]["path"] = f"sqlite:///{folder}/registry.db"
        settings["online_store"]["path"] = str(folder / "online.db")
        write_file(folder / "feature_store.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    with _feast("open its registry", remedy=REGISTER_ANEW):
        config = RepoConfig(**settings)
        config.repo_path = repo
        store = FeatureStore(repo_path=str(repo), config=config)
    client = FeatureStoreClient(store, repo=repo, features=root / "features", lock=folder / "lock")
    client.apply()
    return client


def _sources(view: FeatureView) -> list[DataSource]:
    return [source for source in (view.batch_source, view.stream_source) if source]


def _restarted(view: str) -> PlatformError:
    return PlatformError(
        f"the online store was restarted while {view} was written",
        expected="one that holds what was written",
        where="the online store",
        remedy="run this again: it writes the whole window once more",
    )


def _microseconds(time: datetime) -> int:
    return (time - THE_BEGINNING) // ONE_MICROSECOND


@contextlib.contextmanager
def _feast(verb: str, *, remedy: str = LOOK_AFTER) -> Iterator[None]:
    try:
        yield
    except StoryrecError:
        raise
    except Exception as error:  # Feast, its stores and their clients each have their own tree
        raise PlatformError(
            f"the feature store did not {verb}: {type(error).__name__}: {error}",
            expected="an offline and an online store that answer",
            where="feature_repo/feature_store.yaml, or feature_store.cluster.yaml in the cluster profile",
            remedy=remedy,
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that Feast prints and its libraries' warnings about each other."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
