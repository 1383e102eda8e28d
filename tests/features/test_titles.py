"""Titles as words: what counts as a word, which numbers words get, and how titles are padded."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFKC, BertNormalizer
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer

from storyrec.errors import ModelError
from storyrec.features.titles import Vocabulary, train_vocabulary


def words_of(title: str) -> list[str]:
    """The words of one title, through a vocabulary of its own."""
    vocabulary = train_vocabulary([title], size=1_000, min_count=1)
    return [vocabulary.words[number] for number in vocabulary.encode([title], max_words=200)[0] if number]


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("Red  CUP", ["red", "cup"]),
        ("红色茶杯 Tea杯", ["红", "色", "茶", "杯", "tea", "杯"]),
        ("ＣＵＰ ①", ["cup", "1"]),  # NFKC
        ("cup,50%-off!", ["cup", ",", "50", "%", "-", "off", "!"]),
        ("Café\ttea\ncup", ["café", "tea", "cup"]),
        ("cu\u200bp\x00", ["cup"]),
        ("[PAD] [UNK]", ["[", "pad", "]", "[", "unk", "]"]),
        ("", []),
        (" \u3000 ", []),
    ],
)
def test_words(title: str, words: list[str]) -> None:
    assert words_of(title) == words


ALPHABET = "aB é中文字,。!$-_ \t0９Ａ"


@settings(deadline=None)
@given(title=st.text(alphabet=ALPHABET, max_size=30))
def test_words_agree_with_berts_pre_tokenizer(title: str) -> None:
    normalizer = Normalizers([NFKC(), BertNormalizer(strip_accents=False, lowercase=True)])
    expected = [word for word, _ in BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(title))]
    assert words_of(title) == expected


def test_numbers_go_by_count_then_by_word() -> None:
    titles = ["b a c", "c b", "c d", "e"]
    assert train_vocabulary(titles, size=100, min_count=1).words == ("[PAD]", "[UNK]", "c", "b", "a", "d", "e")
    assert train_vocabulary(titles[::-1], size=100, min_count=1) == train_vocabulary(titles, size=100, min_count=1)


def test_size_and_min_count_leave_the_rarer_words_out() -> None:
    titles = ["b a c", "c b", "c d"]
    assert train_vocabulary(titles, size=3, min_count=1).words == ("[PAD]", "[UNK]", "c")
    assert train_vocabulary(titles, size=100, min_count=2).words == ("[PAD]", "[UNK]", "c", "b")
    assert train_vocabulary([], size=100, min_count=1).size == 2


def test_encode_pads_on_the_right_cuts_and_marks_unknown_words() -> None:
    vocabulary = train_vocabulary(["a a a b b c"], size=100, min_count=1)
    tokens = vocabulary.encode(["b a", "", "c zzz b a", "zzz"], max_words=3)
    assert tokens.tolist() == [[3, 2, 0], [0, 0, 0], [4, 1, 3], [1, 0, 0]]
    assert tokens.dtype == np.int32
    assert vocabulary.encode([], max_words=3).shape == (0, 3)


def test_save_and_load(tmp_path: Path) -> None:
    vocabulary = train_vocabulary(["红 cup cup"], size=10, min_count=1)
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json") == vocabulary


@pytest.mark.parametrize("content", ["{", "[]", '{"words": ["a", "b"]}', '{"words": ["[PAD]", "[UNK]", "a", "a"]}'])
def test_load_refuses_what_is_no_vocabulary(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(ModelError, match=r"vocabulary\.json"):
        Vocabulary.load(tmp_path / "vocabulary.json")
