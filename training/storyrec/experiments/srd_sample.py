"""The real sample of SRD-1: its statistics, and how DUAL matches on it after so few pairs.

Each row of the pre-training file holds two pairs; the first pairs of all rows are one half, the second
pairs the other. DUAL is trained on one half and asked for the other: query = product, gallery = that
half's stories. Paper: Sec. II-C, III-B, IV-G.

Suffixes: N = catalog rows, M = pairs of a half, V = raw cover, 2 = story row, product row.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from storyrec.config import Config, update_config
from storyrec.data.catalog import Catalog, covers_of, newest_rows
from storyrec.device import training_device
from storyrec.errors import DataError
from storyrec.experiments.srd_statistics import describe_sample
from storyrec.features.titles import Vocabulary, train_vocabulary
from storyrec.logs.srd import import_srd
from storyrec.logs.srd_files import find_files, read_lines, read_words
from storyrec.loop import fitted_batch_size, train
from storyrec.match import nearest_stories
from storyrec.models.dual import Dual
from storyrec.models.extractors import RawItems
from storyrec.pair_stage import PairStage
from storyrec.pairs import Mounts, split_pairs
from storyrec.pretrain import build_dual, read_schedule
from storyrec.progress import track
from storyrec.schema import COVER_WIDTH, Domain
from storyrec.storage import write_file

Floats = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

RESULT, TABLE = "srd_sample.json", "srd_sample.md"
HALVES = ("first pairs", "second pairs")
LARGEST_SAMPLE = 2_000
LAST_MICROSECOND = 2**62

SETTINGS = {"dual": {"contrast": "hinge", "max_epochs": 100, "patience": 100}}
"""Of this study: the paper's contrast, and more epochs, because one of 128 pairs has four steps; the epoch with the
lowest hinges on a tenth of the training half's own stories counts. Settled by the hinges on splits inside each
half, never by how one half's model matches the other half."""

ROWS = {
    "raw covers": "raw covers, 512 numbers",
    "start title": "before training: title",
    "start cover": "before training: cover",
    "start title + cover": "before training: title + cover",
    "title": "after DUAL: title",
    "cover": "after DUAL: cover",
    "title + cover": "after DUAL: title + cover",
}
METRICS = ("hit_at_1", "hit_at_5", "recall_at_5")


@dataclass(frozen=True)
class Sample:
    """The sample after its import.

    Attributes:
        stories, products: what the extractors read, by catalog row.
        halves: the first pairs of all lines, and the second ones, [M, 2] each.
        vocabulary: every word that the published vocabulary has.
    """

    stories: RawItems
    products: RawItems
    halves: tuple[Int64s, Int64s]
    vocabulary: Vocabulary

    @property
    def mounts(self) -> Mounts:
        return Mounts(np.concatenate(self.halves))


def run_srd_sample(source: Path, *, out: Path, seeds: Sequence[int], vocabulary: Path) -> dict[str, Any]:
    """Measure the sample and train DUAL on each half of it.

    Writes `srd_sample.json` and `srd_sample.md`.

    Args:
        source: folder with one small pre-training file.
        out: folder to write.
        seeds: of initialisation, validation split and training; one run per seed and half.
        vocabulary: BERT vocabulary that decodes the token ids.

    Returns:
        What srd_sample.json holds: `statistics`, `retrieval` (means and standard deviations over runs and per
        half), `runs`, `settings`.

    Raises:
        DataError: the folder holds anything else, or its file is broken.
    """
    sample, statistics = read_sample(source, vocabulary=vocabulary)
    mounts = sample.mounts
    runs = []
    with training_device(), track("srd sample", total=2 * len(seeds)) as progress:
        for held_out, half in enumerate(HALVES):
            for seed in seeds:
                runs.append({"held_out": half, "seed": seed, **_run(sample, mounts, held_out=held_out, seed=seed)})
                progress.advance(note=f"{half} held out, seed {seed}")
    result = {
        "statistics": statistics,
        "retrieval": _summarise(runs),
        "runs": runs,
        "settings": {"seeds": list(seeds), **SETTINGS, "num_words": sample.vocabulary.size},
    }
    write_file(out / RESULT, json.dumps(result, indent=1).encode())
    write_file(out / TABLE, render(result).encode())
    return result


