"""Titles as word numbers: NFKC, lower case, every Chinese character and sign a word.

Paper: Sec. III-A takes the word pieces of a Chinese BERT; here the vocabulary is learned from the
titles themselves, so any language works. Words are split as BERT's
pre-tokenizer does, but a whole column at a time.

Suffixes: N = titles, W = words.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.errors import ModelError
from storyrec.storage import write_file

PADDING, UNKNOWN = 0, 1
_RESERVED = ("[PAD]", "[UNK]")  # brackets are words of their own, so no title can spell these
NUM_RESERVED = len(_RESERVED)

_SPACES = r"[\t\n\v\f\r]"
_INVISIBLE = r"[\p{Cc}\p{Cf}]"
_WORDS_OF_THEIR_OWN = r"([\p{Han}\p{P}\p{S}])"


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

    def encode(self, titles: Sequence[str], *, max_words: int) -> npt.NDArray[np.int32]:
        """Titles as word numbers.

        Args:
            titles: N raw titles; an empty one has no words.
            max_words: where longer titles are cut, > 0.

        Returns:
            tokens_NW: [N, max_words] int32, padded with 0 on the right; 1 = unknown.
        """
        words, starts = split_titles(titles)
        numbers = pc.index_in(words, value_set=pa.array(self.words, pa.string()))
        numbers = np.asarray(pc.fill_null(numbers, UNKNOWN).to_numpy(zero_copy_only=False), np.int32)
        positions_NW = starts[:-1, None] + np.arange(max_words)
        mask_NW = positions_NW < starts[1:, None]
        tokens_NW = np.full(mask_NW.shape, PADDING, np.int32)
        tokens_NW[mask_NW] = numbers[positions_NW[mask_NW]]
        return tokens_NW

    def save(self, path: Path) -> None:
        """Write vocabulary.json."""
        write_file(path, json.dumps({"words": self.words}, ensure_ascii=False, indent=0).encode())

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read vocabulary.json.

        Raises:
            ModelError: the file is missing or is no vocabulary.
        """
        try:
            words = tuple(json.loads(path.read_bytes())["words"])
            if words[:NUM_RESERVED] != _RESERVED or len(set(words)) != len(words):
                raise ValueError("the words are not distinct or do not start with padding and unknown")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"the vocabulary cannot be read: {error}",
                expected='{"words": ["[PAD]", "[UNK]", ...]}',
                where=str(path),
                remedy="build the dataset or the bundle again",
            ) from error
        return cls(words)


def train_vocabulary(titles: Sequence[str], *, size: int, min_count: int) -> Vocabulary:
    """The most frequent words of titles, equal counts in alphabetical order: always the same.

    Args:
        titles: raw titles.
        size: the most numbers, padding and unknown included, >= 2.
        min_count: words seen less often are left out, >= 1.
    """
    return most_frequent_words(count_words(split_titles(titles)[0]), size=size, min_count=min_count)


def count_words(words: pa.StringArray) -> Counter[str]:
    """How often each word is there; counts of several arrays can be added up."""
    counted = pc.value_counts(words)
    return Counter(dict(zip(counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True)))


def most_frequent_words(counts: Mapping[str, int], *, size: int, min_count: int) -> Vocabulary:
    """The vocabulary of counted words; see `train_vocabulary`."""
    ranked = sorted((-count, word) for word, count in counts.items() if count >= min_count)
    return Vocabulary((*_RESERVED, *(word for _, word in ranked[: size - NUM_RESERVED])))


def split_titles(titles: Sequence[str] | pa.StringArray) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """All words in one array, and where each title's words start in it, with the end as last entry."""
    texts = pc.utf8_lower(pc.utf8_normalize(pa.array(titles, pa.string()), "NFKC"))
    texts = pc.replace_substring_regex(texts, _SPACES, " ")
    texts = pc.replace_substring_regex(texts, _INVISIBLE, "")
    texts = pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, _WORDS_OF_THEIR_OWN, r" \1 "))
    # splitting nothing would give one empty word
    lists = pc.if_else(pc.equal(texts, ""), pa.scalar([], pa.list_(pa.string())), pc.utf8_split_whitespace(texts))
    lengths = np.asarray(pc.list_value_length(lists).to_numpy(zero_copy_only=False), np.int64)
    return lists.flatten(), np.concatenate([[0], np.cumsum(lengths)])
