"""Feast's HTTP application with its lookups answered faster: what a plan covers (`reads`), in Feast's own words.

All else goes to Feast's application as it came: other routes, and lookups that no plan covers or that Feast refuses.
What Feast would call an error of its own though the request was wrong, 500, is refused before with 422: its client
repeats a request that got 500, and then does not show why.
"""

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import jwt
from feast import FeatureStore
from feast import metrics as feast_metrics
from feast.feature_server import GetOnlineFeaturesRequest, bin_feature_count
from feast.infra.feature_servers.base_config import MetricsConfig
from feast.permissions.action import AuthzedAction
from feast.permissions.auth.auth_manager import get_auth_manager
from feast.permissions.security_manager import get_security_manager, permitted_resources
from feast.permissions.user import User
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from storyrec.errors import DataError
from storyrec.features.incoming import PUSH, WRITE, incoming_rows, view_of
from storyrec.features.reads import Found, OnlineReader, Wanted
from storyrec.features.refusals import Refusal, StoreSilent
from storyrec.serving.bounded_body import bounded_body

PATH = "/get-online-features"
VERIFIED_SECONDS = 300
"""A token is verified again after so long: for so long Feast keeps a provider's keys, too."""
TOKENS_KEPT = 10_000
SMALL_BYTES = 1_000
"""The body of a request that is answered sooner than a thread gets its turn."""
MAX_BODY_BYTES, BODY_SECONDS = 10_000_000, 10.0
"""How large a request's body may be, and how long it may take to arrive."""
SLOW_SECONDS, CAREFUL_SECONDS = 0.1, 10.0
"""After a read that took so long, threads answer for a while, so that a store that hangs holds up lookups alone."""
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NEVER = "1970-01-01T00:00:00Z"


class OtherProject(DataError, Refusal):
    """A project that this server does not hold.

    Feast asks the permissions of the project that a request names, and where there are none lets everybody do all.
    """

    status = 404


class ForFeast(Exception):
    """A lookup that is right and that no plan covers: its body without what Feast could stumble over."""

    def __init__(self, body: bytes) -> None:
        self.body = body


