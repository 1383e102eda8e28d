"""What is online against the logs: each user's clicks before the end of a day must be the offline ones.

Pushed clicks that the logs never brought, lost values, values of another hand: all show here. Clicks
from the end of the day on are left alone; they only push older ones out of the sequence.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from itertools import zip_longest
from typing import TYPE_CHECKING

from rich.console import Console

from storyrec.config import Config
from storyrec.errors import DataError
from storyrec.features.events import VIEWS
from storyrec.features.merge import Click, Recent, pack_sequence, restate, unpack_sequence
from storyrec.features.partitions import midnight, read_marker, work_folder
from storyrec.features.sequences import midnight_us
from storyrec.storage import FolderStorage

if TYPE_CHECKING:
    from storyrec.features.store import FeatureStoreClient

USERS_AT_A_TIME = 10_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Difference:
    """A user whose online clicks before the end of the day are not those of the logs.

    Attributes:
        online, logs: (epoch microseconds, item), oldest first.
    """

    view: str
    user_id: int
    online: list[Click]
    logs: list[Click]


@dataclass(frozen=True)
class SequencesReconciled:
    """What a run of `reconcile_sequences` found.

    Attributes:
        num_users: compared, by view.
        differences: one a user and view.
        repaired: whether they were rewritten.
    """

    day: date
    num_users: dict[str, int]
    differences: list[Difference]
    repaired: bool


def reconcile_sequences(config: Config, *, day: date, repair: bool) -> SequencesReconciled:
    """Compare the online sequences with the offline ones at the end of a day, user by user.

    Args:
        config: settings; locations.work and profile.
        day: partition key, built.
        repair: rewrite the clicks before the end of the day where they differ.

    Raises:
        MissingPartition: the day is not built.
        PlatformError: the feature store does not answer.
    """
    from storyrec.features.store import open_feature_store

    length = read_marker(FolderStorage(work_folder(config.locations.work)), day).length
    store = open_feature_store(config.locations.work, profile=config.profile)
    num_users, differences = {}, []
    for view in VIEWS.values():
        num_users[view] = 0
        for stated in _stated(store, view, day):
            num_users[view] += len(stated)
            wrong = _compare(store, view, stated, length=length, end_us=midnight_us(day + timedelta(days=1)))
            differences += wrong
            if repair:
                store.restate(view, {difference.user_id: stated[difference.user_id] for difference in wrong})
    return SequencesReconciled(day, num_users, differences, repair)


def print_differences(found: SequencesReconciled, *, console: Console) -> None:
    """List the differences, one a line, and how many there are.

    Raises:
        DataError: there are some, and they were not repaired.
    """
    for one in found.differences:
        pairs = zip_longest(one.online, one.logs, fillvalue=None)
        place, (online, logs) = next((place, pair) for place, pair in enumerate(pairs, 1) if pair[0] != pair[1])
        console.print(
            f"{one.view} user {one.user_id}: {len(one.online)} clicks online, {len(one.logs)} in the logs; "
            f"click {place} is {_click(online)} online, {_click(logs)} in the logs"
        )
    compared = ", ".join(f"{count:,} users of {view}" for view, count in found.num_users.items())
    console.print(
        f"compared {compared}; {len(found.differences):,} differ{' and were rewritten' if found.repaired else ''}"
    )
    if found.differences and not found.repaired:
        raise DataError(
            f"{len(found.differences):,} online sequences differ from the logs",
            expected=f"the same clicks before the end of {found.day}",
            where="the online store",
            remedy="materialize the day if it was not yet; --repair rewrites what differs",
        )


def _click(click: Click | None) -> str:
    return "none" if click is None else f"{click[1]} at {EPOCH + timedelta(microseconds=click[0]):%Y-%m-%d %H:%M:%S.%f}"


def _stated(store: "FeatureStoreClient", view: str, day: date) -> Iterator[dict[int, bytes]]:
    """What the logs state of each user at the end of a day: those with clicks, then those who are only online."""
    from storyrec.features.store import THE_BEGINNING

    end, with_clicks = midnight(day + timedelta(days=1)), set[int]()
    for values in store.offline_values(view, start=THE_BEGINNING, end=end):
        with_clicks |= values.keys()
        yield values
    nothing = pack_sequence(store.layout(view), Recent(midnight_us(end.date()), []))
    others = [user for user in {*store.online_ids(view)} if user not in with_clicks]
    for first in range(0, len(others), USERS_AT_A_TIME):
        yield dict.fromkeys(others[first : first + USERS_AT_A_TIME], nothing)


def _compare(
    store: "FeatureStoreClient", view: str, stated: Mapping[int, bytes], *, length: int, end_us: int
) -> list[Difference]:
    """The users whose last `length` clicks, which is what a day states of each, are not what they should be."""
    layout, differences = store.layout(view), []
    for (user, value), online in zip(stated.items(), store.online_values(view, list(stated)), strict=True):
        found = unpack_sequence(layout, online).clicks[-length:]
        expected = unpack_sequence(layout, restate(layout, online, value)).clicks[-length:]
        if found != expected:
            both = ([click for click in clicks if click[0] < end_us] for clicks in (found, expected))
            differences.append(Difference(view, user, *both))
    return differences
