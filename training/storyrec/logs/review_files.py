"""Files of Amazon's review format: `reviews_<category>.json.gz` (also `_5`) and `meta_<category>.json.gz`.

Every line is an object, either strict JSON or, in older files, a Python literal. A broken line is
counted; more than a small share of them is an error.
"""

import ast
import gzip
import html
import json
import re
import zlib
from array import array
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from storyrec.errors import DataError

MAX_BROKEN_SHARE = 0.01
DAY_SECONDS = 86_400
LAST_SECOND = 4_102_444_800  # the year 2100
_ASIN = re.compile(rb"""["']asin["']\s*:\s*["']([^"']+)["']""")


@dataclass(frozen=True)
class Reviews:
    """Who reviewed what when, one row per user, item and day, ordered by day, user and item.

    Attributes:
        users, items: the source's ids, sorted; rows of the arrays point into them.
        user_C, item_C: positions in `users` and `items`, [C] int64.
        day_C: days since 1970 (UTC), [C] int64.
        num_lines: lines of the file.
        num_broken: lines that are no review.
        num_repeated: further reviews of the same user, item and day.
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user_C: npt.NDArray[np.int64]
    item_C: npt.NDArray[np.int64]
    day_C: npt.NDArray[np.int64]
    num_lines: int
    num_broken: int
    num_repeated: int


@dataclass(frozen=True)
class Description:
    """What the meta file says of an item; a title that is not there is made of brand and category."""

    title: str
    category: str = ""
    image: str | None = None
    related: tuple[str, ...] = ()


@dataclass(frozen=True)
class Descriptions:
    """Descriptions by the source's item id, and how the file was."""

    items: dict[str, Description]
    num_lines: int
    num_broken: int


def find_file(folder: Path, *, kind: str, category: str) -> Path:
    """The file of a kind ("reviews" or "meta") and category.

    Raises:
        DataError: there is none; says what is there.
    """
    if not folder.is_dir():
        raise DataError(
            "the place of the review files is no folder",
            expected="a folder with reviews_<category>.json.gz and meta_<category>.json.gz",
            where=str(folder),
            remedy="name the folder that holds the downloaded files",
        )
    names = [f"{kind}_{category}.json.gz"] + ([f"{kind}_{category}_5.json.gz"] if kind == "reviews" else [])
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = sorted(path.name for path in folder.glob("*.json.gz"))
    raise DataError(
        f"there is no {kind} file of the category '{category}'",
        expected=" or ".join(names),
        where=f"{folder}, which has {', '.join(there) if there else 'no .json.gz file'}",
        remedy="put the file there, or correct the category's name",
    )


