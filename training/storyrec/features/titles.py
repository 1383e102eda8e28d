"""Titles as word numbers: NFKC, lower case; signs are words, and Chinese is cut into word pieces.

Paper: Sec. III-A takes the word pieces of a Chinese BERT; here the vocabulary is learned from the
titles themselves, so any language works. Words are split as BERT's pre-tokenizer does, but many
titles at a time; runs of Han characters, which have no spaces, are cut into pieces of one to three
characters that stand side by side in many titles.

Suffixes: N = titles, W = words, U = distinct units (a word, a sign or a run of Han characters),
R = those of them that are runs.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.errors import ModelError
from storyrec.features.pieces import LONGEST_PIECE, Pieces, code_points
from storyrec.storage import write_file

TOKENIZER = "tokenizer.json"
PADDING, UNKNOWN = 0, 1
_RESERVED = ("[PAD]", "[UNK]")  # brackets are words of their own, so no title can spell these
NUM_RESERVED = len(_RESERVED)

TITLES_AT_A_TIME = 100_000  # bounds the memory
NUM_THREADS = 2  # Arrow and numpy work side by side; each thread has such a part in memory
SAMPLE = 200_000  # titles with Han characters that pieces are learned from

_SPACES = r"[\t\n\v\f\r]"
_INVISIBLE = r"[\p{Cc}\p{Cf}]"
_RUNS = r"\p{Han}+|[\p{P}\p{S}]"

T = TypeVar("T")
Titles: TypeAlias = Sequence[str] | pa.Array | pa.ChunkedArray


@dataclass(frozen=True)
class UnknownWords:
    """What a vocabulary lacks of some titles.

    Attributes:
        num_titles: titles looked at.
        num_words: their words.
        num_unknown: those of them that the vocabulary lacks.
    """

    num_titles: int
    num_words: int
    num_unknown: int


@dataclass(frozen=True)
class Vocabulary:
    """The words of titles; a word's number is its place: 0 = padding, 1 = unknown.

    Attributes:
        words: every word, the two reserved ones first, then by falling count.
    """

    words: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many numbers there are, padding and unknown included."""
        return len(self.words)

    def encode(self, titles: Titles, *, max_words: int) -> npt.NDArray[np.int32]:
        """Titles as word numbers.

        Args:
            titles: N raw titles; an empty one has no words.
            max_words: where longer titles are cut, > 0.

        Returns:
            tokens_NW: [N, max_words] int32, padded with 0 on the right; 1 = unknown.
        """

        def encode_batch(batch: pa.StringArray) -> npt.NDArray[np.int32]:
            numbers, starts = self._number(batch)
            positions_NW = starts[:-1, None] + np.arange(max_words)
            mask_NW = positions_NW < starts[1:, None]
            tokens_NW = np.full(mask_NW.shape, PADDING, np.int32)
            tokens_NW[mask_NW] = numbers[positions_NW[mask_NW]]
            return tokens_NW

        tokens_NW = np.empty((len(titles), max_words), np.int32)
        start = 0
        for part_NW in _each_batch(titles, encode_batch):
            tokens_NW[start : start + len(part_NW)] = part_NW
            start += len(part_NW)
        return tokens_NW

    def count_unknown(self, titles: Titles, *, max_words: int) -> UnknownWords:
        """How many words of titles, cut as `encode` cuts them, are unknown."""
        tokens_NW = self.encode(titles, max_words=max_words)
        return UnknownWords(len(titles), int((tokens_NW != PADDING).sum()), int((tokens_NW == UNKNOWN).sum()))

    def save(self, path: Path) -> None:
        """Write tokenizer.json, in the format of the `tokenizers` library."""
        from storyrec.features.tokenizer import make_tokenizer

        pieces = [piece for piece in self._pieces.words if len(piece) > 1]
        write_file(path, make_tokenizer(self.words, pieces=pieces, unknown=_RESERVED[UNKNOWN]).to_str().encode())

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read tokenizer.json.

        Raises:
            ModelError: the file is missing or holds no vocabulary of titles.
        """
        try:
            numbers = json.loads(path.read_bytes())["model"]["vocab"]
            words = tuple(sorted(numbers, key=numbers.__getitem__))
            if words[:NUM_RESERVED] != _RESERVED or [numbers[word] for word in words] != list(range(len(words))):
                raise ValueError("the words are not numbered from 0 on, padding and unknown first")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"the vocabulary cannot be read: {error}",
                expected=f"{TOKENIZER}, which older versions did not write",
                where=str(path),
                remedy="build the dataset again; a bundle of an older version goes on serving, but models are neither "
                "started from it nor judged against it: name an empty registry (locations.registry) for the next one",
            ) from error
        return cls(words)

    def _number(self, titles: pa.StringArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """The numbers of all words, and where each title's start in them, with the end as last entry."""
        units, starts = _split(titles)
        units = units.dictionary_encode()
        is_run_U = _are_runs(units.dictionary)
        cut = self._pieces.cut(units.dictionary.filter(pa.array(is_run_U)).to_pylist())
        lengths_U = np.ones(len(is_run_U), np.int64)
        lengths_U[is_run_U] = cut.lengths_R
        is_of_run = np.repeat(is_run_U, lengths_U)
        numbers = np.empty(len(is_of_run), np.int32)
        words = units.dictionary.filter(pa.array(~is_run_U))
        numbers[~is_of_run] = pc.fill_null(pc.index_in(words, value_set=pa.array(self.words)), UNKNOWN)
        numbers[is_of_run] = self._piece_numbers[cut.places_T]

        codes = np.asarray(units.indices, np.int64)
        lengths = lengths_U[codes]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        within = np.arange(ends[-1]) - np.repeat(ends[:-1], lengths)
        firsts_U = np.cumsum(lengths_U) - lengths_U
        return numbers[np.repeat(firsts_U[codes], lengths) + within], ends[starts]

    @cached_property
    def _pieces(self) -> Pieces:
        words = pa.array(self.words, pa.string())
        return Pieces(words.filter(pa.array(_are_runs(words))).to_pylist())

    @cached_property
    def _piece_numbers(self) -> npt.NDArray[np.int32]:
        """The number of each piece; the last entry, which -1 means, is the unknown word's."""
        (numbers,) = np.nonzero(_are_runs(pa.array(self.words, pa.string())))
        return np.append(numbers, UNKNOWN).astype(np.int32)