def read_sample(source: Path, *, vocabulary: Path) -> tuple[Sample, dict[str, Any]]:
    """Import a small pre-training file and read the catalogs back; and the statistics of its first pairs.

    Raises:
        DataError: the folder holds anything else, or its file is broken.
    """
    files = find_files(source)
    lines = []
    if len(files) == 1 and files[0].kind == "pretrain":
        lines = [line for line, _ in islice(read_lines(files[0]), LARGEST_SAMPLE + 1)]
    if not 4 <= len(lines) <= LARGEST_SAMPLE:
        raise DataError(
            "the folder does not hold one small pre-training file",
            expected=f"a sample such as srd1_pretrain_sample.txt.gz, of 4 to {LARGEST_SAMPLE} lines",
            where=f"{source}, which has {', '.join(file.path.name for file in files)}",
            remedy="for a whole dataset run `storyrec import srd`",
        )
    with TemporaryDirectory() as folder:
        import_srd(source=source, out=Path(folder) / "logs", vocabulary=vocabulary)
        stories, products = (_read_catalog(Path(folder) / "logs" / name) for name in ("stories", "products"))
    pieces = read_words(vocabulary)
    words = train_vocabulary(pieces, size=2 * len(pieces), min_count=1)
    raw = [
        RawItems.of(
            words.encode(catalog.titles, max_words=Config().features.max_title_words),
            catalog.visual_raw_NV,
            domain=domain,
        )
        for catalog, domain in ((stories, Domain.STORY), (products, Domain.PRODUCT))
    ]
    first, second = (
        np.array(
            [
                (stories.rows(line.number_at(start)), products.rows(line.number_at(start + 1)))
                for line in lines
            ],
            np.int64,
        )
        for start in (0, 8)
    )  # fmt: skip
    return Sample(raw[0], raw[1], (first, second), words), describe_sample(lines)


def retrieve(product_vectors: Floats, story_vectors: Floats, *, mounted_MM: npt.NDArray[np.bool_]) -> dict[str, float]:
    """How often a product finds a story that mounts it among the nearest.

    Args:
        product_vectors: the queries, [M, D].
        story_vectors: the gallery, [M, D].
        mounted_MM: whether query and story are a pair; each query has one at least.

    Returns:
        hit_at_1, hit_at_5 and recall_at_5, means over the queries.
    """
    rows_MK, _ = nearest_stories(product_vectors, story_vectors, top_k=5)
    found_MK = np.take_along_axis(mounted_MM, rows_MK, axis=1)
    return {
        "hit_at_1": float(found_MK[:, 0].mean()),
        "hit_at_5": float(found_MK.any(axis=1).mean()),
        "recall_at_5": float((found_MK.sum(axis=1) / mounted_MM.sum(axis=1)).mean()),
    }


def render(result: dict[str, Any]) -> str:
    """The result as a short table."""
    statistics, seeds = result["statistics"], result["settings"]["seeds"]
    lines = [
        f"Real pairs of SRD-1: DUAL trained on one half, product -> story retrieval in the other; mean and standard "
        f"deviation over {len(seeds)} seeds and both halves.",
        "",
        "| vectors | hit@1 | hit@5 | recall@5 |",
        "|---|---|---|---|",
    ]
    for name, label in ROWS.items():
        cells = [result["retrieval"]["both halves"][name][metric] for metric in METRICS]
        lines.append(f"| {label} | " + " | ".join(f"{c['mean']:.3f} +- {c['deviation']:.3f}" for c in cells) + " |")
    bins = " / ".join(f"{100 * share:.1f}" for share in statistics["title_similarity_shares"])
    lines += [
        "",
        f"First pairs of the {statistics['num_pairs']} rows: {statistics['story_title_length']:.1f} and "
        f"{statistics['product_title_length']:.1f} tokens a title; cover distance "
        f"{statistics['own_cover_distance']:.2f} in a pair, {statistics['other_cover_distance']:.2f} between pairs; "
        f"raw covers hit@1 {statistics['raw_cover_hit_at_1']:.3f}, hit@5 {statistics['raw_cover_hit_at_5']:.3f}; "
        f"title similarity (Eq. 1) in five bins: {bins} %.",
    ]
    return "\n".join(lines) + "\n"


