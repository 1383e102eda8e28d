"""The bundle: everything that serving one model needs, in one folder with sums.

    manifest.json       format, version, day and the SHA-256 of every file; written last
    ranker.onnx         item vectors and time blocks -> click probabilities, a user's sequences per row
    ranker_of_one_user.onnx     the same for many candidates of one user; also gives the attention weights
    aden.safetensors    fine-tuned extractors and ranker: embed new items
    dual.safetensors    pre-trained extractors: match stories to products
    tokenizer.json, config.toml (windows resolved), training.json
    items/*.npy         ids, item vectors and matching vectors of both domains; row 0 is padding
    evaluation.json, verdict.json, model_card.md    added by the deployment

Loading and scoring need onnxruntime and numpy alone; torch is imported only to pack a bundle and to
embed items that its tables do not hold.
Suffixes: B batch, S and P sequences, D width, M matching width, N items with the padding row.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from storyrec.arrays import load_array
from storyrec.config import Config, load_config
from storyrec.errors import ConfigError, ModelError
from storyrec.manifest import Manifest, verify_folder
from storyrec.schema import Domain

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from storyrec.data.batches import Batch
    from storyrec.data.catalog import Catalog
    from storyrec.features.titles import Vocabulary
    from storyrec.models.extractors import Extractors, RawItems

RANKER, RANKER_OF_ONE_USER = "ranker.onnx", "ranker_of_one_user.onnx"
ADEN, DUAL = "aden.safetensors", "dual.safetensors"
VOCABULARY, CONFIG, TRAINING = "tokenizer.json", "config.toml", "training.json"
NUM_PROBES = 16
NAMES = {Domain.STORY: "story", Domain.PRODUCT: "product"}

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ItemTable:
    """The items of one domain that a bundle knows, sorted by id; row 0 is padding.

    Attributes:
        ids_N: [N] int64, ids_N[0] = 0.
        vectors_ND: what the ranker reads, [N, D] float32.
        match_NM: what stories are matched to products by, [N, M] float32.
    """

    ids_N: Int64s
    vectors_ND: Floats
    match_NM: Floats

    def rows(self, item_ids: npt.ArrayLike) -> Int64s:
        """The row of each id, in the shape of `item_ids`; 0 for an unknown one."""
        ids = np.asarray(item_ids, np.int64)
        rows = np.minimum(np.searchsorted(self.ids_N, ids), len(self.ids_N) - 1)
        return np.where(self.ids_N[rows] == ids, rows, 0)

    def vectors(self, item_ids: npt.ArrayLike) -> Floats:
        """What the ranker reads of each id, the padding's row for an unknown one."""
        return self.vectors_ND[self.rows(item_ids)]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A loaded bundle.

    Attributes:
        folder: where it lies; must stay while the bundle is in use.
        manifest: its verified sums.
        config: the settings that made it, windows resolved.
        training: what training.json says.
        stories, products: the items that it knows.
    """

    folder: Path
    manifest: Manifest
    config: Config
    training: Mapping[str, Any]
    stories: ItemTable
    products: ItemTable
    _session: "InferenceSession"
    _session_of_one_user: "InferenceSession | None"

    @classmethod
    def load(cls, folder: Path) -> "Bundle":
        """Open a bundle after comparing every file with the manifest.

        Raises:
            ModelError: a file is missing, changed or cannot be read.
        """
        return cls.open_unverified(folder, verify_folder(folder))

    @classmethod
    def open_unverified(cls, folder: Path, manifest: Manifest) -> "Bundle":
        """Open the files of a bundle as they are; for a bundle that is just being packed."""
        try:
            return cls(
                folder=folder,
                manifest=manifest,
                config=load_config(folder / CONFIG),
                training=json.loads((folder / TRAINING).read_bytes()),
                stories=_load_table(folder, Domain.STORY),
                products=_load_table(folder, Domain.PRODUCT),
                _session=_load_ranker(folder / RANKER),
                _session_of_one_user=_load_ranker(folder / RANKER_OF_ONE_USER)
                if (folder / RANKER_OF_ONE_USER).exists()  # bundles of before have none
                else None,
            )
        except (OSError, ValueError, ConfigError) as error:
            raise ModelError(
                f"the bundle cannot be used: {error}",
                expected="a bundle that this version of storyrec packed",
                where=str(folder),
                remedy="pack it again, or roll back to an earlier one",
            ) from error

    @property
    def version(self) -> str:
        """16 hex digits that name the content."""
        return self.manifest.version

    @property
    def day(self) -> date:
        """The day whose run trained it."""
        return self.manifest.day

    @property
    def onnx_difference(self) -> float | None:
        """Largest |difference| of served and torch's probabilities on real impressions; None: not known."""
        return self.training.get("onnx_difference")

    @cached_property
    def vocabulary(self) -> "Vocabulary":
        """The words that the extractors know."""
        from storyrec.features.titles import Vocabulary

        return Vocabulary.load(self.folder / VOCABULARY)

    def table(self, domain: Domain) -> ItemTable:
        """The items of one domain."""
        return self.stories if domain == Domain.STORY else self.products

    def score(self, batch: "Batch", *, story_vectors: Floats, product_vectors: Floats) -> Floats:
        """Click probabilities of a batch.

        Args:
            batch: rows point into the two tables.
            story_vectors, product_vectors: [N, D] float32, row 0 is padding; from `vectors`, or the
                bundle's own tables.

        Returns:
            [B] float32 in [0, 1].
        """
        return self.run_ranker(
            target_BD=story_vectors[batch.story_rows_B],
            story_BSD=story_vectors[batch.story_slots_BS],
            story_blocks_BS=batch.story_blocks_BS,
            product_BPD=product_vectors[batch.product_slots_BP],
            product_blocks_BP=batch.product_blocks_BP,
        )

    def run_ranker(self, **inputs: npt.NDArray[Any]) -> Floats:
        """The ranker on its five inputs; names, shapes and types as in `export.INPUTS`."""
        if not len(inputs["target_BD"]):
            return np.empty(0, np.float32)
        return np.asarray(self._session.run(None, inputs)[0], np.float32)

    def rank_candidates(self, **inputs: npt.NDArray[Any]) -> Floats:
        """Click probabilities [B] of candidates for one user; inputs as in `export.INPUTS_OF_A_REQUEST`."""
        if self._session_of_one_user is None:
            num = len(inputs["target_BD"])
            return self.run_ranker(
                target_BD=inputs["target_BD"],
                story_BSD=_repeat(inputs["story_LD"], num),
                story_blocks_BS=_repeat(inputs["story_blocks_L"], num),
                product_BPD=_repeat(inputs["product_LD"], num),
                product_blocks_BP=_repeat(inputs["product_blocks_L"], num),
            )
        if not len(inputs["target_BD"]):
            return np.empty(0, np.float32)
        return np.asarray(self._session_of_one_user.run(["probabilities_B"], inputs)[0], np.float32)

    def attention_weights(self, **inputs: npt.NDArray[Any]) -> tuple[Floats, Floats]:
        """How much each head attends to each click of either domain, [B, H, L] each; inputs as above.

        Raises:
            ModelError: the bundle is of before such graphs.
        """
        if self._session_of_one_user is None:
            raise ModelError(
                f"bundle {self.version} cannot say what it attends to",
                expected=f"{RANKER_OF_ONE_USER}, which older versions did not pack",
                where=str(self.folder),
                remedy="wait for the next champion",
            )
        story_BHL, product_BHL = self._session_of_one_user.run(["story_weights_BHL", "product_weights_BHL"], inputs)
        return np.asarray(story_BHL, np.float32), np.asarray(product_BHL, np.float32)

    def probe(self) -> None:
        """Score a few stories of the table, one half of them for a user without clicks.

        Raises:
            ModelError: an answer is missing or no probability.
        """
        generator = np.random.default_rng(0)
        length = self.config.features.sequence_length

        def rows(table: ItemTable, *shape: int) -> Int64s:
            return generator.integers(len(table.ids_N), size=shape)

        blocks_BL = generator.integers(0, self.config.model.num_time_blocks + 2, size=(NUM_PROBES, length))
        blocks_BL[: NUM_PROBES // 2] = 0
        scores_B = self.run_ranker(
            target_BD=self.stories.vectors_ND[rows(self.stories, NUM_PROBES)],
            story_BSD=self.stories.vectors_ND[rows(self.stories, NUM_PROBES, length)],
            story_blocks_BS=blocks_BL,
            product_BPD=self.products.vectors_ND[rows(self.products, NUM_PROBES, length)],
            product_blocks_BP=blocks_BL,
        )
        of_one_user_B = self.rank_candidates(
            target_BD=self.stories.vectors_ND[rows(self.stories, NUM_PROBES)],
            story_LD=self.stories.vectors_ND[rows(self.stories, length)],
            story_blocks_L=blocks_BL[-1],
            product_LD=self.products.vectors_ND[rows(self.products, length)],
            product_blocks_L=blocks_BL[-1],
        )
        scores_B = np.concatenate([scores_B, of_one_user_B])
        if scores_B.shape != (2 * NUM_PROBES,) or not ((scores_B >= 0) & (scores_B <= 1)).all():
            raise ModelError(
                f"bundle {self.version} answers with scores that are no probabilities",
                where=str(self.folder),
                remedy="look at the training of its day; the champion stays",
            )

    def vectors(self, catalog: "Catalog", *, domain: Domain) -> Floats:
        """Item vectors [N, D] of a catalog, row by row: the bundle's own, new items embedded."""
        return self._complete(self.table(domain).vectors_ND, catalog, domain, self.embed)

    def match_vectors(self, catalog: "Catalog", *, domain: Domain) -> Floats:
        """Matching vectors [N, M] of a catalog, row by row: the bundle's own, new items embedded."""
        return self._complete(self.table(domain).match_NM, catalog, domain, self.embed_match)

    def embed(self, catalog: "Catalog", *, domain: Domain, rows_N: Int64s | None = None) -> Floats:
        """Item vectors of a catalog, or of some of its rows, by the fine-tuned extractors; needs torch."""
        from storyrec.export import item_vectors

        items = self._raw_items(catalog, domain, rows_N)
        return item_vectors(self._extractors(ADEN), items, pick=lambda features: features.item_ND)

    def embed_match(self, catalog: "Catalog", *, domain: Domain, rows_N: Int64s | None = None) -> Floats:
        """Matching vectors of a catalog, or of some of its rows, by the pre-trained extractors; needs torch."""
        from storyrec.export import item_vectors

        items = self._raw_items(catalog, domain, rows_N)
        return item_vectors(self._extractors(DUAL), items, pick=lambda features: features.match_NM)

    def _complete(self, table: Floats, catalog: "Catalog", domain: Domain, embed: Callable[..., Floats]) -> Floats:
        known_N = self.table(domain).rows(catalog.item_ids_N)
        vectors = np.ascontiguousarray(table[known_N])
        new_N = np.flatnonzero((known_N == 0) & (catalog.item_ids_N != 0))
        if len(new_N):
            vectors[new_N] = embed(catalog, domain=domain, rows_N=new_N)
        return vectors

    def _raw_items(self, catalog: "Catalog", domain: Domain, rows_N: Int64s | None) -> "RawItems":
        from storyrec.models.extractors import RawItems

        rows_N = np.arange(len(catalog)) if rows_N is None else rows_N
        titles = [catalog.titles[row] for row in rows_N]
        tokens_NW = self.vocabulary.encode(titles, max_words=self.config.features.max_title_words)
        return RawItems.of(tokens_NW, catalog.visual_raw_NV[rows_N], domain=domain)

    def _extractors(self, weights_name: str) -> "Extractors":
        from storyrec.export import load_trained_extractors
        from storyrec.pretrain import build_extractors

        extractors = build_extractors(self.config, num_words=self.vocabulary.size)
        return load_trained_extractors(extractors, self.folder / weights_name)


def _repeat(array: npt.NDArray[Any], num: int) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.broadcast_to(array, (num, *array.shape)))


def _load_table(folder: Path, domain: Domain) -> ItemTable:
    ids_N, vectors_ND, match_NM = (
        load_array(table_path(folder, domain, part)) for part in ("ids", "vectors", "match_vectors")
    )
    if not len(ids_N) == len(vectors_ND) == len(match_NM) or ids_N[0] != 0:
        raise ValueError(f"the {NAMES[domain]} tables do not belong together")
    return ItemTable(ids_N, vectors_ND, match_NM)


def table_path(folder: Path, domain: Domain, part: str) -> Path:
    """Where a bundle keeps a part of an item table: "ids", "vectors" or "match_vectors"."""
    return folder / "items" / f"{NAMES[domain]}_{part}.npy"


def _load_ranker(path: Path) -> "InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # scale by processes: threads fight for cores
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    except OSError:
        raise
    except Exception as error:  # its exceptions have no common base
        raise ValueError(f"{path.name}: {error}") from error
