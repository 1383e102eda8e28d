"""Partitions of the user sequence views: markers, states and the clicks they are built from.

Below locations.work:
    features/<view>/dt=D/part-0.parquet         rows of the clicks since the partition before, up to D
    features/state/<view>/dt=D/part-0.parquet   each user's last clicks at the end of D
    features/dt=D.json                          the marker, written last
"""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from storyrec.errors import ConfigError, DayStopped, MissingPartition
from storyrec.features.events import VIEWS, log_from_table, log_table
from storyrec.features.sequences import ClickLog
from storyrec.logs.partitions import VALIDATED, missing_partition, read_days
from storyrec.schema import Domain
from storyrec.storage import Storage

TABLES = {Domain.STORY: "impressions", Domain.PRODUCT: "product_clicks"}
CLICK_COLUMNS = {
    Domain.STORY: ("user_id", "story_id", "shown_at", "clicked"),
    Domain.PRODUCT: ("user_id", "product_id", "clicked_at"),
}


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
    passed = (key for key in keys if json.loads(storage.read(key))["status"] == "valid")
    return sorted(date.fromisoformat(key[len("reports/dt=") : -len(".json")]) for key in passed)


def require_validated(storage: Storage, day: date) -> None:
    """Refuse a day whose validation did not end well.

    Raises:
        MissingPartition: the day was not validated.
        DayStopped: the day broke a rule that stops it.
    """
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
    if json.loads(report[0])["status"] != "valid":
        raise DayStopped(
            f"the day {day} was stopped by its rules",
            expected="a day that passed validation",
            where=f"{storage.url}/reports/dt={day}.json",
            remedy="read the report, correct the logs and run validate_logs again",
        )


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


def write_state(storage: Storage, day: date, state: dict[Domain, ClickLog]) -> None:
    """Keep each user's last clicks at the end of a day for the day after."""
    for domain, view in VIEWS.items():
        write_rows(storage, f"state/{view}", day, log_table(state[domain]))


def write_marker(storage: Storage, marker: Marker) -> None:
    """Say that a partition is built; the last thing that is written of it."""
    storage.write(_marker_key(marker.day), json.dumps(asdict(marker), indent=2, default=str).encode())


def delete_marker(storage: Storage, day: date) -> None:
    """Say that a partition is not built, before it is replaced."""
    storage.delete(_marker_key(day))


def remove_unmarked(storage: Storage, *, kept: Iterable[date]) -> None:
    """Remove markers and partitions of other days than `kept`: leftovers of a killed run, days that another
    partition holds now, days that were stopped since."""
    names = {f"dt={day}" for day in kept}
    for key in storage.list("features/dt="):
        if key.removeprefix("features/").removesuffix(".json") not in names:
            storage.delete(key)
    for view in VIEWS.values():
        for folder in (f"features/{view}/", f"features/state/{view}/"):
            for key in storage.list(folder):
                if key.removeprefix(folder).partition("/")[0] not in names:
                    storage.delete(key)


def write_rows(storage: Storage, view: str, day: date, rows: pa.Table) -> None:
    """Write one partition of a feature view's offline source, whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, compression="zstd", use_dictionary=False)
    storage.write(f"features/{_part(view, day)}", sink.getvalue().to_pybytes())


def work_folder(work: str) -> Path:
    """The settings' locations.work as an absolute path.

    Raises:
        ConfigError: it is no folder.
    """
    if work.startswith("s3://"):
        raise ConfigError(
            f"'{work}' is no folder",
            expected="a folder, on a cluster one that every worker mounts",
            where="locations.work",
            remedy="set it to a folder; logs and registry may stay in S3",
        )
    return Path(work.removeprefix("file://")).resolve()


def midnight(day: date) -> datetime:
    """The first moment of a day, UTC."""
    return datetime.combine(day, time(), UTC)


def _part(view: str, day: date) -> str:
    return f"{view}/dt={day}/part-0.parquet"


def _marker_key(day: date) -> str:
    return f"features/dt={day}.json"


def _marker(content: bytes) -> Marker:
    read = json.loads(content)
    days = {name: date.fromisoformat(read[name]) for name in ("day", "since")}
    return Marker(**{**read, **days})
