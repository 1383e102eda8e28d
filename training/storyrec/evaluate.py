"""Judge challenger and champion on the same held-out impressions.

Both are scored as they would be served: item vectors from the bundle's own table, new items
embedded by the bundle's own extractors, the ONNX ranker on top. Paper: Sec. IV-C.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storyrec.bundle import Bundle
from storyrec.config import Config
from storyrec.data.batches import make_batch
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.explain import draw_impression, explain_impression
from storyrec.explain_view import draw_picture
from storyrec.features.titles import UnknownWords
from storyrec.illustrations import match_examples, rank_examples
from storyrec.logs.partitions import list_days, read_partition
from storyrec.metrics import Booleans, Floats, per_user_auc, summarize
from storyrec.progress import Tracker, track
from storyrec.rehearsal import rehearse
from storyrec.report import ATTENTION, render_report
from storyrec.schema import TRUTH, Domain
from storyrec.slices import held_out_slices
from storyrec.storage import open_storage, write_file, write_folder

SCORING_BATCH = 4_096
NUM_CALIBRATION_BINS = 10


def evaluate_model(config: Config, *, dataset: Path, bundle: Path, champion: Path | None, out: Path) -> None:
    """Write evaluation.json, scores.npz, attention.png and report.html for a challenger, and rehearse its serving.

    Args:
        config: settings; evaluation, locations.truth.
        dataset: folder that `build_dataset` wrote.
        bundle: the challenger's bundle folder.
        champion: the champion's bundle folder; None before there is one.
        out: folder to write, replaced whole.

    Raises:
        ModelError: a bundle is incomplete or its sums do not match.
    """
    data = Dataset.load(dataset)
    challenger = Bundle.load(bundle)
    incumbent = Bundle.load(champion) if champion else None
    holdout = data.holdout
    figures = _figures(config, holdout)

    with track("evaluate_model", total=len(holdout.clicked_B) * (2 if incumbent else 1)) as progress:
        challenger_B = score_instances(challenger, data, holdout, progress=progress)
        champion_B = score_instances(incumbent, data, holdout, progress=progress) if incumbent else None

    rehearsal = rehearse(bundle, data=data, scores_B=challenger_B)
    unknown = {
        name: _unknown_words(model, data)
        for name, model in (("challenger", challenger), ("champion", incumbent))
        if model is not None
    }
    slices = held_out_slices(data)
    popularity_B = popularity(data)
    truth_B = true_probabilities(config, data)
    evaluation = {
        "day": data.day.isoformat(),
        "windows": dataclasses.asdict(data.windows),
        "num_candidates": config.evaluation.num_candidates,
        "top_k": config.evaluation.top_k,
        "seed": config.evaluation.seed,
        "dataset": data.summary()["counts"],
        "settings": challenger.config.model_dump(mode="json"),
        "changed_settings": _changed(incumbent.config, challenger.config) if incumbent else [],
        "rehearsal": dataclasses.asdict(rehearsal),
        "challenger": {
            "version": challenger.version,
            "num_bytes": _num_bytes(bundle),
            "metrics": figures(challenger_B),
            "onnx_difference": challenger.onnx_difference,
            "unknown_words": _counts(unknown["challenger"]),
            "calibration": _calibration(holdout.clicked_B, challenger_B),
            "training": challenger.training,
        },
        "champion": {
            "version": incumbent.version,
            "num_bytes": _num_bytes(champion),
            "day": incumbent.day.isoformat(),
            "metrics": figures(champion_B),
            "unknown_words": _counts(unknown["champion"]),
        }
        if incumbent and champion and champion_B is not None
        else None,
        "oracle": {"metrics": _on_known(config, holdout, truth_B)} if truth_B is not None else None,
        "popularity": {"metrics": figures(popularity_B) | {"mean_score": None}},  # counts are no probabilities
        "slices": _slices(data, slices, challenger_B, champion_B),
        "examples": rank_examples(data, challenger_B),
        "matches": match_examples(challenger, data),
        "warnings": unknown_word_warnings(unknown, largest=config.evaluation.max_unknown_words),
    }
    scores: dict[str, Any] = {"user_ids": holdout.user_ids_B, "clicked": holdout.clicked_B, "challenger": challenger_B}
    if champion_B is not None:
        scores["champion"] = champion_B
    with write_folder(out) as folder:
        write_file(folder / "evaluation.json", json.dumps(evaluation, indent=2, ensure_ascii=False).encode())
        np.savez_compressed(folder / "scores.npz", **scores, slices=np.stack(list(slices.values())))
        if holdout.clicked_B.any():
            explained = explain_impression(challenger, data, draw_impression(data, seed=config.evaluation.seed))
            write_file(folder / ATTENTION, draw_picture(explained))
        write_file(folder / "report.html", render_report(folder).encode())


def score_instances(bundle: Bundle, data: Dataset, instances: Instances, *, progress: Tracker | None = None) -> Floats:
    """The click probability a bundle gives to each impression, under the bundle's own windows, [B]."""
    windows = bundle.config.windows
    pointed = data.instances_for(instances, history_days=int(windows.history_days))
    story_vectors = bundle.vectors(data.stories, domain=Domain.STORY)
    product_vectors = bundle.vectors(data.products, domain=Domain.PRODUCT)
    scores_B = np.empty(len(instances.clicked_B), np.float64)
    for start in range(0, len(scores_B), SCORING_BATCH):
        index_B = np.arange(start, min(start + SCORING_BATCH, len(scores_B)))
        batch = make_batch(
            data,
            pointed,
            index_B,
            sequence_length=bundle.config.features.sequence_length,
            block_hours=int(windows.block_hours),
            num_time_blocks=bundle.config.model.num_time_blocks,
        )
        scores_B[index_B] = bundle.score(batch, story_vectors=story_vectors, product_vectors=product_vectors)
        if progress is not None:
            progress.advance(len(index_B))
    return scores_B


