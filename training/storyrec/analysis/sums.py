"""Figures of some users that add up with those of others."""

from dataclasses import dataclass, fields
from typing import Any, Self


@dataclass(frozen=True)
class Sums:
    """A dataclass of counts, arrays of counts and marks; two of a kind add up field by field."""

    def __add__(self, other: Self) -> Self:
        added: dict[str, Any] = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return type(self)(**added)