def train_vocabulary(titles: Titles, *, size: int, min_count: int) -> Vocabulary:
    """The most frequent words of titles, equal counts in alphabetical order: always the same.

    Words, single Han characters and pieces of several all compete by how often they are there; characters
    also count inside of pieces, so that a run without a known piece falls into known characters.

    Args:
        titles: raw titles, in any order.
        size: the most numbers, padding and unknown included, >= 2.
        min_count: words seen less often are left out, >= 1.
    """
    from storyrec.features.tokenizer import learn_pieces

    runs = _sample_runs(titles)
    pieces = Pieces(learn_pieces(runs, longest=LONGEST_PIECE, size=size, min_count=min_count) if runs else [])
    counts: Counter[str] = Counter()
    pieces_T = np.zeros(len(pieces.words), np.int64)
    characters = np.zeros(sys.maxunicode + 1, np.int64)
    for counted in _each_batch(titles, lambda batch: _count(batch, pieces)):
        counts.update(counted.words)
        pieces_T += counted.pieces_T
        characters[: len(counted.characters)] += counted.characters
    counts.update(dict(zip(pieces.words, pieces_T.tolist(), strict=True)))
    counts.update({chr(code): int(characters[code]) for code in np.nonzero(characters)[0]})
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    return Vocabulary((*_RESERVED, *(word for _, word in ranked[: size - NUM_RESERVED])))


def split_titles(titles: Sequence[str] | pa.StringArray) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """All words in one array, every Han character a word as in BERT, and where each title's words start in it.

    The end is the last entry. This is what Eq. 1 compares and the paper's title lengths count; models read
    `Vocabulary.encode`.
    """
    units, starts = _split(_strings(titles))
    if not len(units):
        return units, starts
    _, offsets, texts = units.buffers()
    bounds_U = np.frombuffer(offsets, np.int32)[units.offset : units.offset + len(units) + 1]
    first, last = bounds_U[0], bounds_U[-1]
    in_run = np.repeat(_are_runs(units), np.diff(bounds_U))
    # the bytes of a character but its first one begin with the bits 10
    begins = in_run & (np.frombuffer(texts, np.uint8)[first:last] & 0xC0 != 0x80)
    begins[bounds_U[:-1] - first] = True
    bounds = np.append(first + np.nonzero(begins)[0], last).astype(np.int32)
    words = pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), texts)
    return words, np.searchsorted(bounds, bounds_U)[starts]


