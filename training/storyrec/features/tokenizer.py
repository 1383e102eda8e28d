"""The `tokenizers` library's part in titles: it learns the word pieces, and its file holds the vocabulary."""

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import BPE, WordLevel
from tokenizers.normalizers import NFKC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from tokenizers.trainers import BpeTrainer


def learn_pieces(runs: Iterable[str], *, longest: int, size: int, min_count: int) -> list[str]:
    """Characters that often stand side by side, merged pair by pair, the most frequent first.

    The same runs give the same pieces, in any order and on any number of threads.

    Args:
        runs: texts of Han characters only.
        longest: the most characters of a piece, >= 2.
        size: the most pieces, single characters included.
        min_count: how often a pair must be there to be merged.

    Returns:
        Pieces of 2 to `longest` characters, sorted.
    """
    tokenizer = Tokenizer(BPE())
    trainer = BpeTrainer(
        vocab_size=size,
        min_frequency=min_count,
        max_token_length=longest + 1,  # the library merges what is shorter than this
        show_progress=False,
    )
    tokenizer.train_from_iterator(runs, trainer)
    return sorted(piece for piece in tokenizer.get_vocab() if len(piece) > 1)


def make_tokenizer(words: Sequence[str], *, pieces: Sequence[str], unknown: str) -> Tokenizer:
    """A tokenizer of the library that gives titles the same tokens as `Vocabulary.encode`, uncut and unpadded.

    Args:
        words: the vocabulary; a word's number is its place.
        pieces: the words among them of two and more Han characters. As added tokens they are looked for
            first, from the left, the longest at each place.
        unknown: the word that stands for all others.
    """
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
    tokenizer.normalizer = Normalizers(
        [
            NFKC(),
            Replace("\u0130", "i"),  # a capital I with a dot, which the library would make two characters
            Lowercase(),
            Replace(Regex(r"[\t\n\v\f\r]"), " "),
            Replace(Regex(r"[\p{Cc}\p{Cf}]"), ""),
        ]
    )
    tokenizer.pre_tokenizer = PreTokenizers([WhitespaceSplit(), Split(Regex(r"[\p{Han}\p{P}\p{S}]"), "isolated")])
    tokenizer.add_tokens([AddedToken(piece, normalized=True) for piece in pieces])
    return tokenizer
