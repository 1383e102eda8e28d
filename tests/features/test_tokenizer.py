"""The library and its file: what it cuts titles into, it cuts alone and we cut by the thousands."""

import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from storyrec.features.titles import Vocabulary, split_titles, train_vocabulary
from storyrec.features.tokenizer import learn_pieces, make_tokenizer

TITLES = [
    "Nike运动鞋2024款",
    "男士运动鞋 跑步 a1",
    "女款连衣裙, RED [pad]!",
    "碎花连衣裙 新款 red İstanbul 🍵",
    "运动鞋女 ＣＵＰ ① 24",
    "[PAD] 令和 ⺀々〇 𠮷𠮷",
]
ALPHABET = "aİ24 é运动鞋连衣裙女款令和々⺀𠮷𰻝車㈱,。![]-_\t\x00\u200b\u200d\u3000\u0301０ＡΣß①🍵👩カー한"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return train_vocabulary(TITLES, size=60, min_count=2)


@pytest.fixture(scope="module")
def library(vocabulary: Vocabulary, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    vocabulary.save(path)
    return Tokenizer.from_file(str(path))


def test_the_library_reads_the_file_and_names_the_words(library: Tokenizer, vocabulary: Vocabulary) -> None:
    assert library.get_vocab_size() == vocabulary.size
    assert library.encode("Red运动鞋的连衣裙").tokens == ["red", "运动鞋", "[UNK]", "连衣裙"]
    assert library.encode("[PAD]").tokens == ["[", "pad", "]"]


@settings(deadline=None, max_examples=150)
@given(titles=st.lists(st.text(alphabet=ALPHABET, max_size=25) | st.sampled_from(TITLES), max_size=5))
def test_titles_are_encoded_as_the_library_encodes_each(
    library: Tokenizer, vocabulary: Vocabulary, titles: list[str]
) -> None:
    tokens_NW = vocabulary.encode(titles, max_words=120)
    assert [[number for number in row if number] for row in tokens_NW.tolist()] == [
        library.encode(title).ids for title in titles
    ]


def test_all_characters_but_a_few_new_ones_are_split_as_the_library_splits_them() -> None:
    rules = make_tokenizer(["[UNK]"], pieces=[], unknown="[UNK]")
    # those of Chinese's large blocks are alike: one in fifty of them
    codes = [code for code in range(sys.maxunicode + 1) if code < 0x3400 or code % 50 == 0 or not _is_han(code)]
    characters = [chr(code) for code in codes if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    titles = [f"a{character}b" for character in characters]
    words, starts = split_titles(titles)
    ours = [words[start:stop].to_pylist() for start, stop in pairwise(starts)]
    theirs = [
        [word for word, _ in rules.pre_tokenizer.pre_tokenize_str(rules.normalizer.normalize_str(title))]
        for title in titles
    ]
    different = {ord(character) for character, one, other in zip(characters, ours, theirs, strict=True) if one != other}
    # compatibility characters of Unicode 12 and later, which the library's NFKC leaves as they are
    latin = {*range(0xA7F2, 0xA7F5), 0xAB69, *range(0x10781, 0x107BB)} - {0x10786, 0x107B1}
    assert different == {0x32FF, *latin, 0x1F16C, *range(0x1FBF0, 0x1FBFA)}


def _is_han(code: int) -> bool:
    return unicodedata.name(chr(code), "").startswith("CJK UNIFIED")


def test_pairs_are_merged_by_how_often_they_are_there() -> None:
    runs = ["运动鞋", "运动鞋", "运动", "连衣裙", "红"]
    assert learn_pieces(runs, longest=3, size=100, min_count=2) == ["运动", "运动鞋"]
    assert learn_pieces(runs, longest=2, size=100, min_count=2) == ["运动"]
    assert learn_pieces(runs, longest=3, size=8, min_count=1) == ["运动"]  # seven characters, one piece
    assert learn_pieces([], longest=3, size=100, min_count=1) == []
