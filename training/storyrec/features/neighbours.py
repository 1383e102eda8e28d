"""The stories nearest to a vector, by the matching vectors of one model: an inverted file, built once a version.

A folder a version, written whole:
    index.json                  which model, how many cells are probed, and the recall that was measured
    stories.faiss               the inverted file; it holds the stories' vectors
    story_ids.npy, product_ids.npy, product_vectors.npy     ids are sorted

Everything large is memory-mapped. An exact search probes all cells of the same file: no second index.
Distances are Euclidean. Paper: Sec. IV-G.

Suffixes: C = clicks, N = stories, M = products, Q = queries, K = stories found, D = width.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from storyrec.arrays import load_array
from storyrec.errors import DataError, ModelError
from storyrec.manifest import VERSION
from storyrec.schema import Domain
from storyrec.storage import write_folder

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

FOLDER = "features/neighbours"
INDEX, STORIES = "index.json", "stories.faiss"
ARRAYS = ("story_ids.npy", "product_ids.npy", "product_vectors.npy")
DEPTHS = (10, 500)  # nearest stories whose recall is measured
AIMED_RECALL = 0.995  # of the queries that choose how many cells are probed, so that others reach 0.99
NUM_QUERIES = 256  # of each domain: one half chooses how many cells are probed, the other is for the record
MIN_PROBED = 4  # cells, where as many were chosen
MIN_STORIES_PER_CELL = 39  # fewer make poor cells
MAX_TRAINING_STORIES_PER_CELL = 64  # more made no better cells, in a multiple of the time


@dataclass(frozen=True)
class IndexInfo:
    """What index.json says.

    Attributes:
        version: of the model.
        num_stories, num_products, width: what the index holds.
        num_cells, num_probed: of the inverted file; an approximate search looks into the nearest `num_probed`.
        recall: by domain of the queries and number of stories, the share of the exact nearest that was found.
    """

    version: str
    num_stories: int
    num_products: int
    width: int
    num_cells: int
    num_probed: int
    recall: dict[str, dict[int, float]]


class StoryIndex:
    """The stories of one model version, searched exactly or approximately.

    Attributes:
        info: what index.json says.
        story_ids_N, product_ids_M: sorted.
    """

    def __init__(
        self, info: IndexInfo, index: Any, *, story_ids_N: Int64s, product_ids_M: Int64s, products_MD: Floats
    ) -> None:
        self.info, self._index = info, index
        self.story_ids_N, self.product_ids_M, self._products_MD = story_ids_N, product_ids_M, products_MD

    @classmethod
    def load(cls, folder: Path, *, version: str) -> "StoryIndex":
        """Open the index of a model version.

        Raises:
            ModelError: the folder holds none, another version's, or a damaged one.
        """
        if not VERSION.fullmatch(version):
            raise ModelError(
                f"'{version}' is no model version",
                expected="16 hex digits, as `storyrec registry show` prints them",
                remedy="name a published version",
            )
        if not (folder / INDEX).is_file():
            others = indexed_versions(folder.parent)
            raise ModelError(
                f"there is no index of model {version}",
                expected=f"one of {', '.join(others)}" if others else "a model that is published",
                where=str(folder),
                remedy="name a published version, or run publish_features for the champion's day",
            )
        try:
            read = json.loads((folder / INDEX).read_bytes())
            recall = {name: {int(k): share for k, share in by.items()} for name, by in read["recall"].items()}
            info = IndexInfo(**{**read, "recall": recall})
            index = faiss.read_index(str(folder / STORIES), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
            story_ids_N, product_ids_M, products_MD = (load_array(folder / name) for name in ARRAYS)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise _damaged(folder, f"it cannot be read ({type(error).__name__})") from error
        if info.version != version:
            raise _damaged(folder, f"it is of model {info.version}, not of {version}")
        found = (index.ntotal, index.d, len(story_ids_N), len(product_ids_M), products_MD.shape)
        says = (info.num_stories, info.width, info.num_stories, info.num_products, (info.num_products, info.width))
        if found != says:
            raise _damaged(folder, "its files do not belong together")
        return cls(info, index, story_ids_N=story_ids_N, product_ids_M=product_ids_M, products_MD=products_MD)

    def vectors(self, item_ids: Int64s, *, domain: Domain) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """The matching vectors of those items that the model knows, and which of the asked ones they are."""
        ids = self.story_ids_N if domain == Domain.STORY else self.product_ids_M
        rows = np.searchsorted(ids, item_ids)
        known = np.searchsorted(ids, item_ids, side="right") > rows
        if domain == Domain.PRODUCT:
            return self._products_MD[rows[known]], known
        return self._index.reconstruct_batch(rows[known]), known

    def search(
        self, queries_QD: Floats, *, top_k: int, exact: bool = False, share: float = 1.0
    ) -> tuple[Int64s, Floats]:
        """The nearest stories of every query, nearest first.

        Args:
            queries_QD: of the index's width.
            top_k: how many stories; all where there are fewer.
            exact: probe all cells.
            share: of the cells that an approximate search probes; many queries together need fewer each.

        Returns:
            rows_QK: int64 places in `story_ids_N`; distances_QK: float32, Euclidean, ascending.

        Raises:
            DataError: the queries have another width, or are not finite.
        """
        queries_QD = np.ascontiguousarray(queries_QD, np.float32)
        if queries_QD.ndim != 2 or queries_QD.shape[1] != self.info.width or not np.isfinite(queries_QD).all():
            raise DataError(
                f"the queries cannot be compared with the stories: their shape is {queries_QD.shape}",
                expected=f"finite vectors of width {self.info.width}",
                where=f"the index of model {self.info.version}",
                remedy="ask with matching vectors of the same model version; the ranker's vectors are another space",
            )
        num_probed = max(min(self.info.num_probed, MIN_PROBED), round(share * self.info.num_probed))
        squares_QK, rows_QK = self._probe(queries_QD, top_k, self.info.num_cells if exact else num_probed)
        short_Q = np.flatnonzero(rows_QK[:, -1] < 0)  # the probed cells held fewer than asked for
        if len(short_Q):
            squares_QK[short_Q], rows_QK[short_Q] = self._probe(queries_QD[short_Q], top_k, self.info.num_cells)
        return rows_QK, np.sqrt(squares_QK)

    def recall(self, queries_QD: Floats, *, depths: Sequence[int]) -> dict[int, float]:
        """The share of the exact nearest stories that lie in the probed cells, by their number.

        By distance: of stories at one distance, any may stand for the others.
        """
        found_QK, exact_QK = (
            self._probe(queries_QD, max(depths), num_cells)[0]
            for num_cells in (self.info.num_probed, self.info.num_cells)
        )
        return _shares(found_QK, exact_QK, depths=depths)

    def _probe(self, queries_QD: Floats, top_k: int, num_cells: int) -> tuple[Floats, Int64s]:
        return _probe(self._index, queries_QD, min(top_k, self.info.num_stories), num_cells)


def build_index(items: Mapping[str, npt.NDArray[Any]], *, version: str, folder: Path) -> StoryIndex:
    """Index the stories of a bundle and write the index, whole or not at all.

    The number of probed cells is doubled until the recall of the nearest 10 and 500 reaches 0.995, with products and
    with stories as queries. The recall on record is that of other queries.

    Args:
        items: the arrays of the bundle's item table; row 0 is padding.
        version: of the bundle.
        folder: replaced whole.

    Raises:
        ModelError: there is no story, or a vector is not finite.
    """
    story_ids_N, stories_ND = items["story_ids"][1:], _vectors(items["story_match_vectors"])
    product_ids_M, products_MD = items["product_ids"][1:], _vectors(items["product_match_vectors"])
    if not len(stories_ND) or not (np.isfinite(stories_ND).all() and np.isfinite(products_MD).all()):
        raise ModelError(
            f"the matching vectors of {len(stories_ND)} stories and {len(products_MD)} products cannot be indexed",
            expected="at least one story, and finite vectors",
            where=f"the items of model {version}",
            remedy="pack the bundle again",
        )
    index = _inverted_file(stories_ND)
    num_probed, recall = _tuned(index, {"product": spread(products_MD), "story": spread(stories_ND)})
    info = IndexInfo(version, len(stories_ND), len(products_MD), index.d, index.nlist, num_probed, recall)
    with write_folder(folder) as new:
        faiss.serialize_index(index).tofile(new / STORIES)  # FAISS's own writer does not say that the disk is full
        for name, values in zip(ARRAYS, (story_ids_N, product_ids_M, products_MD), strict=True):
            np.save(new / name, values)
        (new / INDEX).write_text(json.dumps(asdict(info), indent=2))
    return StoryIndex(info, index, story_ids_N=story_ids_N, product_ids_M=product_ids_M, products_MD=products_MD)


def nearest_to_clicks(
    index: StoryIndex, clicks_CD: Floats, *, top_k: int, exact: bool = False, share: float = 1.0
) -> tuple[Int64s, Floats]:
    """The stories nearest to some vectors together, nearest first.

    A user's interest is all clicks of both sequences, each in its own place: a story's distance to them is the soft
    minimum -ln(mean over the clicks of exp(-distance)). On held-out clicks that found more than the nearest click
    alone, and far more than the mean of the clicks: people have several interests (docs/feature-store.md).

    Of each click only its `top_k` nearest stories are looked at; it adds nothing to the others.

    Args:
        index: of the stories.
        clicks_CD: matching vectors, at least one.
        top_k: how many stories.
        exact: compare all stories.
        share: of the cells that are probed for each click.

    Returns:
        rows_K: places in `index.story_ids_N`; distances_K: the soft minimum, of one vector the distance itself.
    """
    rows_CK, distances_CK = index.search(clicks_CD, top_k=top_k, exact=exact, share=share)
    rows, places = np.unique(rows_CK, return_inverse=True)
    nearness = np.full(len(rows), -np.inf)  # ln(sum of exp(-distance))
    np.logaddexp.at(nearness, places.ravel(), -distances_CK.ravel().astype(np.float64))
    distances = np.log(len(clicks_CD)) - nearness
    best_K = np.argsort(distances, kind="stable")[:top_k]
    return rows[best_K], distances[best_K].astype(np.float32)


def index_folder(work: Path, version: str) -> Path:
    """Where the index of a model version lies below the work folder."""
    return work / FOLDER / version


def indexed_versions(folder: Path) -> list[str]:
    """The model versions whose indexes lie in a folder, sorted."""
    return sorted(path.parent.name for path in folder.glob(f"[!.]*/{INDEX}"))


def spread(vectors: Floats) -> Floats:
    """A few rows, spread evenly."""
    return vectors[np.linspace(0, len(vectors) - 1, min(NUM_QUERIES, len(vectors))).astype(np.int64)]


def _inverted_file(stories_ND: Floats) -> Any:
    num_stories, width = stories_ND.shape
    # the square root keeps choosing and scanning cells in balance; more cells cost much longer to train
    num_cells = max(1, min(round(num_stories**0.5), num_stories // MIN_STORIES_PER_CELL))
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, num_cells)
    index.cp.min_points_per_centroid = 1
    index.cp.max_points_per_centroid = MAX_TRAINING_STORIES_PER_CELL
    index.train(stories_ND)
    index.add(stories_ND)
    index.make_direct_map()  # so that a story's vector is found by its row
    return index


def _tuned(index: Any, queries: Mapping[str, Floats]) -> tuple[int, dict[str, dict[int, float]]]:
    """How many cells are probed, and the recall of those queries that did not choose it."""
    top_k, num_probed = min(DEPTHS[-1], index.ntotal), 1
    exact = {name: _probe(index, some, top_k, index.nlist)[0] for name, some in queries.items()}
    while True:
        found = {name: _probe(index, some, top_k, num_probed)[0] for name, some in queries.items()}
        reached = [_shares(found[name][::2], exact[name][::2]) for name in queries if len(exact[name])]
        if num_probed == index.nlist or min(min(shares.values()) for shares in reached) >= AIMED_RECALL:
            break
        num_probed = min(2 * num_probed, index.nlist)
    return num_probed, {name: _shares(found[name][1::2], exact[name][1::2]) for name in queries if len(exact[name]) > 1}


def _probe(index: Any, queries_QD: Floats, top_k: int, num_cells: int) -> tuple[Floats, Int64s]:
    """Squared distances and rows of the stories in the nearest cells; row -1, very far, where these hold too few."""
    parameters = faiss.SearchParametersIVF(nprobe=num_cells)  # type: ignore[call-arg]  # its stubs lack it
    return index.search(queries_QD, top_k, params=parameters)


def _shares(found_QK: Floats, exact_QK: Floats, *, depths: Sequence[int] = DEPTHS) -> dict[int, float]:
    return {k: float((found_QK[:, :k] <= exact_QK[:, :k][:, -1:]).mean()) for k in depths}


def _vectors(padded: npt.NDArray[Any]) -> Floats:
    return np.ascontiguousarray(padded[1:], np.float32)


def _damaged(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"the index of the stories cannot be used: {why}",
        expected="an index as publish_features writes it",
        where=str(folder),
        remedy="remove the folder and run publish_features again",
    )
