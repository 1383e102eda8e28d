"""The words of titles: how many a title has, how many a pair shares, how many of the newest are unknown.

Paper: Sec. II-C, Eq. 1, Table II. Suffixes: K = bins, L = numbers of words.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date

import duckdb
import numpy as np
import pyarrow as pa

from storyrec.features.similarity import SIMILARITY_EDGES, title_similarity
from storyrec.features.titles import NUM_THREADS, split_titles, train_vocabulary
from storyrec.logs.partitions import day_number
from storyrec.progress import Tracker
from storyrec.schema import Domain

ROWS_AT_A_TIME = 100_000
TABLES = {Domain.STORY: "stories", Domain.PRODUCT: "products"}


@dataclass(frozen=True)
class TitleFigures:
    """The titles of one domain.

    Attributes:
        lengths_L: titles with 0, 1, 2 ... words; a Han character is a word, as in the paper's figures.
        mean_length: words a title, over titles with a word; None without any.
        num_new: titles of items that were first there on the last day.
        num_new_words: words of these, split and cut as the model reads them.
        num_unknown_words: those of them that the vocabulary of the days before lacks.
    """

    lengths_L: tuple[int, ...]
    mean_length: float | None
    num_new: int
    num_new_words: int
    num_unknown_words: int


@dataclass(frozen=True)
class Titles:
    """The titles of both domains.

    Attributes:
        story, product: by domain.
        vocabulary_size: of the vocabulary trained on the days before the last one.
        num_distinct_words: that those days have, a Han character being a word.
        similarity_K: pairs in each bin of Table II.
    """

    story: TitleFigures
    product: TitleFigures
    vocabulary_size: int
    num_distinct_words: int
    similarity_K: tuple[int, ...]


def measure_titles(
    connection: duckdb.DuckDBPyConnection,
    *,
    last_day: date,
    vocabulary_size: int,
    min_word_count: int,
    max_title_words: int,
    progress: Tracker,
) -> Titles:
    """Count words; an item that changed on the last day counts among the earlier ones with its new title.

    Args:
        connection: of `open_database`.
        last_day: its new titles meet the vocabulary of the days before.
        vocabulary_size, min_word_count, max_title_words: as the models' vocabulary is trained and used.
        progress: advances by 3.
    """
    earlier: list[pa.StringArray] = []
    distinct: set[str] = set()
    lengths: dict[Domain, np.ndarray] = {}
    new: dict[Domain, list[str]] = {}
    for domain, table in TABLES.items():
        lengths[domain], new[domain] = np.zeros(1, np.int64), []
        batches = _batches(connection, f"SELECT coalesce(title, '') AS title, first_day FROM {table}")
        with ThreadPoolExecutor(NUM_THREADS) as pool:  # splitting leaves the interpreter to the others
            for words in pool.map(lambda batch: _count_words(batch, last_day=day_number(last_day)), batches):
                lengths[domain] = _add(lengths[domain], words.counts_L)
                distinct.update(words.distinct.to_pylist())
                earlier.append(words.earlier)
                new[domain] += words.new.to_pylist()
        progress.advance(note="titles")
    vocabulary = train_vocabulary(
        pa.chunked_array(earlier, pa.string()), size=vocabulary_size, min_count=min_word_count
    )
    figures = {}
    for domain in Domain:
        unknown = vocabulary.count_unknown(new[domain], max_words=max_title_words)
        num_titles = lengths[domain][1:].sum()
        figures[domain] = TitleFigures(
            lengths_L=tuple(lengths[domain].tolist()),
            mean_length=float(lengths[domain] @ np.arange(len(lengths[domain])) / num_titles) if num_titles else None,
            num_new=unknown.num_titles,
            num_new_words=unknown.num_words,
            num_unknown_words=unknown.num_unknown,
        )
    similarity_K = _similarities(connection)
    progress.advance(note="pairs")
    return Titles(
        story=figures[Domain.STORY],
        product=figures[Domain.PRODUCT],
        vocabulary_size=vocabulary.size,
        num_distinct_words=len(distinct),
        similarity_K=tuple(similarity_K.tolist()),
    )


@dataclass(frozen=True)
class _Words:
    """Some titles: how many have 0, 1, 2 ... words, the words of the earlier days, and the titles by age."""

    counts_L: np.ndarray
    distinct: pa.StringArray
    earlier: pa.StringArray
    new: pa.StringArray


def _count_words(batch: pa.RecordBatch, *, last_day: int) -> _Words:
    is_new = np.asarray(batch["first_day"].to_numpy()) == last_day
    words, starts = split_titles(batch["title"])
    lengths = np.diff(starts)
    distinct = words.filter(pa.array(np.repeat(~is_new, lengths))).unique()
    titles = batch["title"]
    return _Words(np.bincount(lengths), distinct, titles.filter(pa.array(~is_new)), titles.filter(pa.array(is_new)))


def _similarities(connection: duckdb.DuckDBPyConnection) -> np.ndarray:
    query = """SELECT coalesce(s.title, '') AS story, coalesce(p.title, '') AS product
               FROM pairs JOIN stories s USING (story_row) JOIN products p USING (product_row)"""
    counts_K = np.zeros(len(SIMILARITY_EDGES) - 1, np.int64)
    for batch in _batches(connection, query):
        similarity_M = title_similarity(*split_titles(batch["story"]), *split_titles(batch["product"]))
        counts_K += np.histogram(similarity_M, SIMILARITY_EDGES)[0]
    return counts_K


def _batches(connection: duckdb.DuckDBPyConnection, query: str) -> Iterator[pa.RecordBatch]:
    yield from connection.sql(query).to_arrow_reader(ROWS_AT_A_TIME)


def _add(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The sum of two arrays of which the shorter one goes on with zeros."""
    total = np.zeros(max(len(one), len(other)), np.int64)
    total[: len(one)] += one
    total[: len(other)] += other
    return total
