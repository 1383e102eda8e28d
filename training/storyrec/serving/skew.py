"""The skew check: did the server read the sequences that the offline store says were there at that moment?

equal       the same clicks
late        online had not yet what came last: its clicks are those of an earlier moment
different   anything else; the first ones are shown
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storyrec.errors import DataError
from storyrec.features.catalog import Catalog
from storyrec.features.join import join_labels
from storyrec.progress import track
from storyrec.schema import TIMESTAMP

SERVICE = "ranker_v1"
SEQUENCES = {"story": ("story_ids", "story_clicked_us"), "product": ("product_ids", "product_clicked_us")}
NUM_SHOWN = 5

Clicks = list[tuple[int, int]]
"""(time, item id) of a sequence, oldest first."""


@dataclass(frozen=True)
class Difference:
    """A sequence that is neither equal nor late."""

    request_id: str
    user_id: int
    answered_at: datetime
    domain: str
    online: Clicks
    offline: Clicks


@dataclass(frozen=True)
class Skew:
    """What the check found.

    Attributes:
        num_answers: in the log.
        num_compared: of these, those whose clicks came from the store.
        num_ahead: not compared, for they are of a moment that is yet to come: their server's clock is ahead.
        equal, late, different: sequences, two an answer.
        median_late_seconds, largest_late_seconds: from the newest missing click to the answer; None without.
        differences: the first different ones.
    """

    num_answers: int
    num_compared: int
    num_ahead: int
    equal: int
    late: int
    different: int
    median_late_seconds: float | None
    largest_late_seconds: float | None
    differences: tuple[Difference, ...]


def check_skew(answers: Path, *, catalog: Catalog, now: datetime) -> Skew:
    """Compare the sequences of an answer log with the offline store, row by row.

    Args:
        answers: folder of the log, or of one of its days.
        catalog: of the offline store.
        now: later answers are counted, not compared.

    Raises:
        DataError: there is no answer, a file cannot be read, or no answer had clicks from the store.
        MissingPartition: the offline store has no sequences.
    """
    table = _read(answers)
    online = table.filter(pc.field("sequences") == "online")
    compared = online.filter(pc.field("answered_at") <= pa.scalar(now, TIMESTAMP))
    if not len(compared):
        raise DataError(
            f"none of {len(table)} answers had clicks from the feature store",
            expected=f"answers to users whose clicks were looked up, until {now:%Y-%m-%d %H:%M:%S} UTC",
            where=str(answers),
            remedy="name another folder, or look at the counts of fallbacks",
        )
    with (
        tempfile.TemporaryDirectory(prefix="storyrec-") as scratch,
        track("check_skew", total=len(compared)) as progress,
    ):
        labels, joined = Path(scratch) / "labels.parquet", Path(scratch) / "joined.parquet"
        keys = {"user_id": compared["user_id"], "event_timestamp": compared["answered_at"]}
        pq.write_table(pa.table(keys), labels)
        join_labels(labels, joined, service=SERVICE, catalog=catalog, now=now)
        offline = pq.read_table(joined)
        verdicts = []
        for row, found in zip(compared.to_pylist(), offline.to_pylist(), strict=True):
            for domain in SEQUENCES:
                online_clicks, offline_clicks = _clicks(row, domain), _clicks(found, domain)
                verdict = _compare(online_clicks, offline_clicks)
                verdicts.append((domain, row, verdict, online_clicks, offline_clicks))
            progress.advance()
    return _summed(verdicts, num_answers=len(table), num_ahead=len(online) - len(compared))


def _compare(online: Clicks, offline: Clicks) -> str:
    if online == offline:
        return "equal"
    shared = [click for click in offline if online and click <= online[-1]]
    num_missing, num_older = len(offline) - len(shared), len(online) - len(shared)
    # each later click pushes at most one older click out of the offline sequence
    is_late = num_missing > 0 and 0 <= num_older <= num_missing and online[num_older:] == shared
    return "late" if is_late else "different"


def _clicks(row: dict[str, Any], domain: str) -> Clicks:
    ids, times = (row[name] or [] for name in SEQUENCES[domain])
    return list(zip(times, ids, strict=True))


def _summed(
    verdicts: Sequence[tuple[str, dict[str, Any], str, Clicks, Clicks]], *, num_answers: int, num_ahead: int
) -> Skew:
    counts = {name: sum(verdict == name for _, _, verdict, _, _ in verdicts) for name in ("equal", "late", "different")}
    late_seconds = sorted(
        row["answered_at"].timestamp() - offline[-1][0] / 1e6
        for _, row, verdict, _, offline in verdicts
        if verdict == "late"
    )
    differences = [
        Difference(row["request_id"], row["user_id"], row["answered_at"], domain, online, offline)
        for domain, row, verdict, online, offline in verdicts
        if verdict == "different"
    ]
    return Skew(
        num_answers=num_answers,
        num_compared=len(verdicts) // len(SEQUENCES),
        num_ahead=num_ahead,
        **counts,
        median_late_seconds=late_seconds[len(late_seconds) // 2] if late_seconds else None,
        largest_late_seconds=late_seconds[-1] if late_seconds else None,
        differences=tuple(differences[:NUM_SHOWN]),
    )


def _read(answers: Path) -> pa.Table:
    files = sorted(answers.rglob("*.parquet"))
    if not files:
        raise DataError(
            "there are no answers",
            expected="a folder with dt=YYYY-MM-DD/*.parquet",
            where=str(answers),
            remedy="set serving.answers and serve for a while, or name that folder",
        )
    columns = [
        "request_id",
        "answered_at",
        "user_id",
        "role",
        "sequences",
        *(name for pair in SEQUENCES.values() for name in pair),
    ]
    try:
        found = pa.concat_tables([pq.ParquetFile(file).read(columns) for file in files])
    except (OSError, pa.ArrowException, KeyError) as error:
        raise DataError(
            f"the answers cannot be read ({error})",
            expected="Parquet files as the server writes them",
            where=str(answers),
            remedy="remove the broken file",
        ) from error
    return found.filter(pc.field("role") != "shadow")  # which read what the champion had read
