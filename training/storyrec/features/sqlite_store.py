"""The online store of one machine: a SQLite database."""

import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from feast import RepoConfig
from feast.repo_config import FeastConfigBaseModel

from storyrec.features.merge import merge
from storyrec.features.online_store import MARK, Merge, PackedOnlineStore, answering
from storyrec.features.packed import Layout


class PackedSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of `PackedSqliteOnlineStore`."""

    type: Literal["storyrec.features.sqlite_store.PackedSqliteOnlineStore"]
    path: str
    """The database's file; a relative path counts from the feature repository."""


class PackedSqliteOnlineStore(PackedOnlineStore):
    """Values as rows of a table a view, named project_view."""

    def __init__(self) -> None:
        self._threads = threading.local()

    def get(self, config: RepoConfig, view: str, ids: Sequence[int]) -> list[bytes | None]:
        asked = f"SELECT id, value FROM {_table(config, view)} WHERE id IN (SELECT value FROM json_each(?))"
        with answering(sqlite3.Error):
            try:
                found = dict(self._connection(config).execute(asked, [json.dumps([int(key) for key in ids])]))
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise
                found = {}  # of a model that was retired meanwhile
        return [found.get(key) for key in ids]

    def put(self, config: RepoConfig, layout: Layout, values: Mapping[int, bytes], *, rule: Merge = merge) -> None:
        with answering(sqlite3.Error), self._transaction(config) as connection:
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
        with self._transaction(config) as connection:
            tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for view in (f"{config.project}_{view}" for view in views):
                for name in tables:
                    if name == view or name.startswith(f"{view}:"):
                        connection.execute(f'DROP TABLE "{name}"')

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


def _table(config: RepoConfig, view: str) -> str:
    return f'"{config.project}_{view}"'
