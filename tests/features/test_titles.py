"""Titles as words: what counts as a word, which numbers words get, and how titles are padded."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import NFKC, BertNormalizer
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import BertPreTokenizer

import storyrec.features.titles as titles_module
from storyrec.errors import ModelError
from storyrec.features.titles import UnknownWords, Vocabulary, split_titles, train_vocabulary


def words_of(title: str) -> list[str]:
    """The words of one title, every Han character a word."""
    words: list[str] = split_titles([title])[0].to_pylist()
    return words


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


CHINESE = ["Nike运动鞋2024款", "男士运动鞋 跑步", "女款连衣裙", "碎花连衣裙,新款", "运动鞋女"]


def test_han_characters_that_often_stand_together_become_one_word() -> None:
    vocabulary = train_vocabulary(CHINESE, size=100, min_count=2)
    # pieces count where they are cut, characters wherever they stand
    expected = "[PAD] [UNK] 动 款 运 运动鞋 鞋 女 衣 裙 连 连衣裙"
    assert vocabulary.words == tuple(expected.split())
    tokens = vocabulary.encode(["Nike运动鞋2024款", "连衣 裙", "运动裙鞋连衣裙"], max_words=6).tolist()
    words = [[vocabulary.words[number] for number in numbers if number] for numbers in tokens]
    assert words == [
        ["[UNK]", "运动鞋", "[UNK]", "款"],
        ["连", "衣", "裙"],  # a space parts words
        ["运", "动", "裙", "鞋", "连衣裙"],
    ]


def test_pieces_have_three_characters_at_most() -> None:
    vocabulary = train_vocabulary(["春夏秋冬", "春夏秋", "春夏"] * 50, size=100, min_count=2)
    assert [word for word in vocabulary.words[2:] if len(word) > 1] == ["春夏秋", "春夏"]


def test_the_same_titles_give_the_same_vocabulary_in_any_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(titles_module, "SAMPLE", 500)  # so that pieces are learned from a part
    draw = random.Random(3)
    words = ["".join(draw.choices("红蓝女男鞋裙衣茶杯花", k=draw.randint(1, 3))) for _ in range(60)]
    titles = ["".join(draw.choices(words, k=5)) + draw.choice(["", " cup", "24"]) for _ in range(2_000)]
    contents = set()
    for threads in ("true", "false"):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", threads)
        for _ in range(2):
            draw.shuffle(titles)
            train_vocabulary(titles, size=150, min_count=2).save(tmp_path / "tokenizer.json")
            contents.add((tmp_path / "tokenizer.json").read_bytes())
    assert len(contents) == 1
    assert len(titles_module._sample_runs(titles)) in range(400, 600)


def test_lists_and_arrow_arrays_and_many_small_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    titles = [*CHINESE, "", "Red cup 红", *ENGLISH]
    columns = [
        titles,
        pa.array(titles),
        pa.array(titles, pa.large_string()),
        pa.chunked_array([titles[:3], titles[3:]]),
    ]
    whole = train_vocabulary(titles, size=100, min_count=1)
    monkeypatch.setattr(titles_module, "TITLES_AT_A_TIME", 4)
    for column in columns:
        assert train_vocabulary(column, size=100, min_count=1) == whole
        assert whole.encode(column, max_words=9).tolist() == whole.encode(titles, max_words=9).tolist()
    monkeypatch.undo()
    assert whole.encode(pa.array([None, "red"]), max_words=2).tolist() == [[0, 0], [whole.words.index("red"), 0]]


def test_a_very_long_title_is_cut() -> None:
    vocabulary = train_vocabulary(["连衣裙"] * 3, size=100, min_count=2)
    piece = vocabulary.words.index("连衣裙")
    assert vocabulary.encode(["连衣裙" * 50_000, "a" * 200_000], max_words=3).tolist() == [[piece] * 3, [1, 0, 0]]


ENGLISH = [
    "Red CUP, 350ml (2-pack)",
    "Café crème cup 350ml",
    "The red-hot CUP: 50% off!",
    "Women's shoes #42 — red",
    "naïve ΣΟΦΟΣ ﬁne ①",
    "cup 🍵 tea",
    "Straße 3.5kg & more",
]


def test_titles_without_han_characters_have_the_words_and_numbers_of_the_published_results() -> None:
    vocabulary = train_vocabulary(ENGLISH, size=100, min_count=1)
    expected = (
        "[PAD] [UNK] cup red - 350ml ! # % & ' ( ) , . 1 2 3 42 50 5kg : café crème fine hot more naïve off pack s "
        "shoes straße tea the women σοφοσ — 🍵"
    )
    assert vocabulary.words == tuple(expected.split())
    assert vocabulary.encode(ENGLISH, max_words=8).tolist() == [
        [3, 2, 13, 5, 11, 16, 4, 29],
        [22, 23, 2, 5, 0, 0, 0, 0],
        [34, 3, 4, 25, 2, 21, 19, 8],
        [35, 10, 30, 31, 7, 18, 37, 3],
        [27, 36, 24, 15, 0, 0, 0, 0],
        [2, 38, 33, 0, 0, 0, 0, 0],
        [32, 17, 14, 20, 9, 26, 0, 0],
    ]


def test_many_titles_without_han_characters_have_the_tokens_of_the_published_results() -> None:
    draw = random.Random(20)
    words = ["".join(draw.choices("abdeiorstAES379é-,'&", k=draw.randint(1, 5))) for _ in range(400)]
    titles = [" ".join(draw.choices(words, k=draw.randint(0, 12))) for _ in range(3_000)]
    vocabulary = train_vocabulary(titles, size=300, min_count=2)
    tokens_NW = vocabulary.encode(titles, max_words=16)
    # SHA-256 of what the version of the published results made of these titles
    assert (
        hashlib.sha256("\n".join(vocabulary.words).encode()).hexdigest()
        == "d140775463230dc14032469f3ed0371e0c02b16e8b204e0277347545123ed669"
    )
    assert (
        hashlib.sha256(tokens_NW.astype("<i4").tobytes()).hexdigest()
        == "5d363b11eb157ebb4795dd0f85c4f6c4ba7b718824d6a8b144c5faf8002aa524"
    )


def test_unknown_words_are_counted_as_titles_are_cut() -> None:
    vocabulary = train_vocabulary(["red cup"], size=10, min_count=1)
    titles = ["red tea", "", "blue blue red cup blue"]
    assert vocabulary.count_unknown(titles, max_words=4) == UnknownWords(num_titles=3, num_words=6, num_unknown=3)
    assert vocabulary.count_unknown([], max_words=4) == UnknownWords(0, 0, 0)


@pytest.mark.parametrize("titles", [[], ["", " "], ["红 cup cup"], CHINESE])
def test_save_and_load(tmp_path: Path, titles: list[str]) -> None:
    vocabulary = train_vocabulary(titles, size=20, min_count=1)
    vocabulary.save(tmp_path / "tokenizer.json")
    assert Vocabulary.load(tmp_path / "tokenizer.json") == vocabulary


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"words": ["[PAD]", "[UNK]"]}',
        '{"model": {"vocab": {"a": 0, "b": 1}}}',
        '{"model": {"vocab": {"[PAD]": 0, "[UNK]": 1, "a": 3}}}',
        '{"model": {"vocab": {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 2}}}',
        '{"model": {"vocab": [["[PAD]", 0.0]]}}',
    ],
)
def test_load_refuses_what_is_no_vocabulary(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        Vocabulary.load(tmp_path / "tokenizer.json")


def test_load_says_what_to_do_with_what_an_older_version_wrote(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").write_text(json.dumps({"words": ["[PAD]", "[UNK]"]}))
    with pytest.raises(ModelError, match=r"older versions did not write(.|\n)*build the dataset again"):
        Vocabulary.load(tmp_path / "tokenizer.json")
