"""Titles of the simulated marketplace: keywords for products, told sentences for stories.

Product titles are keywords; a story uses other words for the same concepts, copies a share of
its first mounted product's words, and adds a style's opening and closing. Paper: Sec. II-C, Table II.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from storyrec.logs.simulate.lexicon import Lexicon, load_lexicon
from storyrec.logs.simulate.world import Floats, Ints, Items, StoryTraits, Topics

# Table II is a statement about all pairs. Pairs with a second or third mounted product, whose words were not copied,
# are nearly all in the lower bins, so the first ones are drawn from a little above it
SHARE_BINS = (0.388, 0.1735, 0.109, 0.124, 0.2055)
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


Word = TypeVar("Word")


class Wording:
    """Turns items into titles; the same latent always names the same concepts."""

    def __init__(self, topics: Topics, *, shared_words: bool) -> None:
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

    def product_words(self, items: Items, rows: Ints, *, rng: np.random.Generator) -> list[list[str]]:
        """Keyword titles, nine words each, in the order of KINDS."""
        lexicon = self._lexicon
        attributes, colours, uses = self._concepts(items, rows)
        noun = rng.integers(0, 3, len(rows))
        brand = rng.integers(0, len(lexicon.brands), len(rows))
        size = rng.integers(0, len(lexicon.sizes), len(rows))
        titles = []
        for i, row in enumerate(rows):
            topic = items.topic_N[row]
            nouns = lexicon.nouns[topic][0]
            own = lexicon.attributes[self._category_T[topic]]
            titles.append(
                [
                    lexicon.brands[brand[i]],
                    own[attributes[i, 0]][0],
                    lexicon.colours[colours[i]][0],
                    own[attributes[i, 1]][0],
                    nouns[noun[i]],
                    nouns[(noun[i] + 1) % 3],
                    own[attributes[i, 2]][0],
                    lexicon.uses[uses[i]][0],
                    lexicon.sizes[size[i]],
                ]
            )
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
        bins = rng.choice(len(SHARE_BINS), len(rows), p=SHARE_BINS)
        draws = rng.random((len(rows), 9))
        keys = rng.random((len(rows), len(KINDS))) ** (1 / np.array([COPY_WEIGHT[kind] for kind in KINDS]))
        copy_order = np.argsort(-keys, axis=1)
        clickbait_chance = CLICKBAIT_SHARE / SHARE_BINS[0]

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
