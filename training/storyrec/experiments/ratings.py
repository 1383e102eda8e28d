"""Ratings of the subjective study: filled sheets in, averages and t-tests out.

Paper: Sec. IV-G, Table VIII. Suffixes: Q = rated (rater, product) pairs, R = raters.
"""

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import ttest_rel

from storyrec.errors import DataError
from storyrec.experiments.rating_sheet import QUESTIONS, SIDES, WITH, WITHOUT
from storyrec.storage import write_file, write_folder

DATA, TABLE = "ratings.json", "ratings.md"
COLUMNS = ("sheet", "rater", "product_id", "story", *QUESTIONS)
LOWEST, HIGHEST = 1, 5
PUBLISHED = {"matching": (3.12, 3.82), "interesting": (2.78, 3.38), "purchasing": (2.47, 3.04)}
"""Table VIII: without and with DUAL."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """One question, answered for both methods.

    Attributes:
        without_dual, with_dual: mean rating over all rated pairs, 1 to 5.
        p_pairs: two-sided paired t-test over the (rater, product) pairs.
        p_raters: the same over each rater's means, which does not take a rater's pairs for independent.
            Either is None where the test is not defined: fewer than two, or all differences the same.
    """

    without_dual: float
    with_dual: float
    p_pairs: float | None
    p_raters: float | None


@dataclass(frozen=True)
class Ratings:
    """What came of a study.

    Attributes:
        sheet: which sheet was filled in.
        num_raters, num_pairs: volunteers, and (rater, product) pairs, each with a rating of both stories.
        questions: the comparison by question.
    """

    sheet: str
    num_raters: int
    num_pairs: int
    questions: Mapping[str, Comparison]


@dataclass(frozen=True)
class _Row:
    """A line of a filled sheet."""

    rater: str
    product_id: int
    side: str
    values: tuple[int, ...]
    where: str


def evaluate_ratings(sheets: Sequence[Path], *, key: Path) -> Ratings:
    """Average the ratings of filled sheets and compare the two methods.

    Args:
        sheets: CSV files that the sheet saved, one or more raters each.
        key: key.json of that sheet.

    Raises:
        DataError: a file is no filled sheet of this key; names the file and the line.
    """
    name, methods, num_picked = _read_key(key)
    rated: dict[tuple[str, int], dict[str, _Row]] = {}
    for path in sheets:
        for row in _read_sheet(path, name=name, products=set(methods)):
            sides = rated.setdefault((row.rater, row.product_id), {})
            if row.side in sides:
                raise _bad(
                    f"story {row.side} of product {row.product_id} is rated twice by '{row.rater}'",
                    expected=f"once; the first is at {sides[row.side].where}",
                    where=row.where,
                )
            sides[row.side] = row
    _check_complete(rated, num_picked=num_picked)
    pairs = sorted(rated)
    _, rater_Q = np.unique([rater for rater, _ in pairs], return_inverse=True)
    questions = {}
    for place, question in enumerate(QUESTIONS):
        without_Q, with_Q = (
            np.array([rated[pair][methods[pair[1]][method]].values[place] for pair in pairs], np.float64)
            for method in (WITHOUT, WITH)
        )
        questions[question] = Comparison(
            without_dual=float(without_Q.mean()),
            with_dual=float(with_Q.mean()),
            p_pairs=paired_p(with_Q, without_Q),
            p_raters=paired_p(_means(with_Q, rater_Q), _means(without_Q, rater_Q)),
        )
    return Ratings(sheet=name, num_raters=int(rater_Q.max()) + 1, num_pairs=len(pairs), questions=questions)


def write_ratings(ratings: Ratings, out: Path) -> None:
    """Write ratings.json and ratings.md, a folder replaced whole."""
    with write_folder(out) as folder:
        write_file(folder / DATA, json.dumps(asdict(ratings), indent=1).encode())
        write_file(folder / TABLE, markdown_table(ratings).encode())


def markdown_table(ratings: Ratings) -> str:
    """Table VIII with the published figures beside ours."""
    lines = [
        f"Ratings from {LOWEST} to {HIGHEST} by {ratings.num_raters} raters, {ratings.num_pairs} rated products "
        f"in all, sheet {ratings.sheet}.",
        "",
        "| question | w/o DUAL | w. DUAL | p (pairs) | p (raters) | paper w/o DUAL | paper w. DUAL |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for question, found in ratings.questions.items():
        without_dual, with_dual = PUBLISHED[question]
        lines.append(
            f"| {question} | {found.without_dual:.2f} | {found.with_dual:.2f} | {_p(found.p_pairs)} "
            f"| {_p(found.p_raters)} | {without_dual:.2f} | {with_dual:.2f} |"
        )
    return "\n".join([*lines, "", "p: two-sided paired t-test, over (rater, product) pairs and over rater means.", ""])


def paired_p(first: Floats, second: Floats) -> float | None:
    """p of a two-sided paired t-test; None where it is not defined."""
    if len(first) < 2 or np.ptp(first - second) == 0:
        return None
    p = float(ttest_rel(first, second).pvalue)
    return p if math.isfinite(p) else None


def _read_key(path: Path) -> tuple[str, dict[int, dict[str, str]], int]:
    """The sheet's name, which side each method has by product, and how many products a rater picks."""
    try:
        key: dict[str, Any] = json.loads(path.read_bytes())
        methods = {
            int(product["product_id"]): {
                story["method"]: side for side, story in zip(SIDES, product["stories"], strict=True)
            }
            for product in key["products"]
        }
        if any(set(sides) != {WITHOUT, WITH} for sides in methods.values()):
            raise ValueError("a product has not one story of each method")
        return str(key["sheet"]), methods, int(key["num_picked"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the key cannot be read: {error}",
            expected="key.json that `storyrec experiment rating-sheet` wrote",
            where=str(path),
            remedy="name the key of the sheet that was filled in",
        ) from error


def _read_sheet(path: Path, *, name: str, products: set[int]) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a spreadsheet may have put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        raise _bad(f"the file cannot be read: {error}", expected="a CSV file in UTF-8", where=str(path)) from error
    reader = csv.DictReader(text.splitlines(), restkey="")
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise _bad(
            f"the file is empty or has no column {', '.join(missing)}",
            expected=f"the columns {','.join(COLUMNS)}",
            where=f"{path}, line 1",
        )
    num_rows = 0
    for record in reader:
        where = f"{path}, line {reader.line_num}"
        num_rows += 1
        if record["sheet"] != name:
            raise _bad(f"this is a row of sheet '{record['sheet']}'", expected=f"rows of sheet {name}", where=where)
        rater = (record["rater"] or "").strip()
        if not rater:
            raise _bad("nobody is named as the rater", expected="a name or number", where=where)
        product_id = _whole(record["product_id"])
        if product_id not in products:
            raise _bad(f"product '{record['product_id']}' is unknown", expected="a product of the key", where=where)
        if record["story"] not in SIDES:
            raise _bad(f"story '{record['story']}' is unknown", expected=" or ".join(SIDES), where=where)
        values = tuple(_whole(record[question]) for question in QUESTIONS)
        for question, value in zip(QUESTIONS, values, strict=True):
            if not LOWEST <= value <= HIGHEST:
                raise _bad(
                    f"the rating '{record[question]}' of '{question}'",
                    expected=f"a whole number from {LOWEST} to {HIGHEST}",
                    where=where,
                )
        yield _Row(rater, product_id, record["story"], values, where)
    if not num_rows:
        raise _bad("the file holds no ratings", expected="two rows for every picked product", where=f"{path}, line 2")


def _check_complete(rated: Mapping[tuple[str, int], Mapping[str, _Row]], *, num_picked: int) -> None:
    picked: dict[str, list[_Row]] = {}
    for (rater, product_id), sides in rated.items():
        row = next(iter(sides.values()))
        if len(sides) < len(SIDES):
            raise _bad(
                f"'{rater}' rated only story {row.side} of product {product_id}", expected="both", where=row.where
            )
        picked.setdefault(rater, []).append(row)
    for rater, rows in picked.items():
        if len(rows) != num_picked:
            raise _bad(f"'{rater}' rated {len(rows)} products", expected=f"{num_picked}", where=rows[-1].where)
    if not picked:
        raise _bad("there are no filled sheets", expected="at least one", where="the arguments")


def _whole(text: str | None) -> int:
    """The whole number that a field holds; -1 for anything else."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else -1


def _means(values_Q: Floats, rater_Q: npt.NDArray[np.int64]) -> Floats:
    """Each rater's mean, [R]."""
    return np.bincount(rater_Q, weights=values_Q) / np.bincount(rater_Q)


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.0001" if value < 1e-4 else f"{value:.4f}"


def _bad(found: str, *, expected: str, where: str) -> DataError:
    return DataError(
        found, expected=expected, where=where, remedy="correct the file or leave it out; nothing was written"
    )
