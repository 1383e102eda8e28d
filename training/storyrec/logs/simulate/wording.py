"""Titles of the simulated marketplace: keywords for products, told sentences for stories.

Product titles are keywords; a story uses other words for the same concepts, copies a share of
its first mounted product's words, and adds a style's opening and closing. Paper: Sec. II-C, Table II.
"""

import functools
import zlib
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.coined import Coined, coin
from storyrec.logs.simulate.lexicon import Lexicon, load_lexicon
from storyrec.logs.simulate.presets import Preset
from storyrec.logs.simulate.world import Floats, Ints, Items, StoryTraits, Topics

# for each bin: how many words the story has of its own (opener, adjective + noun, closer) and how many it copies
SHAPES: tuple[tuple[tuple[str, int], ...], ...] = (
    (("oanc", 0), ("pnac", 0), ("oanc", 1), ("anc", 0), ("pan", 0)),
    (("oan", 2), ("anc", 2), ("pan", 2), ("anc", 3)),
    (("pn", 3), ("c", 3), ("pan", 4), ("an", 2), ("o", 4)),
    (("an", 4), ("an", 5), ("p", 5), ("an", 3), ("o", 5)),
    (("n", 5), ("", 5), ("n", 6), ("", 6)),
)
BIN_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
COPY_WEIGHT = {
    "extra": 0.5,
    "coined": 0.8,
    "noun": 4.0,
    "attribute": 2.0,
    "colour": 1.5,
    "use": 1.0,
    "brand": 0.3,
    "size": 0.3,
}
KINDS = ("brand", "attribute", "colour", "attribute", "noun", "noun", "attribute", "use", "size")
EXTRA_KINDS = ("extra",) * 8 + ("coined",)
KEYWORDS_LOST = 1.6  # of a full title, on average
MEDIAN_TOLD, SPREAD_TOLD = 6.2, 0.34  # words of a story's title, log-normal
OWN_SHARE = 0.5  # of extra keywords: attributes of the category
NO_WORD = -1
FIRST_CHARACTER, NUM_CHARACTERS = 0x4E00, 3_000  # words are spelt with these

Word = TypeVar("Word")
WordNumbers = npt.NDArray[np.int32]


