"""Table VII: every snapshot of the extractors judged by how it recommends stories to products. Paper: Sec. IV-G."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from storyrec.checkpoint import weights_digest
from storyrec.config import Config
from storyrec.data.dataset import Dataset
from storyrec.errors import ConfigError
from storyrec.experiments.claims import differences, read_json
from storyrec.experiments.fit import slug
from storyrec.experiments.matching import MAX_QUERIES, Embed, evaluate_matching, raw_covers, title_and_cover
from storyrec.experiments.prepare import describe
from storyrec.experiments.results import Metrics, Results, Run
from storyrec.experiments.snapshots import TABLE_7, Snapshot, conclude
from storyrec.pretrain import raw_items
from storyrec.progress import track
from storyrec.storage import write_file

FORMAT = 1
EXPERIMENT = "table7"
RAW_COVERS = "raw covers"


def run_table7(root: Path, *, config: Config, data: Dataset, seeds: Sequence[int]) -> Results:
    """Judge every snapshot of every seed; what `root`/matching holds already is taken as it is.

    Args:
        root: folder of the experiments, with the weights that other experiments left.
        config: the settings of these experiments.
        data: their dataset.
        seeds: whose weights.

    Returns:
        Metrics are those of `evaluate_matching`. Covers without any extractor stand among the references, unless
        the data has none. The notes say what the table says (`conclude`).

    Raises:
        ModelError: the weights of a snapshot are missing or do not fit.
        DataError: no story mounts a product, or a file cannot be read.
        ConfigError: an earlier result rests on other data, settings or weights.
    """
    rows = {
        (row, seed): row.extractors(root, config=config, num_words=data.vocabulary.size, seed=seed)
        for row in TABLE_7
        for seed in seeds
    }
    stories, products = raw_items(data, max_words=config.features.max_title_words)
    has_covers = bool(stories.has_cover_N.any() and products.has_cover_N.any())

    def judge(embed: Embed, *, path: Path, identity: str) -> Metrics:
        made_from = {
            "format": FORMAT,
            "dataset": data.digest,
            "max_title_words": config.features.max_title_words,
            "max_queries": MAX_QUERIES,
            "query_seed": config.evaluation.seed,
            "weights": identity,
        }
        if path.exists():
            return _read_metrics(path, made_from=made_from)
        metrics = evaluate_matching(embed, stories=stories, products=products, data=data, seed=config.evaluation.seed)
        write_file(path, json.dumps({"made_from": made_from, "metrics": metrics}, indent=1).encode())
        return metrics

    runs: list[Run] = []
    references: dict[str, Metrics] = {}
    with track(EXPERIMENT, total=len(rows) + has_covers) as progress:
        for (row, seed), extractors in rows.items():
            metrics = judge(
                title_and_cover(extractors),
                path=root / "matching" / slug(row.name) / f"seed-{seed}.json",
                identity=weights_digest(extractors),
            )
            training = _read_training(row, root=root, seed=seed)
            runs.append(
                Run(
                    method=row.name,
                    group=row.group,
                    seed=seed,
                    metrics=metrics,
                    seconds=training.get("seconds", 0.0),
                    num_parameters=sum(parameter.numel() for parameter in extractors.parameters()),
                    best_epoch=training.get("best_epoch", 0),
                    settings={"extractors": row.origin, "of": row.source},
                )
            )
            progress.advance(note=f"{row.name}, seed {seed}")
        if has_covers:
            path = root / "matching" / f"{slug(RAW_COVERS)}.json"
            references[RAW_COVERS] = judge(raw_covers, path=path, identity=RAW_COVERS)
            progress.advance(note=RAW_COVERS)
    return Results(
        experiment=EXPERIMENT,
        data={"name": config.locations.logs, **describe(data)},
        runs=tuple(runs),
        references=references,
        notes=tuple(conclude(runs)),
    )


def _read_training(row: Snapshot, *, root: Path, seed: int) -> Mapping[str, Any]:
    """What a snapshot's training left on record; empty where nothing was trained."""
    path = row.report(root, seed=seed)
    if path is None:
        return {}
    report = read_json(path)
    training: dict[str, Any] = report.get("training", report)  # a run keeps it beside its figures
    return training


def _read_metrics(path: Path, *, made_from: Mapping[str, Any]) -> Metrics:
    content = read_json(path)
    differing = differences(content.get("made_from", {}), made_from)
    if differing:
        raise ConfigError(
            f"an earlier result rests on something else: {'; '.join(differing)}",
            expected="results of the present dataset, settings and weights",
            where=str(path),
            remedy="remove the folder `matching` to judge again, or name another folder with --out",
        )
    metrics: Metrics = content["metrics"]
    return metrics
