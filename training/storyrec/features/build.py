"""Step `build_features`: validated clicks become the offline source of the user sequence views.

A partition holds one row a click moment. It needs only the clicks since the partition before it and
each user's last clicks at that time (the state), so a day costs what a day holds. A long backlog is
built in few passes: a pass closes one partition, named for its last day.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

from storyrec.config import Config
from storyrec.errors import DataError
from storyrec.features.compare import compare_sequences
from storyrec.features.events import (
    VIEWS,
    join_logs,
    latest_sequences,
    sequence_table,
    sequences_after_clicks,
)
from storyrec.features.partitions import (
    Marker,
    delete_marker,
    midnight,
    read_clicks,
    read_marker,
    read_markers,
    read_state,
    remove_unmarked,
    require_validated,
    validated_days,
    work_folder,
    write_marker,
    write_rows,
    write_state,
)
from storyrec.features.sequences import DAY_US, ClickLog
from storyrec.logs.partitions import day_number
from storyrec.progress import Tracker, track
from storyrec.schema import Domain
from storyrec.storage import FolderStorage, Storage, one_writer

__all__ = ["FeaturesBuilt", "FeaturesMaterialized", "build_features", "compare_sequences", "materialize_features"]

MAX_ROWS_PER_PASS = 2_000_000


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
    storage = FolderStorage(work_folder(config.locations.work))
    require_validated(storage, day)
    with one_writer(storage.folder / "features/.lock"):
        return _build(storage, day, length=config.features.sequence_length)


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

    storage = FolderStorage(work_folder(config.locations.work))
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


def _build(storage: Storage, day: date, *, length: int) -> FeaturesBuilt:
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
        remove_unmarked(storage, kept=markers)
    rows = {view: sum(marker.num_rows[view] for marker in written) for view in VIEWS.values()}
    return FeaturesBuilt(day, tuple(marker.day for marker in written), rows, markers[day].num_users)


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
    delete_marker(storage, day)
    num_rows, num_users, after = {}, {}, {}
    for domain, view in VIEWS.items():
        log = join_logs([state[domain], clicks[domain]])
        rows = sequence_table(sequences_after_clicks(log, since_us=since_us, length=length), domain=domain)
        latest = latest_sequences(log, length=length)
        after[domain] = latest.as_log()
        write_rows(storage, view, day, rows)
        num_rows[view], num_users[view] = rows.num_rows, len(latest.start_R)
    marker = Marker(day, *found[:1], length, *found[1:], _digest(after.values()), num_rows, num_users)
    write_state(storage, day, after)
    write_marker(storage, marker)
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


def _digest(logs: Iterable[ClickLog]) -> str:
    digest = hashlib.sha256()
    for log in logs:
        for values_C in (log.user_ids_C, log.item_ids_C, log.clicked_us_C):
            digest.update(len(values_C).to_bytes(8, "little"))
            digest.update(values_C.tobytes())
    return digest.hexdigest()


def _no_state() -> dict[Domain, ClickLog]:
    return {domain: join_logs([]) for domain in VIEWS}
