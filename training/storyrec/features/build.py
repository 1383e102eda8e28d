"""Step `build_features`: validated clicks become the offline source of the user sequence views.

A partition holds one row a click moment. It needs only the clicks since the partition before it and
each user's last clicks at that time (the state), so a day costs what a day holds. A long backlog is
built in few passes: a pass closes one partition, named for its last day.

Below locations.work:
    features/<view>/dt=D/part-0.parquet         rows of the clicks since the partition before, up to D
    features/state/<view>/dt=D/part-0.parquet   each user's last clicks at the end of D
    features/dt=D.json                          the marker, written last
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.config import Config
from storyrec.errors import DataError, DayStopped, MissingPartition
from storyrec.features.events import (
    VIEWS,
    join_logs,
    latest_sequences,
    log_from_table,
    log_table,
    sequence_table,
    sequences_after_clicks,
)
from storyrec.features.sequences import ClickLog
from storyrec.logs.partitions import day_number, missing_partition, read_days
from storyrec.progress import Tracker, track
from storyrec.schema import Domain
from storyrec.storage import Storage, open_storage

TABLES = {Domain.STORY: "impressions", Domain.PRODUCT: "product_clicks"}
CLICK_COLUMNS = {
    Domain.STORY: ("user_id", "story_id", "shown_at", "clicked"),
    Domain.PRODUCT: ("user_id", "product_id", "clicked_at"),
}
VALIDATED = "validated/"
MAX_ROWS_PER_PASS = 2_000_000
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Marker:
    """What features/dt=D.json says about a built partition.

    Attributes:
        day: its last day.
        since: its first day; the days before are in the partitions before.
        length: the most clicks of a sequence.
        clicks: SHA-256 of the clicks since the partition before.
        base, state: SHA-256 of the state it was built on and of the state it left.
        num_rows, num_users: rows written and users with a sequence, by view.
    """

    day: date
    since: date
    length: int
    clicks: str
    base: str
    state: str
    num_rows: dict[str, int]
    num_users: dict[str, int]


@dataclass(frozen=True)
class FeaturesBuilt:
    """What a run of `build_features` did.

    Attributes:
        day: the day asked for.
        partitions: the partitions written, oldest first; empty where nothing had changed.
        num_rows: rows written, by view.
        num_users: users with a sequence at the end of the last partition, by view.
    """

    day: date
    partitions: tuple[date, ...]
    num_rows: dict[str, int]
    num_users: dict[str, int]


@dataclass(frozen=True)
class FeaturesMaterialized:
    """What a run of `materialize_features` put online.

    Attributes:
        day: the day asked for.
        start, end: the window of event times, start exclusive, stretched to what was online before.
        num_users: users with a sequence at the end of `day`, by view.
    """

    day: date
    start: datetime
    end: datetime
    num_users: dict[str, int]


def build_features(config: Config, *, day: date) -> FeaturesBuilt:
    """Build the sequences of a validated day, of the validated days before it that are not built
    yet, and, where the day had been built with other clicks, of the later days again.

    Args:
        config: settings; locations.work and features.sequence_length.
        day: partition key.

    Returns:
        The partitions written. The same clicks build the same files; nothing is written for clicks
        that are built already.

    Raises:
        MissingPartition: the day was not validated.
        DayStopped: the day broke a rule that stops it.
    """
    storage = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    length = config.features.sequence_length
    _require_validated(storage, day)
    validated = validated_days(storage)
    usable = (marker for marker in read_markers(storage) if marker.length == length)
    markers = {marker.day: marker for marker in usable if marker.day in set(validated)}
    earlier = max((built for built in markers if built < day), default=None)
    ends = [day, *sorted(built for built in markers if built > day)]

    written: list[Marker] = []
    state = read_state(storage, earlier) if earlier else _no_state()
    waiting = [d for d in validated if (earlier is None or d > earlier) and d <= ends[-1]]
    with track("build_features", total=len(waiting)) as tracker:
        while waiting:
            end = next(d for d in ends if d >= waiting[0])
            days, clicks = _next_pass(storage, [d for d in waiting if d <= end], tracker=tracker)
            waiting = waiting[len(days) :]
            marker, state, changed = _build_partition(
                storage, days, clicks=clicks, state=state, length=length, before=markers.get(days[-1])
            )
            markers[marker.day] = marker
            if changed:
                written.append(marker)
            elif days[-1] >= day and _is_chain([markers[d] for d in ends if d >= days[-1]]):
                break
    if written:
        _remove_stale(storage, kept=markers)
    rows = {view: sum(marker.num_rows[view] for marker in written) for view in VIEWS.values()}
    return FeaturesBuilt(day, tuple(marker.day for marker in written), rows, markers[day].num_users)


def materialize_features(config: Config, *, day: date, now: datetime | None = None) -> FeaturesMaterialized:
    """Put every user's sequence as it stands at the end of `day` into the online store.

    What is online already never grows older: an earlier day than the newest one online brings in
    what was built again since, up to the newest one.

    Args:
        config: settings; locations.work and profile.
        day: partition key, built.
        now: the time of the run; the clock's without it.

    Raises:
        MissingPartition: the day's features are not built.
        DataError: the day is not over, so its sequences are not final.
        PlatformError: the feature store does not answer.
    """
    from storyrec.features.store import open_feature_store

    storage = open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
    marker = read_marker(storage, day)
    end = midnight(day + timedelta(days=1))
    if end > (now or datetime.now(UTC)):
        raise DataError(
            f"the day {day} is not over",
            expected=f"a run after {end:%Y-%m-%d %H:%M} UTC",
            where="materialize_features",
            remedy="run it again after midnight UTC; a window that ends in the future would hide late clicks",
        )
    client = open_feature_store(config.locations.work, profile=config.profile)
    windows = [client.materialize(view, start=midnight(marker.since), end=end) for view in VIEWS.values()]
    return FeaturesMaterialized(day, min(w.start for w in windows), max(w.end for w in windows), marker.num_users)


def read_marker(storage: Storage, day: date) -> Marker:
    """The marker of a built day.

    Raises:
        MissingPartition: the day is not built.
    """
    found = storage.read_versioned(_marker_key(day))
    if found is None:
        raise MissingPartition(
            f"the features of {day} are not built",
            expected=_marker_key(day),
            where=storage.url,
            remedy=f"run build_features for {day} first",
        )
    return _marker(found[0])


def read_markers(storage: Storage) -> list[Marker]:
    """The markers of all built partitions, oldest first."""
    keys = [key for key in storage.list("features/dt=") if re.fullmatch(r"features/dt=[\d-]+\.json", key)]
    return sorted((_marker(storage.read(key)) for key in keys), key=lambda marker: marker.day)


def validated_days(storage: Storage) -> list[date]:
    """The days whose validation ended well, ascending."""
    keys = [key for key in storage.list("reports/dt=") if re.fullmatch(r"reports/dt=[\d-]+\.json", key)]
    passed = (key for key in keys if json.loads(storage.read(key))["status"] != "stopped")
    return sorted(date.fromisoformat(key[len("reports/dt=") : -len(".json")]) for key in passed)


def read_clicks(storage: Storage, domain: Domain, days: Iterable[date]) -> tuple[ClickLog, int]:
    """The validated clicks of some days, and how many log rows were read for them.

    Raises:
        DataError: a partition cannot be read.
    """
    found = read_days(storage, TABLES[domain], days, prefix=VALIDATED, columns=CLICK_COLUMNS[domain])
    for problem in found.problems.values():
        raise problem
    return ClickLog.from_table(found.table, domain), found.table.num_rows


def read_state(storage: Storage, day: date) -> dict[Domain, ClickLog]:
    """Each user's last clicks at the end of a built day."""
    state = {}
    for domain, view in VIEWS.items():
        content = storage.read(f"features/{_part(f'state/{view}', day)}")
        state[domain] = log_from_table(pq.read_table(pa.BufferReader(content)))
    return state