def _split(titles: pa.StringArray) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """Units, and where each title's start."""
    texts = pc.utf8_lower(pc.utf8_normalize(titles, "NFKC"))
    texts = pc.replace_substring_regex(texts, _SPACES, " ")
    texts = pc.replace_substring_regex(texts, _INVISIBLE, "")
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _RUNS, r" \0 "))
    # splitting nothing would give one empty word
    lists = pc.if_else(pc.equal(texts, ""), pa.scalar([], pa.list_(pa.string())), pc.utf8_split_whitespace(texts))
    lengths = np.asarray(pc.list_value_length(lists).to_numpy(zero_copy_only=False), np.int64)
    return lists.flatten(), np.concatenate([[0], np.cumsum(lengths)])


def _are_runs(units: pa.StringArray) -> npt.NDArray[np.bool_]:
    return np.asarray(pc.match_substring_regex(units, r"^\p{Han}").to_numpy(zero_copy_only=False), bool)


@dataclass(frozen=True)
class _Counts:
    """How often each word is there, each piece, [T], and each Han character, by code point."""

    words: dict[str, int]
    pieces_T: npt.NDArray[np.int64]
    characters: npt.NDArray[np.int64]


def _count(titles: pa.StringArray, pieces: Pieces) -> _Counts:
    counted = pc.value_counts(_split(titles)[0])
    units, counts_U = counted.field("values"), np.asarray(counted.field("counts"))
    is_run_U = _are_runs(units)
    words = dict(zip(units.filter(pa.array(~is_run_U)).to_pylist(), counts_U[~is_run_U].tolist(), strict=True))
    runs, counts_R = units.filter(pa.array(is_run_U)).to_pylist(), counts_U[is_run_U]
    cut = pieces.cut(runs)
    pieces_T = np.bincount(cut.places_T + 1, np.repeat(counts_R, cut.lengths_R), len(pieces.words) + 1)[1:]
    lengths_R = np.fromiter(map(len, runs), np.int64, len(runs)) + 1
    characters = np.bincount(code_points(runs), np.repeat(counts_R, lengths_R))
    characters[ord(" ") :][:1] = 0
    return _Counts(words, pieces_T.astype(np.int64), characters.astype(np.int64))


def _sample_runs(titles: Titles) -> list[str]:
    """The runs of Han characters of SAMPLE titles or fewer, the same ones in whatever order the titles are."""
    num_titles = sum(_each_batch(titles, lambda batch: pc.sum(_have_han(batch), min_count=0).as_py()))
    if not num_titles:
        return []
    bound = np.uint64(min(1.0, SAMPLE / num_titles) * (2**64 - 2**11))  # a float next to 2**64 is too large

    def draw(batch: pa.StringArray) -> list[str]:
        batch = batch.filter(_have_han(batch))
        is_drawn = pd.util.hash_array(batch.to_numpy(zero_copy_only=False), categorize=False) <= bound
        units = _split(batch.filter(pa.array(is_drawn)))[0]
        runs: list[str] = units.filter(pa.array(_are_runs(units))).to_pylist()
        return runs

    return [run for runs in _each_batch(titles, draw) for run in runs]


def _have_han(titles: pa.StringArray) -> pa.BooleanArray:
    return pc.match_substring_regex(titles, r"\p{Han}")


def _each_batch(titles: Titles, work: Callable[[pa.StringArray], T]) -> Iterator[T]:
    """What becomes of TITLES_AT_A_TIME titles after the other, in order."""
    starts = range(0, len(titles), TITLES_AT_A_TIME)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        yield from pool.map(lambda start: work(_strings(titles[start : start + TITLES_AT_A_TIME])), starts)


def _strings(titles: Titles) -> pa.StringArray:
    if isinstance(titles, pa.ChunkedArray):
        titles = titles.combine_chunks()
    return pc.fill_null(titles.cast(pa.string()) if isinstance(titles, pa.Array) else pa.array(titles, pa.string()), "")
