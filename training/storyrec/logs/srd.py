"""The importer of the published SRD-1 and SRD-2 files: they become the log contract.

An impression of the files is a user, a story, a label and the last clicks in both domains; these become
story clicks (clicked impressions) and product clicks, each once. Pre-training files give the pairs.
Titles are word pieces. What the files do not hold gets the stand-ins of `STAND_INS`.

The files are read line by line. In memory are the ids of the items, the users and the pairs, and
one bucket of users at a time; the rest waits on disk.
"""

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storyrec.logs.imported import IDS, MARKER, digest_file, earlier_import
from storyrec.logs.srd_files import SEQUENCE_LENGTH, TITLE_LENGTH, Line, SourceFile, find_files, read_lines, read_words
from storyrec.logs.srd_store import FirstDays, Ints, ItemStore, Pairs, RowStore, write_user_ids
from storyrec.logs.srd_times import DAY_US, OLDER_BLOCK, Clicks, Placed, Row, place_rows
from storyrec.progress import track
from storyrec.schema import COVER_WIDTH, TABLES, Domain
from storyrec.storage import write_folder

FORMAT = 1
"""Raised whenever the same files give other logs."""
VOCABULARY = "vocab.txt"
STAND_INS = {
    "stories.source": "other",
    "products.category_id": "1",
    "published_at": "midnight of the day of first use; without any, the first day of the logs",
    "impressions.shown_at": "as early as the clicks before it and their time blocks allow",
    "clicks": "Beijing's clock, written as if it were UTC",
    "impressions.request_id": "file and line; none for a story click known from later sequences alone",
}

_SECONDS, _MILLISECONDS = 10**9, 10**12  # later than 2001, in either unit; smaller numbers are no absolute time
_END_SECONDS = 4_102_444_800  # the year 2100
_BEIJING_SECONDS = 8 * 3_600
_PUBLISHED_MB = 1e6


def import_srd(*, source: Path, out: Path, vocabulary: Path | None) -> dict[str, Any]:
    """Turn the published files of a folder into logs.

    Writes `<table>/dt=D/*.parquet`, `_ids/users.parquet` (items keep their ids) and `_import.json`; the
    folder appears whole. Without training and test files there are catalogs alone.

    Args:
        source: folder of one edition's files.
        out: data root to write.
        vocabulary: BERT vocabulary of the token ids; None: `vocab.txt` in `source`.

    Returns:
        The summary that `_import.json` holds. Where `out` already holds this import, nothing is written.

    Raises:
        DataError: a file is missing or broken, by file and line, or `out` holds something else.
        StorageError: the disk is full or the folder refuses; nothing is left of the attempt.
    """
    files = find_files(source)
    vocabulary = vocabulary or source / VOCABULARY
    words = read_words(vocabulary)
    settings = {
        "format": FORMAT,
        "edition": f"SRD-{files[0].edition}",
        "files": {file.path.name: digest_file(file.path) for file in files},
        "vocabulary": digest_file(vocabulary),
    }
    if (done := earlier_import(out, settings)) is not None:
        return done
    with write_folder(out) as folder, ExitStack() as stack:
        waiting = Path(stack.enter_context(TemporaryDirectory(prefix=".waiting.", dir=folder)))
        reader = _Reader(waiting, words=words)
        sizes = [file.path.stat().st_size for file in files]
        progress = stack.enter_context(track("import srd", total=2.1 * sum(sizes) / _PUBLISHED_MB))
        for number, file in enumerate(files):
            done_bytes = 0
            for line, position in read_lines(file):
                reader.read(file, number, line)
                progress.advance((position - done_bytes) / _PUBLISHED_MB, note=f"{file.path.name} {line.number}")
                done_bytes = position
        reader.close()
        first_days = FirstDays(), FirstDays()
        counts = Counter[str]()
        days = set[int]()
        for bucket, users in enumerate(reader.rows.buckets()):
            placed = {user: place_rows(rows) for user, rows in users.items()}
            days |= _write_events(folder, users, placed, bucket=bucket, first_days=first_days, files=files)
            for result in placed.values():
                counts.update(result.counts)
            counts["users_done"] += len(users)
            progress.advance(sum(sizes) * len(users) / max(1, len(reader.rows.users)) / _PUBLISHED_MB, note="clicks")
        first_day = min(days, default=_number(files[0].day))
        _write_catalogs(folder, reader, first_days, first_day=first_day)
        (folder / IDS).mkdir()
        write_user_ids(reader.rows.users, folder / IDS / "users.parquet")
        summary = {"settings": settings, **_counts(folder, reader, counts), "stand_ins": STAND_INS}
        (folder / MARKER).write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


