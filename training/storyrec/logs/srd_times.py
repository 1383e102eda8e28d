"""When the rows of a published file happened: impressions do not say, the clicks before them do.

A row names the user's last clicks and how many hours each lies back (its time block: 1 = within the
hour, 169 = more than a week). Where the clicks carry absolute times, an impression is put as early as
these and the blocks allow. Where they do not, rows of a user are tied together by the clicks that they
share, and times are right to within an hour or so. A sequence's click on the story that a clicked
impression shows, about when it was shown, is that impression's own click.

All times are epoch microseconds.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from storyrec.logs.srd_files import SEQUENCE_LENGTH
from storyrec.schema import Domain

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
OLDER_BLOCK = 169

Click = tuple[int, int]
"""Item and time."""


@dataclass(frozen=True)
class Clicks:
    """A sequence as a row gives it, oldest click first.

    Attributes:
        items: item ids.
        times: absolute times, or none at all.
        blocks: how many hours each lies back, from 0 to 169.
    """

    items: Sequence[int]
    times: Sequence[int]
    blocks: Sequence[int]

    @classmethod
    def of(cls, items: Sequence[int], times: Sequence[int], blocks: Sequence[int]) -> "Clicks":
        """The sequence in either order: it is turned where the blocks or times say that the newest comes first."""
        back = [-time for time in times] or blocks
        if len(back) > 1 and back[0] < back[-1]:
            return cls(items[::-1], times[::-1], blocks[::-1])
        return cls(items, times, blocks)


@dataclass(frozen=True)
class Row:
    """A line of a training or test file.

    Attributes:
        day_us: midnight of the file's day.
        file: number of the file.
        line: number of the line.
        story: id of the story that was shown.
        clicked: the label.
        sequences: story clicks and product clicks before the impression, by domain.
    """

    day_us: int
    file: int
    line: int
    story: int
    clicked: bool
    sequences: tuple[Clicks, Clicks]

    @property
    def is_dated(self) -> bool:
        """Whether its clicks carry absolute times."""
        return any(sequence.times for sequence in self.sequences)


@dataclass(frozen=True)
class Impression:
    """A story shown; `row` is its place among the user's rows, None where only later sequences tell of it."""

    story: int
    shown_us: int
    clicked: bool
    row: int | None


@dataclass
class Placed:
    """What a user did and when.

    Attributes:
        impressions: of the rows and of the story clicks that are no row's own.
        product_clicks: distinct (product, time), sorted.
        counts: how it went, by name.
    """

    impressions: list[Impression]
    product_clicks: list[Click]
    counts: Counter[str] = field(default_factory=Counter)


def place_rows(rows: Sequence[Row]) -> Placed:
    """Give times to the rows of one user.

    Args:
        rows: in the order of the files.
    """
    counts: Counter[str] = Counter()
    placed = _date_clicks(rows)
    clicks: tuple[set[Click], set[Click]] = (set(), set())
    for dated, _ in placed:
        for domain in Domain:
            clicks[domain].update(dated[domain])
    free = defaultdict(list)  # times of the story clicks that are no impression's own yet
    for story, clicked_us in sorted(clicks[Domain.STORY]):
        free[story].append(clicked_us)
    impressions = []
    for number, (row, (dated, (low_us, high_us))) in enumerate(zip(rows, placed, strict=True)):
        own = set(dated[Domain.STORY])
        candidates = [
            time for time in free[row.story] if low_us <= time <= high_us + HOUR_US and (row.story, time) not in own
        ]
        if row.clicked and candidates:
            shown_us = candidates[0]
            free[row.story].remove(shown_us)
            counts["clicks_found_in_sequences"] += 1
        else:
            shown_us = low_us
        counts["impressions_outside_the_files_day"] += not row.day_us <= shown_us < row.day_us + DAY_US
        counts["rows_whose_blocks_contradict_their_times"] += low_us > high_us
        counts["rows_dated_by_blocks_alone"] += bool(any(dated)) and not row.is_dated
        counts["rows_without_any_click"] += not any(dated)
        impressions.append(Impression(row.story, shown_us, row.clicked, number))
    impressions += [Impression(story, time, True, None) for story, times in free.items() for time in times]
    result = Placed(impressions, sorted(clicks[Domain.PRODUCT]), counts)
    _compare_sequences(result, [dated for dated, _ in placed])
    return result


