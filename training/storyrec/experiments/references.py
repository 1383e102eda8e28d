"""What methods are compared with besides each other: the oracle, popularity, an untrained title probe."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize

from storyrec.config import Config
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.evaluate import popularity, true_probabilities
from storyrec.metrics import summarize
from storyrec.progress import track

Floats = npt.NDArray[np.float64]
BLOCK = 50_000


def score_references(config: Config, data: Dataset) -> Mapping[str, Mapping[str, float]]:
    """The figures of each reference on the held-out impressions.

    Returns:
        "oracle" (only where the true click probabilities are known), "popularity" and "title probe".
    """
    holdout = data.holdout
    truth_B = true_probabilities(config, data)
    scores = {"popularity": popularity(data), "title probe": title_probe(data, holdout)}
    figures = {name: _summarize(config, holdout, scores_B) for name, scores_B in scores.items()}
    if truth_B is None:
        return figures
    (known,) = np.nonzero(np.isfinite(truth_B))
    return {"oracle": _summarize(config, holdout.take(known), truth_B[known])} | figures


def title_probe(data: Dataset, instances: Instances) -> Floats:
    """The mean cosine of the target's title with the titles of both sequences, words weighted by rarity, [B].

    Nothing is trained: what titles alone tell.
    """
    vectorizer = TfidfVectorizer(analyzer=str.split, lowercase=False)
    vectorizer.fit([*data.stories.titles, *data.products.titles])
    stories_NW = vectorizer.transform(data.stories.titles).tocsr()
    products_NW = vectorizer.transform(data.products.titles).tocsr()
    scores_B = np.zeros(len(instances))
    with track("title_probe", total=len(instances)) as progress:
        for start in range(0, len(instances), BLOCK):
            part = instances.take(np.arange(start, min(start + BLOCK, len(instances))))
            targets_BW = stories_NW[part.story_rows_B]
            for items_NW, rows_C, first_B, stop_B in (
                (stories_NW, data.story_click_rows_C, part.story_start_B, part.story_stop_B),
                (products_NW, data.product_click_rows_C, part.product_start_B, part.product_stop_B),
            ):
                pooled_BW = normalize(_slices(rows_C, first_B, stop_B, num_rows=items_NW.shape[0]) @ items_NW)
                scores_B[start : start + len(part)] += np.asarray(targets_BW.multiply(pooled_BW).sum(axis=1)).ravel()
            progress.advance(len(part))
    return scores_B / 2


def _slices(
    rows_C: npt.NDArray[np.int64], start_B: npt.NDArray[np.int64], stop_B: npt.NDArray[np.int64], *, num_rows: int
) -> sparse.csr_array:
    """Which catalog rows each slice of the clicks holds, as a matrix [B, N] of counts."""
    lengths_B = stop_B - start_B
    pointers = np.concatenate([[0], np.cumsum(lengths_B)])
    positions = np.arange(pointers[-1]) + np.repeat(start_B - pointers[:-1], lengths_B)
    return sparse.csr_array((np.ones(len(positions)), rows_C[positions], pointers), shape=(len(start_B), num_rows))


def _summarize(config: Config, instances: Instances, scores_B: Floats) -> dict[str, float]:
    settings = config.evaluation
    return summarize(
        instances.user_ids_B,
        instances.clicked_B,
        scores_B,
        num_candidates=settings.num_candidates,
        top_k=settings.top_k,
        seed=settings.seed,
    )