class _Reader:
    """Takes lines; keeps items, pairs and rows."""

    def __init__(self, waiting: Path, *, words: Sequence[str]) -> None:
        self.words = words
        self.items = ItemStore(waiting / "stories.parquet"), ItemStore(waiting / "products.parquet")
        self.rows = RowStore(waiting / "rows")
        self.pairs = Pairs()
        self.num_lines = Counter[str]()

    def read(self, file: SourceFile, number: int, line: Line) -> None:
        self.num_lines[file.path.name] += 1
        if file.kind == "pretrain":
            self._read_pair(line, 0)
            self._read_pair(line, len(line.columns) // 2)
        else:
            self._read_impression(line, number=number, day=file.day)

    def close(self) -> None:
        for store in self.items:
            store.close()
        self.rows.close()

    def _read_pair(self, line: Line, start: int) -> None:
        story, product = (line.number_at(start + domain, low=1) for domain in Domain)
        self._read_items(line, Domain.STORY, [story], start + 2, start + 3, start + 6)
        self._read_items(line, Domain.PRODUCT, [product], start + 4, start + 5, start + 7)
        self.pairs.add(story, product)

    def _read_impression(self, line: Line, *, number: int, day: date) -> None:
        story = line.number_at(1, low=1)
        clicked = bool(line.number_at(2, high=1))
        self._read_items(line, Domain.STORY, [story], 9, 10, 15)
        sequences = []
        for domain in Domain:
            length = line.number_at(7 + domain, high=SEQUENCE_LENGTH)
            items = line.numbers_at(3 + domain, count=length, low=1)
            blocks = line.numbers_at(18 + domain, count=length, high=OLDER_BLOCK)
            self._read_items(line, domain, items, 11 + 2 * domain, 12 + 2 * domain, 16 + domain, width=SEQUENCE_LENGTH)
            sequences.append((items, _times(line, 5 + domain, count=length), blocks))
        if len({bool(times) for items, times, _ in sequences if items}) > 1:
            raise line.problem(5, "and the next differ: one holds absolute times", "absolute times in both, or in none")
        story_clicks, product_clicks = (Clicks.of(*sequence) for sequence in sequences)
        user = line.fields[0].strip()
        if not user:
            raise line.problem(0, "is empty", "the user's id")
        row = Row(_number(day) * DAY_US, number, line.number, story, clicked, (story_clicks, product_clicks))
        self.rows.add(user, row)

    def _read_items(
        self,
        line: Line,
        domain: Domain,
        items: Sequence[int],
        titles: int,
        lengths: int,
        covers: int,
        *,
        width: int = 1,
    ) -> None:
        """Keep those items that are new; only theirs are looked at, as most are not."""
        store = self.items[domain]
        if store.seen.issuperset(items):
            return
        tokens = line.split(titles, width=width * TITLE_LENGTH)
        sizes = line.numbers_at(lengths, count=len(items), high=TITLE_LENGTH)
        values = line.split(covers, width=width * COVER_WIDTH)
        for place, item in enumerate(items):
            if item in store.seen:
                continue
            title = line.title(
                tokens[place * TITLE_LENGTH : (place + 1) * TITLE_LENGTH],
                length=sizes[place],
                column=titles,
                words=self.words,
            )
            cover = line.cover(values[place * COVER_WIDTH : (place + 1) * COVER_WIDTH], column=covers)
            store.add(item, title=title, cover=cover)


def _times(line: Line, column: int, *, count: int) -> list[int]:
    """A sequence's times in epoch microseconds by Beijing's clock; empty where the file's are not absolute."""
    if not count:
        return []
    parts = line.fields[column].split(b",", count)[:count]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return []
    if min(values) < _SECONDS:
        if max(values) >= _SECONDS:
            raise line.problem(column, "has absolute and other times", "one kind of times")
        return []
    if len(values) < count:
        raise line.problem(column, f"has {len(values)} values", f"{count} values")
    unit = 1_000 if min(values) >= _MILLISECONDS else 1_000_000
    if odd := [value for value in values if not value * unit < _END_SECONDS * 1_000_000]:
        raise line.problem(
            column, f"has the time {odd[0]:.17g}", "one unit, seconds or milliseconds, and no time after 2099"
        )
    return [int(value) * unit + _BEIJING_SECONDS * 1_000_000 for value in values]


def _write_events(
    folder: Path,
    users: dict[int, list[Row]],
    placed: dict[int, Placed],
    *,
    bucket: int,
    first_days: tuple[FirstDays, FirstDays],
    files: Sequence[SourceFile],
) -> set[int]:
    """Write what the users of a bucket did; the days on which it was."""
    impressions = [
        (user, i.story, i.shown_us, i.clicked, None if i.row is None else _request(users[user][i.row], files))
        for user, result in placed.items()
        for i in result.impressions
    ]
    clicks = [(user, *click) for user, result in placed.items() for click in result.product_clicks]
    days = set[int]()
    for name, rows, domain in (
        ("impressions", impressions, Domain.STORY),
        ("product_clicks", clicks, Domain.PRODUCT),
    ):
        columns = list(zip(*rows, strict=True)) or [()] * len(TABLES[name])
        arrays = [pa.array(column, field.type) for column, field in zip(columns, TABLES[name], strict=True)]
        times, ids = (np.array(columns[place], np.int64) for place in (2, 1))
        table = pa.Table.from_arrays(arrays, schema=TABLES[name])
        days |= _write_days(folder, name, table, times // DAY_US, order=times, part=bucket)
        first_days[domain].add(ids, times // DAY_US)
    return days


def _write_catalogs(folder: Path, reader: _Reader, first_days: tuple[FirstDays, FirstDays], *, first_day: int) -> None:
    """Write the items, each published on the day of its first use; a product no later than what mounts it."""
    pair_stories, pair_products = reader.pairs.rows()
    first_days[Domain.PRODUCT].add(pair_products, first_days[Domain.STORY].of(pair_stories, default=first_day))
    for name, domain in (("stories", Domain.STORY), ("products", Domain.PRODUCT)):
        for part, items in enumerate(reader.items[domain].tables()):
            ids = np.asarray(items["id"].to_numpy(), np.int64)
            days = first_days[domain].of(ids, default=first_day)
            columns = {
                TABLES[name].names[0]: items["id"],
                "title": items["title"],
                "cover": items["cover"],
                "cover_uri": pa.nulls(len(ids), pa.string()),
                "source": pa.array(["other"] * len(ids)),
                "category_id": np.ones(len(ids), np.int64),
                "published_at": pa.array(days * DAY_US).cast(TABLES[name].field("published_at").type),
                "mounted_product_ids": pa.array(
                    [reader.pairs.mounted.get(item, []) for item in ids.tolist()], pa.list_(pa.int64())
                ),
            }
            table = pa.table({field.name: columns[field.name] for field in TABLES[name]}, schema=TABLES[name])
            _write_days(folder, name, table, days, order=ids, part=part)


def _write_days(folder: Path, name: str, table: pa.Table, days: Ints, *, order: Ints, part: int) -> set[int]:
    for day in (found := set(days.tolist())):
        (rows,) = np.nonzero(days == day)
        path = folder / name / f"dt={date(1970, 1, 1) + timedelta(days=day)}" / f"part-{part}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.take(pa.array(rows[np.argsort(order[rows], kind="stable")])), path, compression="zstd")
    return found


def _counts(folder: Path, reader: _Reader, counts: Counter[str]) -> dict[str, Any]:
    def written(table: str) -> int:
        return sum(pq.read_metadata(path).num_rows for path in folder.glob(f"{table}/dt=*/*.parquet"))

    stories, products = reader.items
    unknown = [pc.sum(pc.equal(table["title"], "\ufffd")).as_py() for store in reader.items for table in store.tables()]
    return {
        "lines": dict(reader.num_lines),
        "users": len(reader.rows.users),
        "stories": len(stories.seen),
        "products": len(products.seen),
        "pairs": len(reader.pairs.rows()[0]),
        "rows": reader.rows.num_rows,
        "impressions": (num_impressions := written("impressions")),
        "clicks_from_sequences_alone": num_impressions - reader.rows.num_rows,
        "product_clicks": written("product_clicks"),
        "items_without_cover": stories.num_without_cover + products.num_without_cover,
        "items_without_title": sum(number or 0 for number in unknown),
        "inferred": {name: counts[name] for name in sorted(counts) if name != "users_done"},
    }


def _request(row: Row, files: Sequence[SourceFile]) -> str:
    return f"{files[row.file].kind}-{row.file}-{row.line}"


def _number(day: date) -> int:
    return (day - date(1970, 1, 1)).days
