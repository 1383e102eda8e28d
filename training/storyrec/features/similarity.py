"""How many words the titles of a pair share. Paper: Sec. II-C, Eq. 1, Table II.

Suffixes: M = pairs, W = words.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from storyrec.features.sequences import distinct

SIMILARITY_EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""The five bins of Table II; the last one holds 1 itself."""


def title_similarity(
    story_words: pa.Array | Sequence[str] | Sequence[int],
    story_starts: npt.NDArray[np.int64],
    product_words: pa.Array | Sequence[str] | Sequence[int],
    product_starts: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    """Distinct words that both titles of each pair have, over those of the one that has fewer. Paper: Eq. 1.

    Args:
        story_words, product_words: the words of all titles, one title after the other.
        story_starts, product_starts: where each title's words start, the end as last entry, [M + 1].

    Returns:
        [M] in 0 to 1; 0 where a title has no word.
    """
    words = pa.concat_arrays([pa.array(story_words), pa.array(product_words)]).dictionary_encode()
    codes_W = np.asarray(words.indices.to_numpy(), np.int64)
    stride, num_stories = max(len(words.dictionary), 1), len(story_words)
    stories, products = (
        distinct(np.sort(np.repeat(np.arange(len(starts) - 1), np.diff(starts)) * stride + part_W))
        for starts, part_W in ((story_starts, codes_W[:num_stories]), (product_starts, codes_W[num_stories:]))
    )
    num_pairs = len(story_starts) - 1
    shared = np.intersect1d(stories, products, assume_unique=True)
    shared_M, stories_M, products_M = (
        np.bincount(words // stride, minlength=num_pairs) for words in (shared, stories, products)
    )
    return shared_M / np.maximum(np.minimum(stories_M, products_M), 1)
