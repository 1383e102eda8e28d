"""What becomes of a stored value when another one of the same key arrives.

A sequence is (complete_us, clicks). Days state every click before complete_us; pushed clicks come with
complete_us = 0 and state only themselves. Of two sequences the later complete_us holds: clicks before
it are those of the side that has it (the arriving one where both have, so a day stated again replaces
itself), clicks from it on are those of both sides. So pushes may be repeated and come in any order,
and no day takes fresh clicks away.

Other values: the newest event time stays, an equal one replaces.
"""

import struct
from datetime import UTC, datetime
from typing import NamedTuple

from storyrec.features.packed import Layout, Row

FIRST_US = int(datetime(2000, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
AHEAD_US = 3_600 * 1_000_000
"""A written time before the first is in another unit than microseconds. One ahead of the clock by more than clocks
differ is refused as well: it would stay in its sequence, or keep its value from being replaced, until then."""

Click = tuple[int, int]  # epoch microseconds, item: clicks sort by time, then item


class Recent(NamedTuple):
    """A sequence as it is merged.

    Attributes:
        complete_us: epoch microseconds; every click before it is known. 0: none is.
        clicks: ascending.
    """

    complete_us: int
    clicks: list[Click]


NOTHING = Recent(0, [])


def merge_sequences(stored: Recent, arriving: Recent, *, length: int) -> Recent:
    """Both sequences as one.

    Args:
        stored, arriving: the clicks before each one's complete_us are final.
        length: the most clicks; the most recent ones stay.
    """
    complete_us = max(stored.complete_us, arriving.complete_us)
    stating = arriving if arriving.complete_us >= stored.complete_us else stored
    fresh = {click for side in (stored, arriving) for click in side.clicks if click[0] >= complete_us}
    return Recent(
        complete_us, [*(click for click in stating.clicks if click[0] < complete_us), *sorted(fresh)][-length:]
    )


def merge(layout: Layout, stored: bytes | None, arriving: bytes) -> bytes:
    """The value to be stored, packed; `stored` itself where nothing changes."""
    times, arriving_times = layout.times(stored), layout.times(arriving)
    if stored is None or times is None or arriving_times is None:
        return arriving
    if not layout.length:
        return stored if times[0] > arriving_times[0] else arriving
    if times[0] <= arriving_times[1] and times[1] <= arriving_times[1]:
        return arriving  # nothing is fresher than what it states
    return pack_sequence(
        layout,
        merge_sequences(unpack_sequence(layout, stored), unpack_sequence(layout, arriving), length=layout.length),
    )


def settle(layout: Layout, value: bytes, *, until_us: int) -> bytes | None:
    """A stored sequence without the pushed clicks that the logs do not hold.

    The logs before `until_us` are online. Had they held a click of this user since the value's own
    complete_us, they would have replaced the value; so what it has between the two was only pushed.

    Args:
        until_us: until when the view is complete, epoch microseconds.

    Returns:
        `value` itself where nothing is to settle; None where nothing is left of a user whom no log named.
    """
    times = layout.times(value)
    if times is None or times[1] >= until_us or times[0] <= times[1]:  # the last click is before the event time
        return value
    stored = unpack_sequence(layout, value)
    clicks = [click for click in stored.clicks if not stored.complete_us <= click[0] < until_us]
    return pack_sequence(layout, Recent(stored.complete_us, clicks)) if clicks or stored.complete_us else None


def restate(layout: Layout, stored: bytes | None, stated: bytes) -> bytes:
    """The stored sequence with its clicks before complete_us of `stated` replaced, whoever put them there; packed."""
    before, after = unpack_sequence(layout, stored), unpack_sequence(layout, stated)
    fresh = [click for click in before.clicks if click[0] >= after.complete_us]
    complete_us = max(before.complete_us, after.complete_us)
    return pack_sequence(layout, Recent(complete_us, [*after.clicks, *fresh][-layout.length :]))


def pack_sequence(layout: Layout, sequence: Recent) -> bytes:
    """A sequence as the value of its view; its event time is the moment after its last click."""
    event_us = sequence.clicks[-1][0] + 1 if sequence.clicks else sequence.complete_us
    times, items = zip(*sequence.clicks, strict=True) if sequence.clicks else ((), ())
    kind = struct.Struct(f"<{len(items)}q")
    return layout.pack(Row(event_us, sequence.complete_us, (kind.pack(*items), kind.pack(*times))))


def unpack_sequence(layout: Layout, value: bytes | None) -> Recent:
    """The sequence of a value; nothing where there is none."""
    row = layout.unpack(value)
    if row is None:
        return NOTHING
    items, times = (struct.unpack(f"<{len(field) // 8}q", field) for field in row.fields)
    return Recent(row.complete_us, list(zip(times, items, strict=True)))
