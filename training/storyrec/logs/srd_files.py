"""The published files of SRD-1 and SRD-2, line by line: fields, numbers, titles.

Tab-separated; a list's values are comma-separated in their field. A pre-training line has 16 columns:
two pairs of a story and a product it mounts. A training or test line has 21: an impression with the
user's last clicks in both domains.
"""

import gzip
import math
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import IO, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.errors import DataError
from storyrec.schema import COVER_WIDTH

Kind = Literal["pretrain", "train", "test"]
Floats = npt.NDArray[np.float32]

TITLE_LENGTH = 32
SEQUENCE_LENGTH = 20
PAIR_COLUMNS = (
    "content_id",
    "product_id",
    "content_title_input_ids",
    "content_title_input_len",
    "product_title_input_ids",
    "product_title_input_len",
    "content_image_feat",
    "product_image_feat",
)
COLUMNS: dict[Kind, tuple[str, ...]] = {"pretrain": (*PAIR_COLUMNS, *(f"neg_{name}" for name in PAIR_COLUMNS))}
COLUMNS["train"] = COLUMNS["test"] = (
    "user_id",
    "content_id",
    "content_click",
    "content_seq",
    "product_seq",
    "content_time_seq",
    "product_time_seq",
    "content_seq_len",
    "product_seq_len",
    "content_title_input_ids",
    "content_title_input_len",
    "content_title_seq_input_ids",
    "content_title_seq_input_len",
    "product_title_seq_input_ids",
    "product_title_seq_input_len",
    "content_image_feat",
    "content_image_seq_feat",
    "product_image_seq_feat",
    "content_seq_time_ids",
    "product_seq_time_ids",
    "posb",
)
DAYS = {
    "1": {"pretrain": date(2019, 11, 27), "train": date(2019, 11, 27), "test": date(2019, 11, 28)},
    "2": {"pretrain": date(2019, 12, 30), "train": date(2019, 12, 30), "test": date(2019, 12, 31)},
}
"""Paper: Sec. II-B. Pairs carry no day; they get that of the training file."""

CONTINUATION = "\u02cc"
"""Stands for `##`, whose signs would be words of their own; a letter that no word piece has."""
UNKNOWN_WORD = "\ufffd"
"""Stands for `[UNK]`, and for a title without any word."""

_NAME = re.compile(r"srd-?([12])[-_](pretrain|train|test)\w*\.txt(\.gz)?", re.IGNORECASE)
_LARGEST_ID = 2**63 - 1


@dataclass(frozen=True)
class SourceFile:
    """A file of the published dataset.

    Attributes:
        edition: "1" or "2".
        day: of the file's impressions, by Beijing's clock.
    """

    path: Path
    kind: Kind
    edition: str

    @property
    def day(self) -> date:
        return DAYS[self.edition][self.kind]


@dataclass(frozen=True)
class Line:
    """One line's fields; what is wrong with them is told by file and line."""

    path: Path
    number: int
    columns: tuple[str, ...]
    fields: Sequence[bytes]

    def number_at(self, column: int, *, low: int = 0, high: int = _LARGEST_ID) -> int:
        """A whole number between two bounds, both included."""
        try:
            value = int(self.fields[column])
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise self.problem(column, f"is '{_shown(self.fields[column])}'", f"a whole number from {low} to {high}")
        return value

    def numbers_at(self, column: int, *, count: int, low: int = 0, high: int = _LARGEST_ID) -> list[int]:
        """The first `count` whole numbers of a list; what pads it is not looked at."""
        if not count:
            return []
        parts = self.fields[column].split(b",", count)[:count]
        try:
            values = [int(part) for part in parts]
        except ValueError:
            values = [low - 1]
        if len(values) < count or min(values) < low or max(values) > high:
            found = f"has '{_shown(self.fields[column])}'"
            raise self.problem(column, found, f"{count} whole numbers or more, from {low} to {high}")
        return values

    def split(self, column: int, *, width: int) -> list[bytes]:
        """All values of a list of so many, as they are written."""
        parts = self.fields[column].split(b",")
        if len(parts) != width:
            raise self.problem(column, f"has {len(parts)} values", f"{width} values")
        return parts

    def title(self, parts: Sequence[bytes], *, length: int, column: int, words: Sequence[str]) -> str:
        """A title out of its token ids, words separated by spaces."""
        try:
            tokens = [int(part) for part in parts[:length]]
            if min(tokens, default=0) < 0:
                raise IndexError
            return " ".join(words[token] for token in tokens if token) or UNKNOWN_WORD
        except ValueError:
            raise self.problem(column, "has a value that is no whole number", "token ids") from None
        except IndexError:
            outside = next(token for token in tokens if not 0 <= token < len(words))
            raise self.problem(
                column,
                f"has the token {outside}",
                f"tokens of the vocabulary, from 0 to {len(words) - 1}",
                remedy="name the vocabulary that belongs to these files with --vocabulary",
            ) from None

    def cover(self, parts: Sequence[bytes], *, column: int) -> Floats | None:
        """A cover, [512] float32; None where every number is zero."""
        try:
            cover = np.array([float(part) for part in parts], np.float32)
        except ValueError:
            raise self.problem(column, "has a value that is no number", "numbers") from None
        if len(cover) != COVER_WIDTH:
            raise self.problem(column, f"has {len(cover)} values", f"{COVER_WIDTH} values")
        if not np.isfinite(cover).all():
            value = next(part for part in parts if not math.isfinite(np.float32(part)))
            raise self.problem(column, f"has the value '{_shown(value)}'", "finite numbers")
        return cover if cover.any() else None

    def problem(self, column: int, found: str, expected: str, *, remedy: str = "") -> DataError:
        """What is wrong in a column of this line."""
        return DataError(
            f"column {column + 1} ({self.columns[column]}) {found}",
            expected=expected,
            where=f"{self.path}, line {self.number}",
            remedy=remedy or "mend the line, or get the file again",
        )