def _run(sample: Sample, mounts: Mounts, *, held_out: int, seed: int) -> dict[str, Any]:
    """Train on the other half, without pairs of a product or story that is held out, and ask for this one."""
    asked_M2, other_M2 = sample.halves[held_out], sample.halves[1 - held_out]
    shared_M = np.isin(other_M2[:, 0], asked_M2[:, 0]) | np.isin(other_M2[:, 1], asked_M2[:, 1])
    config = update_config(Config(), {"dual": {**SETTINGS["dual"], "seed": seed}})
    training_M2, validation_M2 = split_pairs(
        other_M2[~shared_M], validation_share=config.dual.validation_share, generator=np.random.default_rng(seed)
    )
    model = build_dual(config, num_words=sample.vocabulary.size)
    story_rows_M, product_rows_M = asked_M2[:, 0], asked_M2[:, 1]
    mounted_MM = np.stack([mounts.contain(story_rows_M, np.full_like(story_rows_M, row)) for row in product_rows_M])
    covers = [
        items.visual_raw_NV[rows].astype(np.float32)
        for items, rows in ((sample.products, product_rows_M), (sample.stories, story_rows_M))
    ]
    figures = {"raw covers": retrieve(covers[0], covers[1], mounted_MM=mounted_MM)}
    figures |= {f"start {k}": v for k, v in _ask(model, sample, asked_M2, mounted_MM=mounted_MM).items()}
    stage = PairStage(
        model,
        stories=sample.stories,
        products=sample.products,
        mounts=mounts,
        training_M2=training_M2,
        validation_M2=validation_M2,
        batch_size=fitted_batch_size(len(training_M2), largest=config.dual.batch_size),
        margin=config.dual.margin,
        squared=config.dual.squared_distance,
        seed=seed,
    )
    trained = train(model, name="srd sample dual", stage=stage, schedule=read_schedule(config.dual, keep_start=False))
    figures |= _ask(model, sample, asked_M2, mounted_MM=mounted_MM)
    return {
        "num_training_pairs": len(training_M2),
        "num_validation_pairs": len(validation_M2),
        "best_epoch": trained.best_epoch,
        "validation_at_start": trained.curves[0]["validation"],
        "validation_at_best": trained.curves[trained.best_epoch]["validation"],
        "figures": figures,
    }


def _ask(
    model: Dual, sample: Sample, pairs_M2: Int64s, *, mounted_MM: npt.NDArray[np.bool_]
) -> dict[str, dict[str, float]]:
    model.eval()
    with torch.inference_mode():
        story = model.extractors.extract(sample.stories, pairs_M2[:, 0])
        product = model.extractors.extract(sample.products, pairs_M2[:, 1])
    return {
        name: retrieve(products.cpu().numpy(), stories.cpu().numpy(), mounted_MM=mounted_MM)
        for name, products, stories in (
            ("title", product.textual_ND, story.textual_ND),
            ("cover", product.visual_ND, story.visual_ND),
            ("title + cover", product.match_NM, story.match_NM),
        )
    }


def _summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the runs, for both halves together and each."""

    def over(chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            name: {
                metric: {
                    "mean": float(np.mean(values := [run["figures"][name][metric] for run in chosen])),
                    "deviation": float(np.std(values)),
                }
                for metric in METRICS
            }
            for name in ROWS
        }

    return {"both halves": over(runs)} | {
        f"{half} held out": over([run for run in runs if run["held_out"] == half]) for half in HALVES
    }


def _read_catalog(folder: Path) -> Catalog:
    table = pa.concat_tables(
        pq.read_table(path, partitioning=None) for path in sorted(folder.glob("dt=*/*.parquet"))
    )  # fmt: skip
    newest_N = newest_rows(table, before_us=LAST_MICROSECOND)
    has_cover_R, covers_KV = covers_of(table["cover"])
    visual_raw_RV = np.zeros((table.num_rows, COVER_WIDTH), np.float16)
    visual_raw_RV[has_cover_R] = covers_KV
    visual_raw_NV = np.concatenate([np.zeros((1, COVER_WIDTH), np.float16), visual_raw_RV[newest_N]])
    return Catalog.from_table(table, newest_N=newest_N, visual_raw_NV=visual_raw_NV)