def write_rows(storage: Storage, view: str, day: date, rows: pa.Table) -> None:
    """Write one partition of a feature view's offline source, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", use_dictionary=False)
    storage.write(f"features/{_part(view, day)}", sink.getvalue().to_pybytes())


def midnight(day: date) -> datetime:
    """The first moment of a day, UTC."""
    return datetime.combine(day, time(), UTC)


def _build_partition(
    storage: Storage,
    days: Sequence[date],
    *,
    clicks: dict[Domain, ClickLog],
    state: dict[Domain, ClickLog],
    length: int,
    before: Marker | None,
) -> tuple[Marker, dict[Domain, ClickLog], bool]:
    """Write the partition of some days; returns its marker, the state after it, and whether it is new."""
    day, since_us = days[-1], day_number(days[0]) * DAY_US
    found = (days[0], _digest(clicks.values()), _digest(state.values()))
    if before and (before.since, before.clicks, before.base) == found:
        return before, read_state(storage, day), False
    storage.delete(_marker_key(day))  # a partition that is being replaced is not built
    num_rows, num_users, after = {}, {}, {}
    for domain, view in VIEWS.items():
        log = join_logs([state[domain], clicks[domain]])
        rows = sequence_table(sequences_after_clicks(log, since_us=since_us, length=length), domain=domain)
        latest = latest_sequences(log, length=length)
        after[domain] = latest.as_log()
        write_rows(storage, view, day, rows)
        write_rows(storage, f"state/{view}", day, log_table(after[domain]))
        num_rows[view], num_users[view] = rows.num_rows, len(latest.start_R)
    marker = Marker(day, *found[:1], length, *found[1:], _digest(after.values()), num_rows, num_users)
    storage.write(_marker_key(day), json.dumps(asdict(marker), indent=2, default=str).encode())
    return marker, after, True


def _next_pass(
    storage: Storage, days: Sequence[date], *, tracker: Tracker
) -> tuple[Sequence[date], dict[Domain, ClickLog]]:
    """As many of the first days as fit a pass, and their clicks by domain."""
    taken, size, num_rows = 0, 1, 0
    parts: dict[Domain, list[ClickLog]] = {domain: [] for domain in VIEWS}
    while taken < len(days) and num_rows < MAX_ROWS_PER_PASS:
        some = days[taken : taken + size]
        for domain in VIEWS:
            log, read = read_clicks(storage, domain, some)
            parts[domain].append(log)
            num_rows += read
        taken += len(some)
        # thousands of tiny days are read at once; a day that is a pass by itself never brings others along
        size = 2 * size if 4 * num_rows < MAX_ROWS_PER_PASS else 1
        tracker.advance(len(some), note=str(some[-1]))
    return days[:taken], {domain: join_logs(logs) for domain, logs in parts.items()}


def _is_chain(markers: Sequence[Marker]) -> bool:
    """Whether each partition was built on the state that the one before it left."""
    return all(earlier.state == later.base for earlier, later in pairwise(markers))


def _remove_stale(storage: Storage, *, kept: Iterable[date]) -> None:
    """Remove partitions without a marker: leftovers of a killed run, or days that another partition holds now."""
    names = {f"dt={day}" for day in kept}
    for marker in storage.list("features/dt="):
        if marker.removeprefix("features/").removesuffix(".json") not in names:
            storage.delete(marker)
    for view in VIEWS.values():
        for folder in (f"features/{view}/", f"features/state/{view}/"):
            for key in storage.list(folder):
                if key.removeprefix(folder).partition("/")[0] not in names:
                    storage.delete(key)


def _require_validated(storage: Storage, day: date) -> None:
    report = storage.read_versioned(f"reports/dt={day}.json")
    if report is None:
        if storage.list(f"{VALIDATED}impressions/dt={day}/"):
            raise MissingPartition(
                f"the validation of {day} never finished",
                expected=f"reports/dt={day}.json",
                where=storage.url,
                remedy=f"run validate_logs for {day} again",
            )
        raise missing_partition(storage, "impressions", day, prefix=VALIDATED)
    if json.loads(report[0])["status"] == "stopped":
        raise DayStopped(
            f"the day {day} was stopped by its rules",
            expected="a day that passed validation",
            where=f"{storage.url}/reports/dt={day}.json",
            remedy="read the report, correct the logs and run validate_logs again",
        )


def _digest(logs: Iterable[ClickLog]) -> str:
    digest = hashlib.sha256()
    for log in logs:
        for values_C in (log.user_ids_C, log.item_ids_C, log.clicked_us_C):
            digest.update(len(values_C).to_bytes(8, "little"))
            digest.update(values_C.tobytes())
    return digest.hexdigest()


def _no_state() -> dict[Domain, ClickLog]:
    return {domain: join_logs([]) for domain in VIEWS}


def _part(view: str, day: date) -> str:
    return f"{view}/dt={day}/part-0.parquet"


def _marker_key(day: date) -> str:
    return f"features/dt={day}.json"


def _marker(content: bytes) -> Marker:
    read = json.loads(content)
    days = {name: date.fromisoformat(read[name]) for name in ("day", "since")}
    return Marker(**{**read, **days})


from storyrec.features.compare import compare_sequences  # noqa: E402,F401
