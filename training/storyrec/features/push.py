"""Clicks from a file into the online sequences, before the day's logs bring them."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import duckdb

from storyrec.config import Config
from storyrec.errors import DataError, SchemaMismatch
from storyrec.features.merge import AHEAD_US, FIRST_US
from storyrec.features.sequences import ClickLog, to_int64
from storyrec.schema import Domain

READERS = {".parquet": "read_parquet", ".json": "read_json", ".jsonl": "read_json"}
COLUMNS = {
    Domain.STORY: ("user_id", "story_id", "clicked_at"),
    Domain.PRODUCT: ("user_id", "product_id", "clicked_at"),
}


@dataclass(frozen=True)
class ClicksPushed:
    """What a run of `push_clicks` merged in."""

    domain: str
    num_clicks: int
    num_users: int


def push_clicks(config: Config, *, clicks: Path, now: datetime | None = None) -> ClicksPushed:
    """Merge the clicks of a file into the online sequences; a file pushed twice changes nothing more.

    Args:
        config: settings; locations.work and profile.
        clicks: a Parquet or JSON file of clicks in one domain, in any order: user_id, story_id or
            product_id, clicked_at (with its time zone).
        now: no click may be later; the clock's time without it.

    Raises:
        SchemaMismatch: a column is missing or of another type.
        DataError: the file cannot be read, or a click has no value, no positive id or no plausible time.
        PlatformError: the feature store does not answer.
    """
    from storyrec.features.store import open_feature_store

    log, domain = read_clicks(clicks, now=now or datetime.now(UTC))
    store = open_feature_store(config.locations.work, profile=config.profile)
    return ClicksPushed(domain.name.lower(), len(log), store.push(log, domain=domain))


def read_clicks(path: Path, *, now: datetime) -> tuple[ClickLog, Domain]:
    """The clicks of a file, sorted, and which domain they are of."""
    if path.suffix not in READERS:
        raise DataError(
            f"'{path.name}' is of no known kind",
            expected=", ".join(READERS),
            where=str(path),
            remedy="write the clicks as Parquet or JSON",
        )
    with duckdb.connect() as connection:
        try:
            connection.execute("SET TimeZone = 'UTC'")
            rows = connection.sql(f"SELECT * FROM {READERS[path.suffix]}(?)", params=[str(path)])
            domain = _domain(rows.columns, path)
            _require_kinds(dict(zip(rows.columns, map(str, rows.types), strict=True)), domain, path)
            user, item, time = COLUMNS[domain]
            table = rows.select(f"{user}::BIGINT, {item}::BIGINT, {time}::TIMESTAMPTZ").to_arrow_table()
        except duckdb.Error as error:
            raise DataError(
                f"the clicks cannot be read: {error}",
                expected="one click a row",
                where=str(path),
                remedy="write the file again",
            ) from error
    missing = sum(column.null_count for column in table.columns)
    if missing:
        raise DataError(
            f"{missing} values are missing",
            expected="every click whole",
            where=str(path),
            remedy="leave these rows out",
        )
    log = ClickLog.from_arrays(*(to_int64(column) for column in table.columns))
    last_us = int(now.timestamp() * 1_000_000) + AHEAD_US
    has_time = (log.clicked_us_C >= FIRST_US) & (log.clicked_us_C <= last_us)
    wrong = (log.user_ids_C <= 0) | (log.item_ids_C <= 0) | ~has_time
    if wrong.any():
        raise DataError(
            f"{wrong.sum()} clicks cannot be",
            expected=f"ids > 0, times of this century up to now, {now:%Y-%m-%d %H:%M:%S} UTC",
            where=str(path),
            remedy="correct or leave out these rows; nothing was pushed",
        )
    return log, domain


def _domain(columns: list[str], path: Path) -> Domain:
    found = [domain for domain, wanted in COLUMNS.items() if set(wanted) <= set(columns)]
    if len(found) != 1:
        raise SchemaMismatch(
            f"columns {', '.join(columns)}",
            expected=" or ".join(", ".join(wanted) for wanted in COLUMNS.values()),
            where=str(path),
            remedy="name the columns so, one domain a file",
        )
    return found[0]


def _require_kinds(kinds: dict[str, str], domain: Domain, path: Path) -> None:
    *ids, time = COLUMNS[domain]
    wrong = {name: kinds[name] for name in ids if "INT" not in kinds[name]}
    if kinds[time] != "TIMESTAMP WITH TIME ZONE":
        wrong[time] = kinds[time]
    if wrong:
        raise SchemaMismatch(
            ", ".join(f"{name} is {kind}" for name, kind in wrong.items()),
            expected="integer ids and a timestamp with its time zone",
            where=str(path),
            remedy="write these columns in their type; times in JSON as 2026-03-09T12:00:00Z",
        )
