"""The feature store: the only module that imports Feast.

Feast is asked for little and never trusted with time: windows are explicit, retrieval leaves out
what was not known yet, rows in are rows out, and an older window never replaces newer values.
"""

import contextlib
import io
import os
import re
import runpy
import sqlite3
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import yaml

from storyrec.errors import ConfigError, DataError, PlatformError, StoryrecError
from storyrec.features.events import EVENT_TIME
from storyrec.features.partitions import work_folder
from storyrec.storage import one_writer, write_file


@contextlib.contextmanager
def _light_import() -> Iterator[None]:
    """Import Feast in half the time: typeguard rewrites no class, and torch stays out, which few of its users need."""
    import typeguard

    typechecked, has_torch = typeguard.typechecked, "torch" in sys.modules
    typeguard.typechecked = lambda target: target  # type: ignore[assignment]
    if not has_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        typeguard.typechecked = typechecked
        if not has_torch:
            del sys.modules["torch"]


with _light_import():
    from feast import Entity, FeatureService, FeatureStore, FeatureView
    from feast.repo_config import RepoConfig

FEATURE_REPO = "STORYREC_FEATURE_REPO"
"""Environment variable: where `feature_repo/` is; default: beside the source root."""
THE_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
ONE_MICROSECOND = timedelta(microseconds=1)

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
class Window:
    """What a materialization covered: start < event time <= end."""

    start: datetime
    end: datetime


class FeatureStoreClient:
    """The views and services of `feature_repo/`, for one work folder."""

    def __init__(self, store: FeatureStore, *, repo: Path, features: Path, lock: Path) -> None:
        self._store, self._repo, self._features, self._lock = store, repo, features, lock

    def apply(self) -> None:
        """Register the definitions; nothing happens where they are registered already."""
        with _environment("STORYREC_FEATURES", str(self._features)):
            names = runpy.run_path(str(self._repo / "definitions.py"))
        kinds = (Entity, FeatureView, FeatureService)
        with one_writer(self._lock), _feast("register the definitions"):
            self._store.apply([value for value in names.values() if isinstance(value, kinds)])

    def tags(self) -> dict[str, dict[str, str]]:
        """Each view's tags."""
        with _feast("read its registry"):
            return {view.name: dict(view.tags) for view in self._store.list_feature_views()}

    def materialized_until(self, view: str) -> datetime | None:
        """The end of the newest window that is in the online store; None before the first one."""
        with _feast("read its registry"):
            self._store.refresh_registry()  # type: ignore[no-untyped-call]
            intervals = self._store.get_feature_view(view).materialization_intervals
        return max((end.astimezone(UTC) for _, end in intervals), default=None)

    def freshness(self) -> dict[str, datetime | None]:
        """Until when each view's online values are complete. Feast ignores time-to-live online."""
        with _feast("read its registry"):
            names = sorted(view.name for view in self._store.list_feature_views())
        return {name: self.materialized_until(name) for name in names}

    def materialize(self, view: str, *, start: datetime, end: datetime) -> Window:
        """Put each key's newest value of `start` < event time <= `end` into the online store.

        The window is stretched to what is online already, at both ends: nothing between two windows
        is left out, and a day that is built again brings its values in without an older one
        replacing a newer (SQLite takes whatever is written last).

        Returns:
            The stretched window.

        Raises:
            PlatformError: the online store does not answer.
        """
        with one_writer(self._lock):
            until = self.materialized_until(view)
            window = Window(min(start, until) if until else THE_BEGINNING, max(end, until) if until else end)
            restated = until is not None and window.start < until
            with _feast(f"materialize {view}"), _quiet(), self._equal_times_replace(restated):
                self._store.materialize(window.start + ONE_MICROSECOND, window.end, feature_views=[view])
        return window

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

    def online(self, keys: Sequence[int], *, join_key: str, service: str) -> dict[str, list[Any]]:
        """The newest values of a service, one entry a key; None where a key is unknown."""
        with _feast("read online features"):
            answer = self._store.get_online_features(
                features=self._store.get_feature_service(service, allow_cache=True),
                entity_rows=[{join_key: int(key)} for key in keys],
            )
            return answer.to_dict()

    def online_sequences(self, user_ids: Sequence[int]) -> list[UserSequences]:
        """Both sequences of every user, as they are served."""
        if not len(user_ids):
            return []
        values = self.online(user_ids, join_key="user_id", service="ranker_v1")
        names = ("story_ids", "story_clicked_us", "product_ids", "product_clicked_us")
        columns = [
            [np.asarray(value if value is not None else (), np.int64) for value in values[name]] for name in names
        ]
        return [UserSequences(*row) for row in zip(*columns, strict=True)]

    @contextlib.contextmanager
    def _equal_times_replace(self, restated: bool) -> Iterator[None]:
        """Let a restated value replace the one of the same event time, which Redis refuses by itself.

        Safe because a stretched window always ends in the newest value of each key.
        """
        online = self._store.config.online_store
        if not restated or online.type != "redis":
            yield
            return
        online.skip_dedup = True
        try:
            yield
        finally:
            online.skip_dedup = False


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
    repo = Path(os.environ.get(FEATURE_REPO) or Path(__file__).resolve().parents[3] / "feature_repo")
    root = work_folder(work)
    folder = root / "feast"
    folder.mkdir(parents=True, exist_ok=True)
    settings = _settings(repo / ("feature_store.yaml" if profile == "local" else "feature_store.cluster.yaml"))
    if profile == "local":
        settings["registry"]["path"] = f"sqlite:///{folder}/registry.db"
        settings["online_store"]["path"] = str(folder / "online.db")
        with _feast("open"), contextlib.closing(sqlite3.connect(settings["online_store"]["path"])) as online:
            online.execute("PRAGMA journal_mode=WAL")  # reads go on while a batch is written
        write_file(folder / "feature_store.yaml", yaml.safe_dump(settings, sort_keys=False).encode())
    with _feast("open"):
        config = RepoConfig(**settings)
        config.repo_path = repo
        store = FeatureStore(repo_path=str(repo), config=config)
    client = FeatureStoreClient(store, repo=repo, features=root / "features", lock=folder / "lock")
    client.apply()
    return client


def _settings(path: Path) -> dict[str, Any]:
    try:
        text = os.path.expandvars(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlatformError(
            f"the feature repository cannot be read ({error.strerror})",
            expected="feature_repo/ of the source checkout",
            where=str(path),
            remedy=f"name it in the environment variable {FEATURE_REPO}",
        ) from error
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    missing = re.findall(r"\$\{(\w+)\}", "\n".join(lines))
    if missing:
        raise ConfigError(
            f"not set: {', '.join(missing)}",
            expected="the places of the cluster's online store and registry",
            where=str(path),
            remedy="set these environment variables",
        )
    settings: dict[str, Any] = yaml.safe_load(text)
    return settings


@contextlib.contextmanager
def _feast(verb: str) -> Iterator[None]:
    try:
        yield
    except StoryrecError:
        raise
    except Exception as error:  # Feast, its stores and their clients each have their own tree
        raise PlatformError(
            f"the feature store did not {verb}: {type(error).__name__}: {error}",
            expected="an offline and an online store that answer",
            where="feature_repo/feature_store.yaml, or feature_store.cluster.yaml in the cluster profile",
            remedy="check that the stores run and that the day's features are built and materialized",
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that Feast prints and its libraries' warnings about each other."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
