"""Feast's HTTP application with its lookups answered faster: what a plan covers (`reads`), in Feast's own words.

All else goes to Feast's application as it came: other routes, lookups that no plan covers, and those that are
refused, so that every error is Feast's.
"""

import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from feast import FeatureStore
from feast import metrics as feast_metrics
from feast.feature_server import bin_feature_count
from feast.infra.feature_servers.base_config import MetricsConfig
from feast.permissions.auth.auth_manager import get_auth_manager
from feast.permissions.security_manager import get_security_manager
from feast.permissions.user import User
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storyrec.features.reads import Found, OnlineReader, Wanted

PATH = "/get-online-features"
VERIFIED_SECONDS = 300
"""A token is verified again after so long: for so long Feast keeps a provider's keys, too."""
TOKENS_KEPT = 10_000
SMALL_BYTES = 1_000
"""The body of a request that is answered sooner than a thread gets its turn."""
SLOW_SECONDS, CAREFUL_SECONDS = 0.1, 10.0
"""After a read that took so long, threads answer for a while, so that a store that hangs holds up lookups alone."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = "1970-01-01T00:00:00Z"


class ReadApp:
    """ASGI application around Feast's.

    Args:
        feast: Feast's application.
        store: what it serves.
    """

    def __init__(self, feast: ASGIApp, store: FeatureStore) -> None:
        self._feast, self._reader, self._users = feast, OnlineReader(store), Users(now=time.time)
        settings = getattr(store.config.feature_server, "metrics", None) or MetricsConfig()
        self._bins = settings.feature_count_bins
        self._careful_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _is_lookup(scope):
            await self._feast(scope, receive, send)
            return
        started, messages = time.monotonic(), [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        try:
            user = await self._users.of(scope)
            body = b"".join(message.get("body", b"") for message in messages)
            if len(body) <= SMALL_BYTES and started >= self._careful_until:
                content = self._answer(body, user, started)
            else:
                content = await run_in_threadpool(self._answer, body, user, started)
        except Exception:  # whatever it is, Feast says it to the client
            content = None
        if content is None:
            await self._feast(scope, _again(messages, receive), send)
            return
        headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    def _answer(self, body: bytes, user: User | None, started: float) -> bytes | None:
        """The body of the answer; None where no plan covers what is asked."""
        asked = json.loads(body)
        wanted, entities = _wanted(asked), asked["entities"]
        plan = wanted and self._reader.plan(wanted, user=user)
        if plan is None:
            return None
        read = time.monotonic()
        try:
            found = self._reader.read(plan, entities)
        finally:
            read_seconds = time.monotonic() - read
            if read_seconds > SLOW_SECONDS:
                self._careful_until = read + read_seconds + CAREFUL_SECONDS
        if found is None:
            return None
        content = json.dumps(
            respond(entities, found), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
        self._count(found, len(next(iter(entities.values()))), started, read_seconds)
        return content

    def _count(self, found: Sequence[Found], num_keys: int, started: float, read_seconds: float) -> None:
        """Count an answer as Feast does."""
        feast_metrics.track_online_features_entities(num_keys)
        feast_metrics.track_online_store_read(read_seconds)
        for one in found:
            num_known = len(one.columns) * (num_keys - one.event_us.count(None))
            feast_metrics.track_feature_statuses(
                one.part.layout.view, num_known, len(one.columns) * num_keys - num_known
            )
        if feast_metrics._config.request:
            num_features = bin_feature_count(sum(len(one.columns) for one in found), self._bins)
            labels = {"feature_count": num_features, "feature_view_count": str(len(found))}
            feast_metrics.request_latency.labels(endpoint=PATH, **labels).observe(time.monotonic() - started)
            feast_metrics.request_count.labels(endpoint=PATH, status="success").inc()


class Users:
    """Whom the tokens of requests name, by Feast's own reading of them.

    Args:
        now: epoch seconds.
    """

    def __init__(self, *, now: Callable[[], float]) -> None:
        self._known: dict[bytes, tuple[User, float]] = {}
        self._now = now

    async def of(self, scope: Scope) -> User | None:
        """Who sends a request; None where nobody has to say.

        Raises:
            Exception: there is no valid token.
        """
        if get_security_manager() is None:
            return None
        header = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        user, until = self._known.get(header, (None, 0.0))
        now = self._now()
        if user is None or now >= until:
            manager = get_auth_manager()
            token = manager.token_extractor.extract_access_token(request=Request(scope))
            user = await manager.token_parser.user_details_from_access_token(token)
            claims = jwt.decode(token, options={"verify_signature": False})
            if len(self._known) >= TOKENS_KEPT:
                self._known.clear()
            self._known[header] = user, min(float(claims.get("exp", now)), now + VERIFIED_SECONDS)
        return user


def respond(entities: dict[str, list[Any]], found: Sequence[Found]) -> dict[str, Any]:
    """An answer as Feast's server words it: the keys, then the features, a column each."""
    names, results = [*entities], []
    for keys in entities.values():
        results.append({"values": keys, "statuses": ["PRESENT"] * len(keys), "event_timestamps": [NEVER] * len(keys)})
    for one in found:
        names += one.part.names
        statuses = ["NOT_FOUND" if us is None else "PRESENT" for us in one.event_us]
        times = [NEVER if us is None else _rfc3339(us) for us in one.event_us]
        results += [{"values": values, "statuses": statuses, "event_timestamps": times} for values in one.columns]
    return {"results": results, "metadata": {"feature_names": names}}


def _is_lookup(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST" or scope["query_string"]:
        return False  # a query may name another project
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return bool(kind.partition(b";")[0].strip().lower() == b"application/json")


def _wanted(asked: Any) -> Wanted | None:
    """What a request names; None where it is not as Feast's clients write it."""
    service, features = asked.get("feature_service"), asked.get("features", [])
    full_names = asked.get("full_feature_names", False)
    if (
        not isinstance(service, str | None)
        or not isinstance(full_names, bool)
        or asked.get("include_feature_view_version_metadata", False) is not False
        or not all(isinstance(column, list) for column in asked["entities"].values())
        or not isinstance(features, list)
        or not all(isinstance(feature, str) for feature in features)
    ):
        return None
    return Wanted(service, (), full_names) if service else Wanted("", tuple(features), full_names)


def _again(messages: list[Message], receive: Receive) -> Receive:
    """What was received is received once more."""
    waiting = iter(messages)

    async def received() -> Message:
        return next(waiting, None) or await receive()

    return received


def _rfc3339(us: int) -> str:
    """A time as Feast writes it: with milliseconds or microseconds where it has some."""
    time_ = (EPOCH + timedelta(microseconds=us)).replace(tzinfo=None)
    parts = "seconds" if us % 1_000_000 == 0 else "milliseconds" if us % 1_000 == 0 else "microseconds"
    return f"{time_.isoformat(timespec=parts)}Z"
