"""Feast's HTTP application with its lookups answered faster: what a plan covers (`reads`), in Feast's own words.

All else goes to Feast's application as it came: other routes, and lookups that no plan covers or that Feast refuses.
What Feast calls an error of its own though the request was wrong, 500, is answered with 422: its client repeats a
request that got 500, and then does not show why.
"""

import contextlib
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

from storyrec.errors import DataError
from storyrec.features.reads import Found, OnlineReader, Wanted
from storyrec.features.refusals import Refusal, StoreSilent

PATH = "/get-online-features"
WRITES = ("/push", "/write-to-online-store")
WRONG_REQUEST = (KeyError, TypeError, ValueError)
"""What Feast raises over keys, features, columns and types that it does not find or understand."""
VERIFIED_SECONDS = 300
"""A token is verified again after so long: for so long Feast keeps a provider's keys, too."""
TOKENS_KEPT = 10_000
SMALL_BYTES = 1_000
"""The body of a request that is answered sooner than a thread gets its turn."""
SLOW_SECONDS, CAREFUL_SECONDS = 0.1, 10.0
"""After a read that took so long, threads answer for a while, so that a store that hangs holds up lookups alone."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = "1970-01-01T00:00:00Z"


class RequestRefused(DataError, Refusal):
    """What Feast could not make anything of."""

    status = 422


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
            if scope["type"] == "http" and scope["path"] in WRITES:
                await self._pass_on(scope, receive, send)
            else:
                await self._feast(scope, receive, send)
            return
        started, messages = time.monotonic(), [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        try:
            user = await self._users.of(scope)
            body = b"".join(message.get("body", b"") for message in messages)
            content = await self._look_up(body, user, started)
        except Refusal as error:
            _count_request(started, "error")
            await _refuse(send, error)
            return
        except Exception:  # whatever it is, Feast says it to the client
            content = None
        if content is None:
            await self._pass_on(scope, _again(messages, receive), send)
        else:
            await _send(send, 200, content)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Feast's answer, but for a 500 that the request itself has caused."""
        held: list[Message] = []

        async def sending(message: Message) -> None:
            if held or message.get("status") == 500:
                held.append(message)
            else:
                await send(message)

        raised = None
        try:
            await self._feast(scope, receive, sending)
        except Exception as error:
            raised = error
        if held and isinstance(raised, WRONG_REQUEST):
            await _refuse(send, RequestRefused(f"{type(raised).__name__}: {raised}", remedy="correct the request"))
            return
        for message in held:
            await send(message)
        if raised:
            raise raised

    async def _look_up(self, body: bytes, user: User | None, started: float) -> bytes | None:
        """The body of the answer, from here where the store is quick, else from a thread."""
        if len(body) <= SMALL_BYTES and started >= self._careful_until:
            with contextlib.suppress(StoreSilent):
                return self._answer(body, user, started, hurried=True)
        return await run_in_threadpool(self._answer, body, user, started)

    def _answer(self, body: bytes, user: User | None, started: float, *, hurried: bool = False) -> bytes | None:
        """The body of the answer; None where no plan covers what is asked."""
        asked = json.loads(body)
        wanted, entities = _wanted(asked), asked["entities"]
        plan = wanted and self._reader.plan(wanted, user=user)
        if plan is None:
            return None
        read = time.monotonic()
        try:
            found = self._reader.read(plan, entities, hurried=hurried)
        finally:
            read_seconds = time.monotonic() - read
            if read_seconds > SLOW_SECONDS:
                self._careful_until = read + read_seconds + CAREFUL_SECONDS
        if found is None:
            return None
        content = json.dumps(
            respond(entities, found), ensure_ascii=False, allow_nan=False, separators=(",", ":")
        ).encode()
        num_keys = len(next(iter(entities.values())))
        feast_metrics.track_online_features_entities(num_keys)
        feast_metrics.track_online_store_read(read_seconds)
        for one in found:
            num_known = len(one.columns) * (num_keys - one.event_us.count(None))
            feast_metrics.track_feature_statuses(
                one.part.layout.view, num_known, len(one.columns) * num_keys - num_known
            )
        num_features = bin_feature_count(sum(len(one.columns) for one in found), self._bins)
        _count_request(started, "success", feature_count=num_features, feature_view_count=str(len(found)))
        return content


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


def _count_request(started: float, status: str, *, feature_count: str = "", feature_view_count: str = "") -> None:
    """Count a lookup as Feast does."""
    if feast_metrics._config.request:
        labels = {"feature_count": feature_count, "feature_view_count": feature_view_count}
        feast_metrics.request_latency.labels(endpoint=PATH, **labels).observe(time.monotonic() - started)
        feast_metrics.request_count.labels(endpoint=PATH, status=status).inc()


async def _send(send: Send, status: int, content: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _refuse(send: Send, refusal: Refusal) -> None:
    await _send(send, refusal.http_status_code(), json.dumps(refusal.to_error_detail()).encode())


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
