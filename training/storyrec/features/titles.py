"""Titles as word numbers: NFKC, lower case, every CJK character a word, words by their count.

Paper: Sec. III-A takes the word pieces of a Chinese BERT; here the vocabulary is learned from the
titles themselves, so any language works (paper notes, section 1).

Suffixes: N = titles, W = words.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC, BertNormalizer
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordLevelTrainer

from storyrec.errors import ModelError
from storyrec.storage import write_file

PADDING, UNKNOWN = 0, 1
# capitals and brackets never survive normalisation, so no title can spell these
_RESERVED = ("[PAD]", "[UNK]")


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
        if not len(titles):
            return np.zeros((0, max_words), np.int32)
        tokenizer = _tokenizer(self.words)
        tokenizer.enable_truncation(max_words)
        tokenizer.enable_padding(length=max_words, pad_id=PADDING, pad_token=_RESERVED[PADDING])
        encodings = tokenizer.encode_batch_fast(list(titles), add_special_tokens=False)
        return np.array([encoding.ids for encoding in encodings], np.int32)

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
            words = json.loads(path.read_bytes())["words"]
            if tuple(words[:2]) != _RESERVED or len(set(words)) != len(words):
                raise ValueError("the words are not distinct or do not start with padding and unknown")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelError(
                f"the vocabulary cannot be read: {error}",
                expected='{"words": ["[PAD]", "[UNK]", ...]}',
                where=str(path),
                remedy="build the dataset or the bundle again",
            ) from error
        return cls(tuple(words))


def train_vocabulary(titles: Iterable[str], *, size: int, min_count: int) -> Vocabulary:
    """The most frequent words of titles; equal counts in the order of the words, so always the same.

    Args:
        titles: raw titles.
        size: the most numbers, padding and unknown included, >= 2.
        min_count: words seen less often are left out, >= 1.
    """
    tokenizer = _tokenizer(_RESERVED)
    trainer = WordLevelTrainer(
        vocab_size=size, min_frequency=min_count, special_tokens=list(_RESERVED), show_progress=False
    )
    tokenizer.train_from_iterator(titles, trainer=trainer)
    numbers = tokenizer.get_vocab()
    return Vocabulary(tuple(sorted(numbers, key=numbers.__getitem__)))


def _tokenizer(words: Sequence[str]) -> Tokenizer:
    numbers = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(WordLevel(numbers, unk_token=_RESERVED[UNKNOWN]))
    tokenizer.normalizer = Normalizers([NFKC(), BertNormalizer(strip_accents=False, lowercase=True)])
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer
