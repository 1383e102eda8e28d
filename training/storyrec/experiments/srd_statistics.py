"""What the paper says of its pairs, measured on the lines of a pre-training file.

Paper: Sec. II-C, Eq. 1, Table II. Suffixes: M = pairs, V = raw cover.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from storyrec.features.similarity import SIMILARITY_EDGES, title_similarity
from storyrec.logs.srd_files import TITLE_LENGTH, Line
from storyrec.schema import COVER_WIDTH


def describe_sample(lines: Sequence[Line]) -> dict[str, Any]:
    """Lengths, covers, raw-cover retrieval and title similarity of the first pair of each line.

    Other pairs' distances are those between a line's story and the product of its second pair.

    Args:
        lines: of a pre-training file, with different stories.

    Returns:
        The figures by name; lengths in tokens, distances Euclidean, `title_similarity_shares` in the five
        bins of Table II.
    """
    stories, products = ([_title(line, column) for line in lines] for column in (2, 4))
    story_covers_MV, product_covers_MV, other_covers_MV = (
        np.stack([_cover(line, column) for line in lines]) for column in (6, 7, 15)
    )
    norms_M = np.linalg.norm(np.concatenate([story_covers_MV, product_covers_MV]), axis=1)
    distances_MM = np.linalg.norm(product_covers_MV[:, None] - story_covers_MV[None], axis=2)
    own_M = np.diagonal(distances_MM)
    nearer_M = (distances_MM < own_M[:, None]).sum(axis=1)
    similarity_M = title_similarity(*_flat(stories), *_flat(products))
    return {
        "num_pairs": len(lines),
        "story_title_length": float(np.mean([len(tokens) for tokens in stories])),
        "product_title_length": float(np.mean([len(tokens) for tokens in products])),
        "largest_norm_error": float(np.abs(norms_M - 1).max()),
        "own_cover_distance": float(own_M.mean()),
        "other_cover_distance": float(np.linalg.norm(story_covers_MV - other_covers_MV, axis=1).mean()),
        "raw_cover_hit_at_1": float((nearer_M < 1).mean()),
        "raw_cover_hit_at_5": float((nearer_M < 5).mean()),
        "title_similarity_shares": (np.histogram(similarity_M, SIMILARITY_EDGES)[0] / len(lines)).tolist(),
    }


def _flat(titles: list[list[int]]) -> tuple[list[int], np.ndarray[Any, np.dtype[np.int64]]]:
    """The tokens of all titles, and where each title's start, the end as last entry."""
    return [*chain.from_iterable(titles)], np.cumsum([0, *map(len, titles)])


def _title(line: Line, column: int) -> list[int]:
    return line.numbers_at(column, count=line.number_at(column + 1, high=TITLE_LENGTH))


def _cover(line: Line, column: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    cover = line.cover(line.split(column, width=COVER_WIDTH), column=column)
    return np.zeros(COVER_WIDTH, np.float32) if cover is None else cover