def find_files(folder: Path) -> list[SourceFile]:
    """The published files of a folder: pre-training first, then training, then test.

    Raises:
        DataError: there is none, both editions are there, a file is there twice, or one of them is no file.
    """
    expected = "SRD-1_train_data.txt, SRD-1_test_data.txt, SRD-1_pretrain_data.txt or SRD-2's, each plain or .gz"
    if not folder.is_dir():
        raise DataError(
            "the place of the published files is no folder",
            expected=f"a folder with {expected}",
            where=str(folder),
            remedy="name the folder that holds the files",
        )
    files = []
    for path in sorted(folder.iterdir()):
        if match := _NAME.fullmatch(path.name):
            if not path.is_file():
                raise DataError(
                    f"{path.name} is no file",
                    expected=expected,
                    where=str(path),
                    remedy="put the file there, or remove what has its name",
                )
            kind: Kind = match[2].lower()  # type: ignore[assignment]
            files.append(SourceFile(path, kind, match[1]))
    editions = {file.edition for file in files}
    stems = [file.path.name.lower().removesuffix(".gz") for file in files]
    if len(editions) == 1 and len(set(stems)) == len(stems):
        return sorted(files, key=lambda file: (list(COLUMNS).index(file.kind), file.path.name))
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:10]) or "nothing"
    found = "there is no published file" if not files else "there are files that do not belong together"
    raise DataError(
        found,
        expected=f"{expected}; of one edition, none of them twice",
        where=f"{folder}, which has {there}",
        remedy="put the files of one edition there, under their published names",
    )


def read_lines(file: SourceFile) -> Iterator[tuple[Line, int]]:
    """The lines of a file, and how many bytes of the file are read so far; blank lines are passed over.

    Raises:
        DataError: it cannot be read or unpacked, is not UTF-8, has no line, or a line has another number of columns.
    """
    columns = COLUMNS[file.kind]
    packed = file.path.suffix.lower() == ".gz"
    number = 0
    is_empty = True
    try:
        with file.path.open("rb") as raw, _unpack(raw, packed=packed) as unpacked:
            for number, text in enumerate(unpacked, start=1):
                if not text.strip():
                    continue
                is_empty = False
                fields = text.rstrip(b"\r\n").split(b"\t")
                line = Line(file.path, number, columns, fields)
                if not text.isascii():
                    _check_encoding(line, text)
                if len(fields) != len(columns):
                    raise DataError(
                        f"the line has {len(fields)} columns",
                        expected=f"{len(columns)} columns, separated by tabs",
                        where=f"{file.path}, line {number}",
                        remedy="get the file again, or give it the name that fits its columns",
                    )
                yield line, raw.tell()
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(
            f"the file cannot be {'unpacked' if packed else 'read'}: {error}",
            expected="a whole file",
            where=f"{file.path}, after line {number}",
            remedy="get the file again",
        ) from error
    if is_empty:
        raise DataError(
            "the file is empty",
            expected=f"lines of {len(columns)} columns",
            where=str(file.path),
            remedy="get the file again, or remove it",
        )


def read_words(path: Path) -> list[str]:
    """What each token stands for in a title, from a BERT vocabulary with one word piece a line.

    A piece that goes on with a word (`##m`) begins with `CONTINUATION`, so that features.titles keeps
    it one word; it loses the mark where it is a sign or a Chinese character, which is a word anyway.

    Raises:
        DataError: the file is missing, not UTF-8 or no such vocabulary.
    """
    try:
        pieces = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"the vocabulary cannot be read: {reason}",
            expected="a file with one word piece a line; the line's place is the token",
            where=str(path),
            remedy="put vocab.txt beside the data, or name the file with --vocabulary",
        ) from error
    if pieces[0] != "[PAD]" or "[UNK]" not in pieces:
        raise DataError(
            "this is no vocabulary of word pieces",
            expected="[PAD] on the first line, [UNK] on another",
            where=str(path),
            remedy="name the vocabulary that belongs to the data with --vocabulary",
        )
    bodies = pa.array([piece.removeprefix("##") for piece in pieces], pa.string())
    normal = pc.utf8_normalize(bodies, "NFKC")
    stands_alone = pc.match_substring_regex(normal, r"[\p{Han}\p{P}\p{S}]").to_pylist()
    words = [
        CONTINUATION + body if piece.startswith("##") and not alone else body
        for piece, body, alone in zip(pieces, bodies.to_pylist(), stands_alone, strict=True)
    ]
    words[pieces.index("[UNK]")] = UNKNOWN_WORD
    return words


def _unpack(raw: IO[bytes], *, packed: bool) -> AbstractContextManager[Iterable[bytes]]:
    return gzip.GzipFile(fileobj=raw) if packed else nullcontext(raw)


def _check_encoding(line: Line, text: bytes) -> None:
    if line.number == 1 and text.startswith(BOM_UTF8):
        raise DataError(
            "the file begins with a byte order mark, which would belong to the first value",
            expected="UTF-8 text without one",
            where=f"{line.path}, line 1",
            remedy="get the file again; do not convert it",
        )
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"the line is not UTF-8: {error.reason} at byte {error.start + 1}",
            expected="UTF-8 text",
            where=f"{line.path}, line {line.number}",
            remedy="get the file again; do not convert it",
        ) from error


def _shown(field: bytes) -> str:
    text = field.decode("utf-8", errors="replace")
    return text if len(text) <= 40 else f"{text[:40]}..."
