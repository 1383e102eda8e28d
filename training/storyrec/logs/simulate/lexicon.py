"""The words of the simulated marketplace, read from `lexicon.toml` beside this file."""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

NUM_CATEGORIES = 36
SUBTOPICS_PER_CATEGORY = 6
NOUNS_PER_SUBTOPIC = 3
ATTRIBUTES_PER_CATEGORY = 8
NUM_BRANDS = 300


@dataclass(frozen=True)
class Style:
    """Phrases of one way to tell a story; every phrase is a tuple of words."""

    name: str
    adjectives: tuple[str, ...]
    openers2: tuple[tuple[str, ...], ...]
    openers3: tuple[tuple[str, ...], ...]
    closers3: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Lexicon:
    """Two vocabularies of the same concepts: index 0 of a pair is the product's word, 1 the story's.

    Attributes:
        categories: names, in the order of category ids 1, 2, ...
        nouns: for each subtopic, the words of both domains.
        attributes: for each category, pairs of words.
        selling: what merchants add to any title.
        trends: what those who tell stories take from English.
    """

    categories: tuple[str, ...]
    nouns: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    attributes: tuple[tuple[tuple[str, str], ...], ...]
    colours: tuple[tuple[str, str], ...]
    uses: tuple[tuple[str, str], ...]
    sizes: tuple[str, ...]
    selling: tuple[str, ...]
    trends: tuple[str, ...]
    brands: tuple[str, ...]
    styles: tuple[Style, ...]
    clickbait: tuple[tuple[str, ...], ...]


@functools.cache
def load_lexicon() -> Lexicon:
    """The lexicon that ships with the package."""
    words = tomllib.loads((Path(__file__).parent / "lexicon.toml").read_text(encoding="utf-8"))
    nouns = []
    for category in words["category"]:
        for line in category["subtopics"]:
            product, story = line.split(" | ")
            nouns.append((tuple(product.split()), tuple(story.split())))
    return Lexicon(
        categories=tuple(category["name"] for category in words["category"]),
        nouns=tuple(nouns),
        attributes=tuple(_pairs(category["attributes"]) for category in words["category"]),
        colours=_pairs(words["colours"]),
        uses=_pairs(words["uses"]),
        sizes=tuple(words["sizes"].split()),
        selling=tuple(words["selling"].split()),
        trends=tuple(words["trends"].split()),
        brands=_brands(),
        styles=tuple(
            Style(
                style["name"],
                tuple(style["adjectives"].split()),
                _phrases(style["openers2"]),
                _phrases(style["openers3"]),
                _phrases(style["closers"]),
            )
            for style in words["style"]
        ),
        clickbait=tuple(tuple(title.split()) for title in words["clickbait"]["titles"]),
    )


def _pairs(line: str) -> tuple[tuple[str, str], ...]:
    pairs = [concept.split("/") for concept in line.split()]
    return tuple((product, story) for product, story in pairs)


def _phrases(line: str) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(phrase.split()) for phrase in line.split("|"))


def _brands() -> tuple[str, ...]:
    first = ("ba", "lu", "no", "ki", "ve", "sa", "mo", "ra", "ti", "zo", "hu", "pe")
    middle = ("ra", "mi", "vo", "ne", "ly")
    last = ("lux", "na", "ra", "tek", "dor")
    brands = [a + b + c for a in first for b in middle for c in last]
    return tuple(brands[:NUM_BRANDS])
