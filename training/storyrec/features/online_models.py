"""Which models' items are online, and which of them answers a reader who names none.

One value in the online store says it, and changes at once: written last when a model's rows are online,
and first when they go. So a model that it names is there as a whole.
"""

from typing import NamedTuple

from storyrec.errors import ModelError
from storyrec.features.packed import CURRENT, TEXT, Layout, Row
from storyrec.features.refusals import Refusal

LAYOUT = Layout("online_models", "", (("current", TEXT), ("versions", TEXT)), 0)
KEY = 1


class ModelNotOnline(ModelError, Refusal):
    """A reader named a model whose rows are not online."""

    status = 404


class OnlineModels(NamedTuple):
    """The models whose items are online.

    Attributes:
        current: the version that answers where none is named; empty before the first one.
        versions: of all of them, in the order in which they came.
    """

    current: str
    versions: tuple[str, ...]

    def version_of(self, model: str) -> str:
        """The version that a reader means.

        Raises:
            ModelNotOnline: there is none, or not this one.
        """
        version = self.current if model == CURRENT else model
        if version not in self.versions:
            raise ModelNotOnline(
                f"model {model} is not online" if self.versions else "no model is online",
                expected=f"one of {', '.join(self.versions)}, or {CURRENT}" if self.versions else "a published model",
                where="the online store",
                remedy=f"ask for {CURRENT}; a model goes when it is retired, and comes when it is published",
            )
        return version


def unpack_models(value: bytes | None) -> OnlineModels:
    """What a stored value says; nothing is online where there is none."""
    row = LAYOUT.unpack(value)
    current, versions = (str(LAYOUT.value(row, name)) for name in LAYOUT.names) if row else ("", "")
    return OnlineModels(current, tuple(versions.split()))


def pack_models(models: OnlineModels, *, published_us: int) -> bytes:
    """The stored value; `published_us` is since when the current one is, epoch microseconds."""
    return LAYOUT.pack(Row(published_us, published_us, (models.current.encode(), " ".join(models.versions).encode())))


def publish(layout: Layout, stored: bytes | None, arriving: bytes) -> bytes:
    """The models of both values; the later one's is current, of equal ones the arriving one's."""
    before, after = unpack_models(stored), unpack_models(arriving)
    times, arriving_times = layout.times(stored) or (0, 0), layout.times(arriving) or (0, 0)
    versions = dict.fromkeys([*before.versions, *after.versions])
    newest, published_us = (before, times[0]) if times > arriving_times else (after, arriving_times[0])
    return pack_models(OnlineModels(newest.current, tuple(versions)), published_us=published_us)


def retire(layout: Layout, stored: bytes | None, arriving: bytes) -> bytes:
    """The stored models without those of the arriving value; the current one stays."""
    before, gone = unpack_models(stored), unpack_models(arriving).versions
    versions = tuple(version for version in before.versions if version not in gone or version == before.current)
    return pack_models(OnlineModels(before.current, versions), published_us=(layout.times(stored) or (0, 0))[0])
