"""Online stores behind Feast's interface: packed values, merged instead of overwritten.

`feature_store.yaml` names the class. One value a (view, key), see `packed`; what an arriving value
does to a stored one, see `merge`. Writers may race: a value is replaced only by what was made of it.

Key 0 of each view holds until when the view as a whole is complete, written after the rows.
"""

import json
import sqlite3
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import Entity, FeatureView, RepoConfig
from feast.errors import FeastError
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import FloatList, Int64List, Value
from feast.repo_config import FeastConfigBaseModel
from redis import Redis

from storyrec.errors import DataError
from storyrec.features.merge import FIRST_US, LAST_US, NOTHING, Recent, merge, merge_sequences, pack_sequence
from storyrec.features.packed import ARRAYS, TEXT, Layout, Row

MARK = 0
KEYS_A_CALL = 500

Merge = Callable[[Layout, bytes | None, bytes], bytes]
Rows = Sequence[tuple[EntityKey, dict[str, Value], datetime, datetime | None]]


class RowsRefused(DataError, FeastError):
    """Rows that no view can hold; Feast's server answers 422."""

    def http_status_code(self) -> int:
        return 422


class PackedOnlineStore(OnlineStore):
    """What both stores share; a backend gets values and replaces them."""

    @abstractmethod
    def get(self, config: RepoConfig, view: str, ids: Sequence[int]) -> list[bytes | None]:
        """The value of each key; None where there is none."""

    @abstractmethod
    def put(self, config: RepoConfig, layout: Layout, values: Mapping[int, bytes], *, rule: Merge = merge) -> None:
        """Replace each key's value by what `rule` makes of it and the arriving one, whoever else writes."""

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

    def complete_until(self, config: RepoConfig, layout: Layout) -> int | None:
        """Until when the logs are in a view, epoch microseconds; None where no window was written to its end."""
        times = layout.times(self.get(config, layout.view, [MARK])[0])
        return times[1] if times else None

    def mark_complete(self, config: RepoConfig, layout: Layout, until_us: int) -> None:
        """Say that the logs before `until_us` are in a view; never goes back."""
        mark = layout.pack(Row(until_us, until_us, (b"",) * len(layout.fields)))
        self.put(config, layout, {MARK: mark}, rule=_newest)

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: Rows, progress: Callable[[int], Any] | None
    ) -> None:
        """Merge rows in, all or, where one is refused, none.

        Raises:
            RowsRefused: a value is missing or no value of its view.
        """
        layout = layout_of(table)
        values: dict[int, bytes] = {}
        for key, features, event_time, _ in data:
            entity, value = _pack(layout, key, features, event_time)
            values[entity] = merge(layout, values.get(entity), value)
        self.put(config, layout, values)
        if progress:
            progress(len(data))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: Sequence[EntityKey],
        requested_features: Sequence[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Event time and features of each key, as Feast's values; None where a key is unknown."""
        layout = layout_of(table)
        ids = [key.entity_values[0].int64_val for key in entity_keys]
        answer: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for entity, value in zip(ids, self.get(config, layout.view, ids), strict=True):
            row = layout.unpack(value) if entity > MARK else None
            if row is None:
                answer.append((None, None))
            else:
                features = {name: _to_feast(layout, row, name) for name in requested_features or layout.names}
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
        self.create(config, [layout_of(view).view for view in tables_to_keep])

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove all views."""
        self.drop(config, [view.name for view in tables])


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of `PackedRedisOnlineStore`."""

    type: Literal["storyrec.features.online_store.PackedRedisOnlineStore"]
    connection_string: str
    """host:port, further settings after commas."""


class PackedRedisOnlineStore(PackedOnlineStore):
    """Values as strings of one Redis, named project:view:key."""

    SCRIPT = """
    local lost = {}
    for i, key in ipairs(KEYS) do
        if (redis.call('GET', key) or '') == ARGV[2 * i - 1] then redis.call('SET', key, ARGV[2 * i])
        else lost[#lost + 1] = i - 1 end
    end
    return lost
    """

    def __init__(self) -> None:
        self._redis: Redis | None = None

    def get(self, config: RepoConfig, view: str, ids: Sequence[int]) -> list[bytes | None]:
        prefix = f"{config.project}:{view}:"
        if len(ids) <= KEYS_A_CALL:
            return self._client(config).mget([f"{prefix}{key}" for key in ids]) if len(ids) else []
        with self._client(config).pipeline(transaction=False) as pipe:
            for first in range(0, len(ids), KEYS_A_CALL):
                pipe.mget([f"{prefix}{key}" for key in ids[first : first + KEYS_A_CALL]])
            return [value for values in pipe.execute() for value in values]

    def put(self, config: RepoConfig, layout: Layout, values: Mapping[int, bytes], *, rule: Merge = merge) -> None:
        client, prefix = self._client(config), f"{config.project}:{layout.view}:"
        swap, waiting = client.register_script(self.SCRIPT), list(values)
        while waiting:
            stored = self.get(config, layout.view, waiting)
            merged = [(key, old, rule(layout, old, values[key])) for key, old in zip(waiting, stored, strict=True)]
            changes = [change for change in merged if change[1] != change[2]]
            calls = [changes[first : first + KEYS_A_CALL] for first in range(0, len(changes), KEYS_A_CALL)]
            with client.pipeline(transaction=False) as pipe:
                for call in calls:
                    arguments = [value for _, old, new in call for value in (old or b"", new)]
                    swap(keys=[f"{prefix}{key}" for key, *_ in call], args=arguments, client=pipe)
                lost = pipe.execute()
            waiting = [call[row][0] for call, rows in zip(calls, lost, strict=True) for row in rows]

    def ids(self, config: RepoConfig, view: str) -> Iterator[int]:
        prefix = f"{config.project}:{view}:"
        for name in self._client(config).scan_iter(f"{prefix}*", count=10_000):
            if key := int(name[len(prefix) :]):
                yield key

    def incarnation(self, config: RepoConfig) -> str:
        return str(self._client(config).info("server")["run_id"])

    def create(self, config: RepoConfig, views: Iterable[str]) -> None:
        """Redis needs no room."""

    def drop(self, config: RepoConfig, views: Iterable[str]) -> None:
        for view in views:
            for name in self._client(config).scan_iter(f"{config.project}:{view}:*", count=10_000):
                self._client(config).unlink(name)

    def _client(self, config: RepoConfig) -> Any:  # its types say that every answer may have to be awaited
        if self._redis is None:
            (node, *_), settings = RedisOnlineStore._parse_connection_string(config.online_store.connection_string)
            self._redis = Redis(**node, **settings)
        return self._redis


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of `PackedSqliteOnlineStore`."""

    type: Literal["storyrec.features.online_store.PackedSqliteOnlineStore"]
    path: str
    """The database's file; a relative path counts from the feature repository."""


class PackedSqliteOnlineStore(PackedOnlineStore):
    """Values as rows of a table a view, named project_view."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def get(self, config: RepoConfig, view: str, ids: Sequence[int]) -> list[bytes | None]:
        found = dict(
            self._connection(config).execute(
                f"SELECT id, value FROM {_table(config, view)} WHERE id IN (SELECT value FROM json_each(?))",
                [json.dumps([int(key) for key in ids])],
            )
        )
        return [found.get(key) for key in ids]

    def put(self, config: RepoConfig, layout: Layout, values: Mapping[int, bytes], *, rule: Merge = merge) -> None:
        with self._transaction(config) as connection:
            stored = self.get(config, layout.view, list(values))
            merged = ((key, old, rule(layout, old, values[key])) for key, old in zip(values, stored, strict=True))
            connection.executemany(
                f"INSERT OR REPLACE INTO {_table(config, layout.view)} VALUES (?, ?)",
                [(key, new) for key, old, new in merged if new != old],
            )

    def ids(self, config: RepoConfig, view: str) -> Iterator[int]:
        rows = self._connection(config).execute(f"SELECT id FROM {_table(config, view)} WHERE id != {MARK}").fetchall()
        return (key for (key,) in rows)

    def create(self, config: RepoConfig, views: Iterable[str]) -> None:
        with self._transaction(config) as connection:
            known = {sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'table'")}
            for name in (_table(config, view) for view in views):
                wanted = f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, value BLOB NOT NULL)"
                if wanted not in known:
                    connection.execute(f"DROP TABLE IF EXISTS {name}")  # one that Feast's own store left
                    connection.execute(wanted)

    def drop(self, config: RepoConfig, views: Iterable[str]) -> None:
        for view in views:
            self._connection(config).execute(f"DROP TABLE IF EXISTS {_table(config, view)}")

    def _connection(self, config: RepoConfig) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._threads, "connection"):
            path = Path(config.repo_path or "", config.online_store.path)
            connection = sqlite3.connect(path, timeout=60, isolation_level=None)
            connection.execute("PRAGMA journal_mode=WAL")  # reads go on while a batch is written
            self._threads.connection = connection
        return self._threads.connection

    @contextmanager
    def _transaction(self, config: RepoConfig) -> Iterator[sqlite3.Connection]:
        connection = self._connection(config)
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            yield connection


def layout_of(view: FeatureView) -> Layout:
    """How a view's rows are packed.

    Raises:
        RowsRefused: its key or a feature is of a type that cannot be packed.
    """
    fields = tuple((field.name, field.dtype.to_value_type().name) for field in view.features)
    keys = [column.dtype.to_value_type().name for column in view.entity_columns]
    if keys != ["INT64"] or not {kind for _, kind in fields} <= {*ARRAYS, TEXT}:
        raise RowsRefused(
            f"the view {view.name} has keys of {keys} and features {dict(fields)}",
            expected=f"one INT64 key, features of {', '.join([*ARRAYS, TEXT])}",
            where="feature_repo/definitions.py",
            remedy="declare other types, or teach storyrec.features.packed this one",
        )
    return Layout(view.name, view.entity_columns[0].name, fields, int(view.tags.get("length", 0)))


def _pack(layout: Layout, key: EntityKey, features: Mapping[str, Value], event_time: datetime) -> tuple[int, bytes]:
    entity, fields = key.entity_values[0].int64_val, []
    missing = [name for name, kind in layout.fields if features[name].WhichOneof("val") != f"{kind.lower()}_val"]
    if missing or entity <= MARK:
        raise _refused(
            layout, entity, f"missing: {', '.join(missing)}" if missing else "no id", "every feature, id > 0"
        )
    for name, kind in layout.fields:
        value = getattr(features[name], f"{kind.lower()}_val")
        fields.append(value.encode() if kind == TEXT else np.asarray(value.val, ARRAYS[kind]).tobytes())
    if not layout.length:
        return entity, layout.pack(Row(_microseconds(event_time), 0, tuple(fields)))
    items, times = (np.frombuffer(field, np.int64).tolist() for field in fields)
    if not items or len(items) != len(times) or min(items) <= 0 or min(times) < FIRST_US or max(times) >= LAST_US:
        found = f"items {items}, times {times}"
        raise _refused(layout, entity, found, "as many items (> 0) as times (epoch microseconds), at least one")
    pushed = Recent(0, list(zip(times, items, strict=True)))
    return entity, pack_sequence(layout, merge_sequences(NOTHING, pushed, length=layout.length))


def _refused(layout: Layout, entity: int, found: str, expected: str) -> RowsRefused:
    return RowsRefused(
        found,
        expected=expected,
        where=f"{layout.view}, {layout.key} {entity}",
        remedy="correct this row and send all again; nothing of them was written",
    )


def _to_feast(layout: Layout, row: Row, name: str) -> Value:
    value = layout.value(row, name)
    if isinstance(value, str):
        return Value(string_val=value)
    if value.dtype == np.int64:
        return Value(int64_list_val=Int64List(val=value.tolist()))
    return Value(float_list_val=FloatList(val=value.tolist()))


def _newest(layout: Layout, stored: bytes | None, arriving: bytes) -> bytes:
    times, arriving_times = layout.times(stored), layout.times(arriving)
    return stored if stored and times and arriving_times and times > arriving_times else arriving


def _microseconds(time: datetime) -> int:
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return round(aware.timestamp() * 1_000_000)


def _table(config: RepoConfig, view: str) -> str:
    return f'"{config.project}_{view}"'
