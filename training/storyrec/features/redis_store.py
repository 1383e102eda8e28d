"""The online store of a cluster: one Redis."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import chain, islice
from typing import Any, Literal

from feast import RepoConfig
from feast.infra.online_stores.redis import RedisOnlineStore
from feast.repo_config import FeastConfigBaseModel
from redis import ConnectionError, Redis, RedisError, ResponseError
from redis.backoff import NoBackoff
from redis.retry import Retry

from storyrec.features.merge import merge
from storyrec.features.online_store import MARK, Merge, PackedOnlineStore, answering
from storyrec.features.packed import Layout

KEYS_A_CALL = 500
KEYS_A_READ = 1_000
PATIENT = {"socket_timeout": 5.0, "retry": Retry(NoBackoff(), 1, supported_errors=(ConnectionError,))}
"""How long Redis may be silent, unless its settings say otherwise; a lost connection is made once again at once."""
HURRIED = {"socket_timeout": 0.1, "socket_connect_timeout": 0.1, "retry": Retry(NoBackoff(), 0)}


class PackedRedisOnlineStoreConfig(FeastConfigBaseModel):
    """Settings of `PackedRedisOnlineStore`."""

    type: Literal["storyrec.features.redis_store.PackedRedisOnlineStore"]
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

    def __init__(self, **instead: Any) -> None:
        self._redis: Redis | None = None
        self._instead = instead  # of the settings

    def hurried(self) -> PackedOnlineStore:
        return PackedRedisOnlineStore(**HURRIED)

    def get(self, config: RepoConfig, view: str, ids: Sequence[int]) -> list[bytes | None]:
        return self.get_each(config, [(view, ids)])[0]

    def get_each(self, config: RepoConfig, asked: Sequence[tuple[str, Sequence[int]]]) -> list[list[bytes | None]]:
        names = [f"{config.project}:{view}:{key}" for view, ids in asked for key in ids]
        with answering(RedisError):
            if len(names) <= KEYS_A_READ:
                values = iter(self._client(config).mget(names) if names else [])
            else:
                with self._client(config).pipeline(transaction=False) as pipe:
                    for first in range(0, len(names), KEYS_A_READ):
                        pipe.mget(names[first : first + KEYS_A_READ])
                    values = chain.from_iterable(pipe.execute())
        return [list(islice(values, len(ids))) for _, ids in asked]

    def put(self, config: RepoConfig, layout: Layout, values: Mapping[int, bytes], *, rule: Merge = merge) -> None:
        client, prefix = self._client(config), f"{config.project}:{layout.view}:"
        swap, waiting = client.register_script(self.SCRIPT), list(values)
        while waiting:
            stored = self.get(config, layout.view, waiting)
            merged = [(key, old, rule(layout, old, values[key])) for key, old in zip(waiting, stored, strict=True)]
            changes = [change for change in merged if change[1] != change[2]]
            calls = [changes[first : first + KEYS_A_CALL] for first in range(0, len(changes), KEYS_A_CALL)]
            with answering(RedisError), client.pipeline(transaction=False) as pipe:
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

    def since_last_read(self, config: RepoConfig, layout: Layout) -> timedelta | None:
        try:
            seconds = self._client(config).object("idletime", f"{config.project}:{layout.view}:{MARK}")
        except ResponseError:  # it counts how often, not when: maxmemory-policy is one of LFU
            return None
        return None if seconds is None else timedelta(seconds=seconds)

    def drop(self, config: RepoConfig, views: Iterable[str]) -> None:
        with self._client(config).pipeline(transaction=False) as pipe:
            for view in views:
                for name in self._client(config).scan_iter(f"{config.project}:{view}:*", count=10_000):
                    pipe.unlink(name)
                pipe.execute()

    def _client(self, config: RepoConfig) -> Any:  # its types say that every answer may have to be awaited
        if self._redis is None:
            (node, *_), settings = RedisOnlineStore._parse_connection_string(config.online_store.connection_string)
            self._redis = Redis(**{**PATIENT, **node, **settings, **self._instead})
        return self._redis