class Wording:
    """Turns items into titles; the same latent always names the same concepts."""

    def __init__(self, preset: Preset, topics: Topics, *, shared_words: bool) -> None:
        """Prepare the words.

        Args:
            preset: how titles are worded.
            topics: what items are about.
            shared_words: whether stories use the products' keywords.
        """
        self._preset = preset
        self._lexicon: Lexicon = load_lexicon()
        self._category_T = topics.category_T
        self._centres_TZ = topics.centres_TZ
        self._story_side = 0 if shared_words else 1
        rng = np.random.default_rng(20)
        width = topics.centres_TZ.shape[1]
        # a concept is named where the item lies on its side of its subtopic
        self._attribute_ZA = rng.standard_normal((width, 8)).astype(np.float32)
        self._colour_ZA = rng.standard_normal((width, len(self._lexicon.colours))).astype(np.float32)
        self._use_ZA = rng.standard_normal((width, len(self._lexicon.uses))).astype(np.float32)

        self._words, product_side = _number_words(self._lexicon)
        self._word_of = product_side
        self._kinds = KINDS + (EXTRA_KINDS if preset.has_drawn_lengths else ())
        self.width = len(self._kinds)

    def product_words(self, items: Items, rows: Ints, *, coined: Coined, rng: np.random.Generator) -> WordNumbers:
        """Keyword titles as numbers of words, in the order of the kinds, -1 = none, [n, width].

        Args:
            coined: new words of the day.
        """
        attributes, colours, uses = self._concepts(items, rows)
        noun = rng.integers(0, 3, len(rows))
        brand = rng.integers(0, len(self._lexicon.brands), len(rows))
        size = rng.integers(0, len(self._lexicon.sizes), len(rows))
        topic = items.topic_N[rows]
        own = self._word_of["attributes"][self._category_T[topic]]
        nouns = self._word_of["nouns"][topic]
        each = np.arange(len(rows))
        columns = (
            self._word_of["brands"][brand],
            own[each, attributes[:, 0]],
            self._word_of["colours"][colours],
            own[each, attributes[:, 1]],
            nouns[each, noun],
            nouns[each, (noun + 1) % 3],
            own[each, attributes[:, 2]],
            self._word_of["uses"][uses],
            self._word_of["sizes"][size],
        )
        words_NW = np.full((len(rows), self.width), NO_WORD, np.int32)
        words_NW[:, : len(KINDS)] = np.stack(columns, axis=1)
        if self._preset.has_drawn_lengths:
            lost_N = rng.exponential(KEYWORDS_LOST, len(rows)).astype(np.int64)
            keys_NW = rng.random((len(rows), self.width - 1))
            keys_NW[:, KINDS.index("noun")] = -1  # stays
            rank_NW = np.argsort(np.argsort(keys_NW, axis=1), axis=1)
            words_NW = self.reword(words_NW, own=own, rng=rng)
            words_NW[:, :-1][rank_NW >= np.maximum(self.width - 1 - lost_N, 2)[:, None]] = NO_WORD
            words_NW[:, -1] = coined.draw(len(rows), rng=rng)
            words_NW[:, -1] += np.where(words_NW[:, -1] >= 0, len(self._words) - 1, 0)
        return words_NW

    def reword(self, words_NW: WordNumbers, *, own: Ints | None = None, rng: np.random.Generator) -> WordNumbers:
        """Titles with other words of the extra kind: a category's own (`own`, [n, 8]) and what merchants say anyhow."""
        shape = (len(words_NW), self._kinds.count("extra"))
        extra = self._word_of["selling"][rng.integers(0, len(self._word_of["selling"]), shape)]
        if own is not None:
            is_own = rng.random(shape) < OWN_SHARE
            extra = np.where(is_own, np.take_along_axis(own, rng.integers(0, own.shape[1], shape), axis=1), extra)
        reworded = words_NW.copy()
        reworded[:, len(KINDS) : len(KINDS) + shape[1]] = extra
        return reworded

    def titles(self, words_NW: WordNumbers) -> list[list[str]]:
        """The words that numbers of `product_words` stand for, each once."""
        num_words = len(self._words) - 1
        words = self._words[np.where(words_NW < num_words, words_NW, NO_WORD)]
        is_coined = words_NW >= num_words
        words[is_coined] = [coin(number) for number in words_NW[is_coined] - num_words]
        titles: list[list[str]] = words.tolist()
        if self._preset.has_drawn_lengths:
            titles = [list(dict.fromkeys(filter(None, title))) for title in titles]
        return titles

    def story_words(
        self,
        items: Items,
        traits: StoryTraits,
        rows: Ints,
        *,
        mounted: Sequence[list[str] | None],
        coined: Coined,
        rng: np.random.Generator,
    ) -> list[list[str]]:
        """Story titles.

        Args:
            mounted: the words of each story's first mounted product, None where there is none.
            coined: new words of the day.
        """
        if self._preset.has_drawn_lengths:
            return self._told_words(items, traits, rows, mounted=mounted, coined=coined, rng=rng)
        lexicon, side, shares = self._lexicon, self._story_side, self._preset.title_shares
        attributes, colours, _ = self._concepts(items, rows)
        voiced_NE = traits.style_NE[rows] + 0.5 * rng.standard_normal((len(rows), traits.style_NE.shape[1]))
        styles = np.argmax(voiced_NE, axis=1)
        bins = rng.choice(len(shares), len(rows), p=shares)
        draws = rng.random((len(rows), 9))
        keys = rng.random((len(rows), len(KINDS))) ** (1 / np.array([COPY_WEIGHT[kind] for kind in KINDS]))
        copy_order = np.argsort(-keys, axis=1)
        clickbait_chance = self._preset.clickbait_share / shares[0]

        titles = []
        for i, row in enumerate(rows):
            draw, product, bin_ = draws[i], mounted[i], bins[i]
            if bin_ == 0 and draw[0] < clickbait_chance:
                titles.append(list(_pick(lexicon.clickbait, draw[1])))
                continue
            shape, num_copied = _pick(SHAPES[bin_], draw[2]) if product is not None else _pick(SHAPES[0], draw[2])
            topic, style = items.topic_N[row], lexicon.styles[styles[i]]
            own = lexicon.attributes[self._category_T[topic]]
            adjective = _pick(
                [own[attributes[i, 0]][side], lexicon.colours[colours[i]][side], _pick(style.adjectives, draw[3])],
                draw[4],
            )
            words: list[str] = []
            if "o" in shape:
                words += _pick(style.openers3, draw[5])
            if "p" in shape:
                words += _pick(style.openers2, draw[5])
            if product is not None:
                words += [product[k] for k in sorted(copy_order[i, :num_copied])]
            if "a" in shape:
                words.append(adjective)
            if "n" in shape:
                words.append(_pick(lexicon.nouns[topic][side], draw[6]))
            if "c" in shape:
                words += _pick(style.closers3, draw[7])
            titles.append(words)
        return titles

    def _told_words(
        self,
        items: Items,
        traits: StoryTraits,
        rows: Ints,
        *,
        mounted: Sequence[list[str] | None],
        coined: Coined,
        rng: np.random.Generator,
    ) -> list[list[str]]:
        """Titles of drawn lengths, of which a drawn share is copied; the rest opens, names, closes and goes on."""
        lexicon, side, preset = self._lexicon, self._story_side, self._preset
        attributes, colours, _ = self._concepts(items, rows)
        voiced_NE = traits.style_NE[rows] + 0.5 * rng.standard_normal((len(rows), traits.style_NE.shape[1]))
        styles = np.argmax(voiced_NE, axis=1)
        lengths = np.maximum(np.rint(MEDIAN_TOLD * np.exp(SPREAD_TOLD * rng.standard_normal(len(rows)))), 2).astype(int)
        bins = rng.choice(len(preset.title_shares), len(rows), p=preset.title_shares)
        low = np.ceil(np.take(BIN_EDGES, bins) * lengths - 1e-9).astype(int)
        high = np.where(bins == len(BIN_EDGES) - 2, lengths, np.ceil(np.take(BIN_EDGES, bins + 1) * lengths) - 1)
        copied = low + (rng.random(len(rows)) * np.maximum(high - low + 1, 1)).astype(int)
        draws = rng.random((len(rows), 16))
        keys = rng.random((len(rows), self.width)) ** (1 / np.array([COPY_WEIGHT[kind] for kind in self._kinds]))
        copy_order = np.argsort(-keys, axis=1)
        is_clickbait = rng.random(len(rows)) < preset.clickbait_share
        new_words = coined.draw(len(rows), rng=rng)

        titles = []
        for i, row in enumerate(rows):
            draw, product = draws[i], mounted[i] or []
            style = lexicon.styles[styles[i]]
            phrases = [_pick(style.closers3, draw[k]) for k in range(3, 8)]
            if is_clickbait[i]:
                bait = [*_pick(lexicon.clickbait, draw[0]), *phrases[0]]
                titles.append(bait[: max(lengths[i], 4)])
                continue
            # a title that lost words has the later ones a little before their kind's place
            taken = sorted([k for k in copy_order[i] if k < len(product)][: copied[i]])
            num_own = lengths[i] - len(taken)
            topic = items.topic_N[row]
            own = lexicon.attributes[self._category_T[topic]]
            adjective = _pick(
                [own[attributes[i, 0]][side], lexicon.colours[colours[i]][side], _pick(style.adjectives, draw[8])],
                draw[9],
            )
            opener = list(_pick(style.openers3 if draw[10] < 0.5 else style.openers2, draw[11]))
            opener = opener[: max(num_own - 2, 0)]
            closer = [word for phrase in phrases for word in phrase][: max(num_own - 2 - len(opener), 0)]
            words = [*opener, *([adjective] if num_own > 1 else []), *(product[k] for k in taken)]
            words += [_pick(lexicon.nouns[topic][side], draw[12])] if num_own > 0 else []
            if num_own > 0 and draw[13] < preset.latin_share / 4:
                words.append(_pick(lexicon.trends, draw[14]))
            if new_words[i] >= 0:
                words.append(coin(new_words[i]))
            titles.append(words + closer)
        return titles

    def _concepts(self, items: Items, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Attributes [n, 3], colour [n] and use [n] that an item's place within its subtopic stands for."""
        offset: Floats = items.latent_NZ[rows] - self._centres_TZ[items.topic_N[rows]]
        attributes = np.argsort(-(offset @ self._attribute_ZA), axis=1)[:, :3]
        return attributes, np.argmax(offset @ self._colour_ZA, axis=1), np.argmax(offset @ self._use_ZA, axis=1)


def _pick(words: Sequence[Word], draw: float) -> Word:
    return words[int(draw * len(words))]


def spell(words: Sequence[str], *, language: Literal["en", "zh"], latin_share: float) -> str:
    """A title out of its words: as they are, or each as two Chinese characters without spaces between.

    Args:
        latin_share: of brands and sizes that stay as they are in a Chinese title; if there are any, so do trends and
            new words. Two such words keep a space between.
    """
    if language == "en":
        return " ".join(words)
    spelt: list[str] = []
    for word in words:
        sign = _in_chinese(word, latin_share)
        spelt.append(f" {sign}" if spelt and sign.isascii() and spelt[-1].isascii() else sign)
    return "".join(spelt)


@functools.cache
def _in_chinese(word: str, latin_share: float) -> str:
    code = zlib.crc32(word.encode())
    lexicon = load_lexicon()
    has_digit = any(sign.isdigit() for sign in word)
    is_new = has_digit and word not in lexicon.sizes
    may_stay = code % 1_000 < 1_000 * latin_share and (has_digit or word in lexicon.brands)
    if latin_share and (may_stay or is_new or word in lexicon.trends):
        return word
    first, second = divmod(code % NUM_CHARACTERS**2, NUM_CHARACTERS)
    return chr(FIRST_CHARACTER + first) + chr(FIRST_CHARACTER + second)


def _number_words(lexicon: Lexicon) -> tuple[npt.NDArray[np.object_], dict[str, Ints]]:
    """All product words, and for every kind where its words are among them."""
    words: list[str] = []

    def number(kind: Sequence[str]) -> list[int]:
        words.extend(kind)
        return list(range(len(words) - len(kind), len(words)))

    numbers = {
        "brands": np.array(number(lexicon.brands)),
        "sizes": np.array(number(lexicon.sizes)),
        "colours": np.array(number([product for product, _ in lexicon.colours])),
        "uses": np.array(number([product for product, _ in lexicon.uses])),
        "nouns": np.array([number(product) for product, _ in lexicon.nouns]),
        "attributes": np.array([number([product for product, _ in pairs]) for pairs in lexicon.attributes]),
        "selling": np.array(number(lexicon.selling)),
    }
    words.append("")  # no word
    return np.array(words, object), numbers