Dated = tuple[list[Click], list[Click]]


def _date_clicks(rows: Sequence[Row]) -> list[tuple[Dated, tuple[int, int]]]:
    """For each row its clicks with times, and the earliest and latest time it can have been shown."""
    known: dict[tuple[Domain, int, int], int] = {}  # domain, item, how often it comes later in the row: its time
    found = []
    for row in rows:
        now_us = 0 if row.is_dated else _tie(row, known)
        dated: Dated = ([], [])
        for domain in Domain:
            sequence = row.sequences[domain]
            times = sequence.times if row.is_dated else _estimate(sequence, domain, now_us=now_us, known=known)
            dated[domain].extend(zip(sequence.items, times, strict=True))
        ends = [
            (time + (max(block, 1) - 1) * HOUR_US, time + max(block, 1) * HOUR_US if block < OLDER_BLOCK else None)
            for domain in Domain
            for (_, time), block in zip(dated[domain], row.sequences[domain].blocks, strict=True)
        ]
        last_us = max((time for domain in Domain for _, time in dated[domain]), default=-1)
        low_us = max(last_us + 1, row.day_us, *(low for low, _ in ends)) if ends else row.day_us + DAY_US // 2
        high_us = min((high for _, high in ends if high is not None), default=row.day_us + DAY_US - 1)
        if not row.is_dated and ends:
            low_us = max(now_us, last_us + 1)
            high_us = low_us
        found.append((dated, (low_us, high_us)))
    return found


def _tie(row: Row, known: dict[tuple[Domain, int, int], int]) -> int:
    """The row's time as the clicks say that an earlier row of the user shares; without any, noon."""
    shared = [
        known[key] + max(block, 1) * HOUR_US - HOUR_US // 2
        for domain in Domain
        for key, block in zip(_keys(row.sequences[domain], domain), row.sequences[domain].blocks, strict=True)
        if key in known and block < OLDER_BLOCK
    ]
    return int(median(shared)) if shared else row.day_us + DAY_US // 2


def _estimate(sequence: Clicks, domain: Domain, *, now_us: int, known: dict[tuple[Domain, int, int], int]) -> list[int]:
    """Times out of the blocks: clicks of one block lie evenly in it; those of an earlier row keep their time."""
    keys = _keys(sequence, domain)
    sizes, places = Counter(sequence.blocks), Counter[int]()
    for key, block in zip(keys, sequence.blocks, strict=True):
        places[block] += 1
        into_us = HOUR_US * places[block] // (sizes[block] + 1)
        known.setdefault(key, now_us - max(block, 1) * HOUR_US + into_us)
    return [known[key] for key in keys]


def _keys(sequence: Clicks, domain: Domain) -> list[tuple[Domain, int, int]]:
    later: Counter[int] = Counter()
    keys = []
    for item in reversed(sequence.items):
        keys.append((domain, item, later[item]))
        later[item] += 1
    return keys[::-1]


def _compare_sequences(placed: Placed, files: Sequence[Dated]) -> None:
    """Count the rows whose last clicks are those of the file, once everything has its time."""
    logs = (
        sorted((i.shown_us, i.story) for i in placed.impressions if i.clicked),
        sorted((time, product) for product, time in placed.product_clicks),
    )
    for impression in placed.impressions:
        if impression.row is None:
            continue
        for domain, name in ((Domain.STORY, "story"), (Domain.PRODUCT, "product")):
            expected = sorted({(time, item) for item, time in files[impression.row][domain]})
            stop = bisect_left(logs[domain], (impression.shown_us, -1))
            found = logs[domain][max(0, stop - SEQUENCE_LENGTH) : stop]
            placed.counts[f"rows_with_the_files_{name}_sequence"] += found == expected
