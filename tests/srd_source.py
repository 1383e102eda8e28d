"""A tiny published dataset: users with a known course of clicks, written as 21 and 16 columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np

PIECES = ("[PAD]", "…", "[unused]", "[UNK]", "h", "##m", "女", "装", "tea", "##pot", "##女", "★", "##★", "2019")
HOUR = 3_600
BEIJING = 8 * HOUR


def second(day: date, hour: float) -> int:
    """Epoch seconds of an hour of Beijing's day."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() + hour * HOUR) - BEIJING


def title(item: int) -> list[int]:
    """Token ids of an item's title, not padded."""
    return [4 + item % 4, 6 + item % 5, 13, *([8, 9] if item % 2 else [])]


def cover(item: int) -> np.ndarray:
    """An item's cover as the file has it: five decimals."""
    values = np.random.default_rng(item).normal(size=512)
    return np.round(values / np.linalg.norm(values), 5)


def numbers(values: Sequence[object]) -> str:
    return ",".join(map(str, values))


def padded(values: Sequence[int], width: int) -> list[int]:
    return [*values, *[0] * (width - len(values))]


def pair(story: int, product: int) -> list[str]:
    titles = [part for item in (story, product) for part in (numbers(padded(title(item), 32)), str(len(title(item))))]
    return [str(story), str(product), *titles, numbers(cover(story)), numbers(cover(product))]


@dataclass
class Shown:
    """One row to be: what was shown when, after which clicks (item, second), oldest first."""

    user: str
    story: int
    clicked: bool
    at: int
    stories: list[tuple[int, int]] = field(default_factory=list)
    products: list[tuple[int, int]] = field(default_factory=list)

    def columns(self, *, dated: bool = True) -> list[str]:
        both = [self.stories[-20:], self.products[-20:]]
        blocks = [[min(169, (self.at - at) // HOUR + 1) for _, at in clicks] for clicks in both]
        times = [[at for _, at in clicks] if dated else hours for clicks, hours in zip(both, blocks, strict=True)]
        blank = [0.0] * 512
        titles: list[str] = []
        for clicks in both:
            rows = [padded(title(item), 32) for item, _ in clicks] + [[0] * 32] * (20 - len(clicks))
            titles += [numbers([token for row in rows for token in row])]
            titles += [numbers(padded([len(title(item)) for item, _ in clicks], 20))]
        covers = [
            numbers([value for row in [cover(i) for i, _ in c] + [blank] * (20 - len(c)) for value in row])
            for c in both
        ]
        return [
            self.user,
            str(self.story),
            str(int(self.clicked)),
            *(numbers([item for item, _ in clicks]) for clicks in both),
            *map(numbers, times),
            *(str(len(clicks)) for clicks in both),
            numbers(padded(title(self.story), 32)),
            str(len(title(self.story))),
            *titles,
            numbers(cover(self.story)),
            *covers,
            *(numbers(padded(hours, 20)) for hours in blocks),
            numbers(range(20)),
        ]


def course(*, num_users: int, seed: int, days: tuple[date, date]) -> tuple[list[Shown], list[Shown]]:
    """Rows of a training and a test day; each user's clicks are exact, so their sequences are too."""
    generator = np.random.default_rng(seed)
    files: tuple[list[Shown], list[Shown]] = ([], [])
    for user in range(num_users):
        stories = _history(generator, days[0], size=3 + user % 4, low=100)
        products = _history(generator, days[0], size=22 + user % 3, low=900)
        for rows, day in zip(files, days, strict=True):
            for hour in np.sort(generator.choice(np.arange(2, 23, 0.3), size=4, replace=False)):
                at = second(day, hour)
                products.append((int(generator.integers(900, 960)), at - 120))
                story, clicked = int(generator.integers(100, 140)), bool(generator.random() < 0.5)
                rows.append(Shown(f"u{user}", story, clicked, at, list(stories), list(products)))
                if clicked:
                    stories.append((story, at))
    return files


def _history(generator: np.random.Generator, day: date, *, size: int, low: int) -> list[tuple[int, int]]:
    seconds = np.sort(generator.choice(np.arange(-100 * HOUR, -HOUR), size=size, replace=False))
    return [(int(generator.integers(low, low + 40)), second(day, 0) + int(back)) for back in seconds]


def write(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def write_vocabulary(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(PIECES) + "\n", encoding="utf-8")
    return path
