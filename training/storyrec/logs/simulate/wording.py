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

from storyrec.logs.simulate.lexicon import Lexicon, load_lexicon
from storyrec.logs.simulate.world import Floats, Ints, Items, StoryTraits, Topics

CLICKBAIT_SHARE = 0.05  # Paper: Table IX, case 2
# for each bin: how many words the story has of its own (opener, adjective + noun, closer) and how many it copies
SHAPES: tuple[tuple[tuple[str, int], ...], ...] = (
    (("oanc", 0), ("pnac", 0), ("oanc", 1), ("anc", 0), ("pan", 0)),
    (("oan", 2), ("anc", 2), ("pan", 2), ("anc", 3)),
    (("pn", 3), ("c", 3), ("pan", 4), ("an", 2), ("o", 4)),
    (("an", 4), ("an", 5), ("p", 5), ("an", 3), ("o", 5)),
    (("n", 5), ("", 5), ("n", 6), ("", 6)),
)
COPY_WEIGHT = {"noun": 4.0, "attribute": 2.0, "colour": 1.5, "use": 1.0, "brand": 0.3, "size": 0.3}
KINDS = ("brand", "attribute", "colour", "attribute", "noun", "noun", "attribute", "use", "size")
FIRST_CHARACTER, NUM_CHARACTERS = 0x4E00, 3_000  # words are spelt with these

Word = TypeVar("Word")


class Wording:
    """Turns items into titles; the same latent always names the same concepts."""

    def __init__(self, topics: Topics, *, shared_words: bool, title_shares: Sequence[float]) -> None:
        """Prepare the words.

        Args:
            topics: what items are about.
            shared_words: whether stories use the products' keywords.
            title_shares: how alike the titles of pairs are, in the bins of Table II.
        """
        self._title_shares = title_shares
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
        self.width = len(KINDS)

    def product_words(self, items: Items, rows: Ints, *, rng: np.random.Generator) -> npt.NDArray[np.int16]:
        """Keyword titles as numbers of words, nine each, in the order of KINDS, [n, 9]."""
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
        return np.stack(columns, axis=1).astype(np.int16)

    def titles(self, words_NW: npt.NDArray[np.int16]) -> list[list[str]]:
        """The words that numbers of `product_words` stand for."""
        titles: list[list[str]] = self._words[words_NW].tolist()
        return titles

    def story_words(
        self,
        items: Items,
        traits: StoryTraits,
        rows: Ints,
        *,
        mounted: Sequence[list[str] | None],
        rng: np.random.Generator,
    ) -> list[list[str]]:
        """Story titles; `mounted` holds the words of each story's first mounted product, None where there is none."""
        lexicon, side = self._lexicon, self._story_side
        attributes, colours, _ = self._concepts(items, rows)
        voiced_NE = traits.style_NE[rows] + 0.5 * rng.standard_normal((len(rows), traits.style_NE.shape[1]))
        styles = np.argmax(voiced_NE, axis=1)
        bins = rng.choice(len(self._title_shares), len(rows), p=self._title_shares)
        draws = rng.random((len(rows), 9))
        keys = rng.random((len(rows), len(KINDS))) ** (1 / np.array([COPY_WEIGHT[kind] for kind in KINDS]))
        copy_order = np.argsort(-keys, axis=1)
        clickbait_chance = CLICKBAIT_SHARE / self._title_shares[0]

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

    def _concepts(self, items: Items, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """Attributes [n, 3], colour [n] and use [n] that an item's place within its subtopic stands for."""
        offset: Floats = items.latent_NZ[rows] - self._centres_TZ[items.topic_N[rows]]
        attributes = np.argsort(-(offset @ self._attribute_ZA), axis=1)[:, :3]
        return attributes, np.argmax(offset @ self._colour_ZA, axis=1), np.argmax(offset @ self._use_ZA, axis=1)


def _pick(words: Sequence[Word], draw: float) -> Word:
    return words[int(draw * len(words))]


def spell(words: Sequence[str], *, language: Literal["en", "zh"]) -> str:
    """A title out of its words: as they are, or each as two Chinese characters without spaces between."""
    return " ".join(words) if language == "en" else "".join(map(_in_chinese, words))


@functools.cache
def _in_chinese(word: str) -> str:
    first, second = divmod(zlib.crc32(word.encode()) % NUM_CHARACTERS**2, NUM_CHARACTERS)
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
    }
    return np.array(words, object), numbers