class ReadApp:
    """ASGI application around Feast's.

    Args:
        feast: Feast's application.
        store: what it serves.
    """

    def __init__(self, feast: ASGIApp, store: FeatureStore) -> None:
        self._feast, self._store, self._reader, self._users = feast, store, OnlineReader(store), Users(now=time.time)
        settings = getattr(store.config.feature_server, "metrics", None) or MetricsConfig()
        self._bins = settings.feature_count_bins
        self._careful_until = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_lookup = _is_json(scope, PATH)
        try:
            _require_project(scope, self._store.project)
        except OtherProject as error:
            await _refuse(send, error)
            return
        if scope["type"] == "http":
            receive = bounded_body(receive, max_bytes=MAX_BODY_BYTES, seconds=BODY_SECONDS)
        if not is_lookup and not _is_json(scope, PUSH, WRITE):
            await self._feast(scope, receive, send)
            return
        started = time.monotonic()
        try:
            messages = [await receive()]
            while messages[-1].get("more_body"):
                messages.append(await receive())
        except HTTPException as error:
            _count_request(scope["path"], started, "error")
            await _send(send, error.status_code, json.dumps({"detail": error.detail}).encode())
            return
        body, content = b"".join(message.get("body", b"") for message in messages), None
        try:
            user = await self._users.of(scope)
            if is_lookup:
                content = await self._look_up(body, user, started)
            else:
                rows = await run_in_threadpool(self._incoming, scope["path"], body, user)
                messages = [{"type": "http.request", "body": rows}]
        except Refusal as error:
            _count_request(scope["path"], started, "error")
            await _refuse(send, error)
            return
        except ForFeast as looked_at:
            messages = [{"type": "http.request", "body": looked_at.body}]
        except Exception:  # whatever it is, Feast says it to the client
            content = None
        if content is None:
            await self._feast(scope, _again(messages, receive), send)
        else:
            await _send(send, 200, content)

    def _incoming(self, path: str, body: bytes, user: User | None) -> bytes:
        """The body for Feast; without rows where it refuses the view or the user."""
        asked = json.loads(body)
        view = view_of(self._store, path, asked)
        security = get_security_manager()
        if security is not None:
            security.set_current_user(cast("User", user))
        may_write = view and permitted_resources([view], actions=[AuthzedAction.WRITE_ONLINE])
        return json.dumps(asked | {"df": incoming_rows(view, asked) if view and may_write else {}}).encode()

    async def _look_up(self, body: bytes, user: User | None, started: float) -> bytes | None:
        """The body of the answer, from here where the store is quick, else from a thread."""
        if len(body) <= SMALL_BYTES and started >= self._careful_until:
            with contextlib.suppress(StoreSilent):
                return self._answer(body, user, started, hurried=True)
        return await run_in_threadpool(self._answer, body, user, started)

    def _answer(self, body: bytes, user: User | None, started: float, *, hurried: bool = False) -> bytes | None:
        """The body of the answer; None where there is no plan."""
        asked = GetOnlineFeaturesRequest.model_validate(json.loads(body))
        plan = self._reader.plan(_wanted(asked), user=user)
        if not plan:
            return None
        keys = self._reader.keys(plan, asked.entities)
        if asked.include_feature_view_version_metadata:
            raise ForFeast(asked.model_copy(update={"entities": keys}).model_dump_json().encode())
        read = time.monotonic()
        try:
            found = self._reader.read(plan, keys, hurried=hurried)
        finally:
            read_seconds = time.monotonic() - read
            if read_seconds > SLOW_SECONDS:
                self._careful_until = read + read_seconds + CAREFUL_SECONDS
        content = json.dumps(respond(keys, found), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        num_keys = len(next(iter(keys.values())))
        feast_metrics.track_online_features_entities(num_keys)
        feast_metrics.track_online_store_read(read_seconds)
        for one in found:
            num_known = len(one.columns) * (num_keys - one.event_us.count(None))
            feast_metrics.track_feature_statuses(
                one.part.layout.view, num_known, len(one.columns) * num_keys - num_known
            )
        num_features = bin_feature_count(sum(len(one.columns) for one in found), self._bins)
        _count_request(PATH, started, "success", feature_count=num_features, feature_view_count=str(len(found)))
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


def _count_request(
    path: str, started: float, status: str, *, feature_count: str = "", feature_view_count: str = ""
) -> None:
    """Count a request as Feast does."""
    if feast_metrics._config.request:
        labels = {"feature_count": feature_count, "feature_view_count": feature_view_count}
        feast_metrics.request_latency.labels(endpoint=path, **labels).observe(time.monotonic() - started)
        feast_metrics.request_count.labels(endpoint=path, status=status).inc()


def _require_project(scope: Scope, project: str) -> None:
    named = QueryParams(scope.get("query_string", b"")).getlist("project")
    if any(name != project for name in named):
        raise OtherProject(
            f"project {', '.join(named)}", expected=project, where="query", remedy="leave it out: there is no other"
        )


async def _refuse(send: Send, error: Refusal) -> None:
    await _send(send, error.http_status_code(), json.dumps(error.to_error_detail()).encode())


async def _send(send: Send, status: int, content: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _is_json(scope: Scope, *paths: str) -> bool:
    if scope["type"] != "http" or scope["path"] not in paths or scope["method"] != "POST":
        return False
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return bool(kind.partition(b";")[0].strip().lower() == b"application/json")


def _wanted(asked: GetOnlineFeaturesRequest) -> Wanted:
    """What a request names."""
    service, full_names = asked.feature_service, asked.full_feature_names
    return Wanted(service, (), full_names) if service else Wanted("", tuple(asked.features), full_names)


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