def _unknown_words(bundle: Bundle, data: Dataset) -> dict[str, UnknownWords]:
    return data.count_unknown_words(bundle.vocabulary, max_words=bundle.config.features.max_title_words)


def _counts(unknown: Mapping[str, UnknownWords]) -> dict[str, dict[str, int]]:
    return {name: dataclasses.asdict(counts) for name, counts in unknown.items()}


def unknown_word_warnings(unknown: Mapping[str, Mapping[str, UnknownWords]], *, largest: float) -> list[str]:
    """Which model lacks too many words of the titles published in the held-out days, in sentences.

    Args:
        unknown: what a model's vocabulary lacks, by model and by "stories" and "products".
        largest: share of unknown words above which it is said, 0 to 1.
    """
    return [
        f"{counts.num_unknown / counts.num_words:.1%} of the words in the titles of {counts.num_titles:,} new {items} "
        f"are unknown to the {model}, more than {largest:.1%}"
        for model, by_items in unknown.items()
        for items, counts in by_items.items()
        if counts.num_unknown > largest * counts.num_words
    ]


def _figures(config: Config, instances: Instances) -> Callable[[Floats], dict[str, float]]:
    settings = config.evaluation
    return lambda scores_B: summarize(
        instances.user_ids_B,
        instances.clicked_B,
        scores_B,
        num_candidates=settings.num_candidates,
        top_k=settings.top_k,
        seed=settings.seed,
    )


def popularity(data: Dataset) -> Floats:
    """How often each target was clicked in the training impressions: what a model must beat, [B]."""
    clicks = data.train.story_rows_B[data.train.clicked_B]
    return np.bincount(clicks, minlength=len(data.stories.item_ids_N))[data.holdout.story_rows_B].astype(np.float64)


def true_probabilities(config: Config, data: Dataset) -> Floats | None:
    """The true click probability of each held-out impression, NaN where unknown; None without a truth."""
    if not config.locations.truth:
        return None
    storage = open_storage(config.locations.truth, s3_endpoint=config.locations.s3_endpoint)
    first = data.windows.holdout_start(data.day)
    days = [day for day in list_days(storage, "impressions") if first <= day <= data.day]
    if not days:
        return None
    truth = pa.concat_tables([read_partition(storage, "impressions", day, schema=TRUTH) for day in days])
    truth = truth.append_column("shown_us", pc.cast(truth["shown_at"], pa.int64()))
    truth = truth.group_by(["user_id", "story_id", "shown_us"]).aggregate([("probability", "mean")])
    holdout = data.holdout
    rows = pa.table(
        {
            "row": np.arange(len(holdout.clicked_B)),
            "user_id": holdout.user_ids_B,
            "story_id": data.stories.item_ids_N[holdout.story_rows_B],
            "shown_us": holdout.shown_us_B,
        }
    )
    joined = rows.join(truth, keys=["user_id", "story_id", "shown_us"], join_type="left outer").sort_by("row")
    truth_B: Floats = joined["probability_mean"].to_numpy(zero_copy_only=False).astype(np.float64)
    return truth_B if np.isfinite(truth_B).any() else None


def _on_known(config: Config, holdout: Instances, truth_B: Floats) -> dict[str, float]:
    """The oracle's figures on the impressions whose true probability is known."""
    known = np.isfinite(truth_B)
    settings = config.evaluation
    figures = summarize(
        holdout.user_ids_B[known],
        holdout.clicked_B[known],
        truth_B[known],
        num_candidates=settings.num_candidates,
        top_k=settings.top_k,
        seed=settings.seed,
    )
    return figures | {"num_unknown": int((~known).sum())}


def _calibration(clicked_B: Booleans, scores_B: Floats) -> list[dict[str, float]]:
    """Mean score against click rate in bins of equal size."""
    order = np.argsort(scores_B, kind="stable")
    return [
        {
            "mean_score": float(scores_B[rows].mean()),
            "click_rate": float(clicked_B[rows].mean()),
            "num_impressions": len(rows),
        }
        for rows in np.array_split(order, NUM_CALIBRATION_BINS)
        if len(rows)
    ]


def _changed(before: Config, now: Config) -> list[dict[str, object]]:
    """The settings that differ between two bundles."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    return [
        {"name": f"{section}.{name}", "before": old[section][name], "now": value}
        for section, values in new.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if old[section][name] != value
    ]


def _num_bytes(bundle: Path) -> int:
    return sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())


def _slices(
    data: Dataset, slices: Mapping[str, Booleans], challenger_B: Floats, champion_B: Floats | None
) -> list[dict[str, object]]:
    """Per-user AUC on parts of the held-out impressions, for people to read."""
    holdout = data.holdout
    rows: list[dict[str, object]] = []
    for name, part_B in slices.items():
        users_B, clicked_B = holdout.user_ids_B[part_B], holdout.clicked_B[part_B]
        challenger = per_user_auc(users_B, clicked_B, challenger_B[part_B])
        champion = per_user_auc(users_B, clicked_B, champion_B[part_B]) if champion_B is not None else None
        rows.append(
            {
                "name": name,
                "num_impressions": int(part_B.sum()),
                "num_users": len(challenger.users_U),
                "challenger": challenger.mean,
                "champion": champion.mean if champion else None,
            }
        )
    return rows