def read_reviews(path: Path) -> Reviews:
    """Read a reviews file.

    Raises:
        DataError: the file cannot be unpacked, has too many broken lines, or no review.
    """
    lines = _Lines(path)
    users: dict[str, int] = {}
    items: dict[str, int] = {}
    rows = array("q")
    for review in lines.parse(_review):
        user, item, second = review
        rows.extend((users.setdefault(user, len(users)), items.setdefault(item, len(items)), second // DAY_SECONDS))
    lines.check(what="review", num_good=len(rows) // 3)
    found = np.frombuffer(rows, np.int64).reshape(-1, 3)
    user_rank, item_rank = _ranks(users), _ranks(items)
    unique = np.unique(np.stack([found[:, 2], user_rank[found[:, 0]], item_rank[found[:, 1]]], axis=1), axis=0)
    return Reviews(
        users=tuple(sorted(users)),
        items=tuple(sorted(items)),
        user_C=unique[:, 1],
        item_C=unique[:, 2],
        day_C=unique[:, 0],
        num_lines=lines.num_lines,
        num_broken=lines.num_broken,
        num_repeated=len(found) - len(unique),
    )


def read_descriptions(path: Path, *, wanted: Collection[str]) -> Descriptions:
    """Read the descriptions of the wanted items from a meta file; the first one of an item counts.

    Raises:
        DataError: the file cannot be unpacked, has too many broken lines, or describes no item.
    """
    lines = _Lines(path)
    items: dict[str, Description] = {}

    def unwanted(line: bytes) -> bool:
        match = _ASIN.search(line)  # an official file is large, and parsing a Python literal slow
        return match is not None and match.group(1).decode(errors="replace") not in wanted

    num_good = 0
    for asin, description in lines.parse(_description, skip=unwanted):
        num_good += 1
        if asin in wanted:
            items.setdefault(asin, description)
    lines.check(what="description", num_good=num_good + lines.num_skipped)
    return Descriptions(items, lines.num_lines, lines.num_broken)


Parsed = TypeVar("Parsed")


@dataclass
class _Lines:
    """The lines of a packed file, and how many of them were broken."""

    path: Path
    num_lines: int = 0
    num_skipped: int = 0
    num_broken: int = 0
    _first_broken: str = field(default="")

    def parse(
        self, parse: Callable[[dict[str, Any]], Parsed], *, skip: Callable[[bytes], bool] | None = None
    ) -> Iterator[Parsed]:
        try:
            with gzip.open(self.path, "rb") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    self.num_lines += 1
                    if skip is not None and skip(line):
                        self.num_skipped += 1
                        continue
                    try:
                        parsed = parse(_object(line))
                    except (ValueError, KeyError, TypeError, SyntaxError, MemoryError, RecursionError) as error:
                        self.num_broken += 1
                        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                        self._first_broken = self._first_broken or f"line {number}: {reason}"
                        continue
                    yield parsed
        except (EOFError, zlib.error, OSError) as error:
            raise DataError(
                f"the file cannot be unpacked: {error}",
                expected="a whole gzip file",
                where=f"{self.path}, after {self.num_lines} lines",
                remedy="get the file again",
            ) from error

    def check(self, *, what: str, num_good: int) -> None:
        """Raise where the file has too many broken lines or nothing else."""
        few = max(1, int(MAX_BROKEN_SHARE * self.num_lines))
        if num_good and self.num_broken <= few:
            return
        found = f"{self.num_broken} of {self.num_lines} lines are no {what}"
        raise DataError(
            found if self.num_broken else f"the file has no {what}",
            expected="one JSON object or Python literal a line; one broken line in a hundred is passed over",
            where=f"{self.path}" + (f", first {self._first_broken}" if self._first_broken else ""),
            remedy="get the file again, or mend the named line",
        )


def _object(line: bytes) -> dict[str, Any]:
    text = line.decode("utf-8")
    try:
        parsed = json.loads(text)
    except ValueError:
        try:
            parsed = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise ValueError("neither JSON nor a Python literal") from error
    if not isinstance(parsed, dict):
        raise TypeError("no object")
    return parsed


def _review(line: dict[str, Any]) -> tuple[str, str, int]:
    user, item, second = line["reviewerID"], line["asin"], line["unixReviewTime"]
    if not (isinstance(user, str) and user and isinstance(item, str) and item):
        raise ValueError("reviewerID and asin are to be words")
    if not isinstance(second, int) or isinstance(second, bool) or not 0 < second < LAST_SECOND:
        raise ValueError("unixReviewTime is to be a whole number of seconds since 1970")
    return user, item, second


def _description(line: dict[str, Any]) -> tuple[str, Description]:
    asin = line["asin"]
    if not (isinstance(asin, str) and asin):
        raise ValueError("asin is to be a word")
    paths = line.get("categories") or []
    path = [_text(name) for name in paths[0]] if paths and isinstance(paths[0], list) else []
    leaf = path[-1] if path else ""
    image = line.get("imUrl")
    related = line.get("related") or {}
    names = [name for kind in ("bought_together", "also_bought") for name in related.get(kind) or []]
    return asin, Description(
        title=_text(line.get("title")) or f"{_text(line.get('brand'))} {leaf}".strip(),
        category=leaf,
        image=image if isinstance(image, str) and image else None,
        related=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
    )


def _text(value: object) -> str:
    return " ".join(html.unescape(value).split()) if isinstance(value, str) else ""


def _ranks(names: dict[str, int]) -> npt.NDArray[np.int64]:
    """For each name, in the order of its appearance, its place among the sorted names."""
    ranks = np.empty(len(names), np.int64)
    for rank, name in enumerate(sorted(names)):
        ranks[names[name]] = rank
    return ranks
