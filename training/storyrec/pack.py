"""The step `pack_bundle`: a trained model becomes a bundle.

Suffixes: B batch, D width, M matching width, N items.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from storyrec.bundle import ADEN, CONFIG, DUAL, RANKER, TRAINING, VOCABULARY, Bundle, table_path
from storyrec.config import Config, Windows
from storyrec.data.batches import make_batch
from storyrec.data.dataset import Dataset
from storyrec.errors import ModelError
from storyrec.export import export_ranker, item_vectors, load_trained_extractors
from storyrec.finetune import build_aden
from storyrec.manifest import Manifest, seal_folder
from storyrec.models.aden import Aden
from storyrec.pretrain import build_extractors, raw_items
from storyrec.progress import track
from storyrec.storage import write_file, write_folder
from storyrec.warmstart import load_weights

CONFIG_SECTIONS = {"windows", "features", "model", "dual", "aden"}  # what makes the model, and no places
PARITY_ROWS = 1_024  # of the validation and of the held-out impressions each


def pack_bundle(config: Config, *, dataset: Path, dual: Path, aden: Path, out: Path) -> None:
    """Pack a trained model into a bundle and measure how far its scores are from torch's.

    Args:
        config: sections `features`, `model`, `dual` and `aden`.
        dataset: the day's dataset folder; all its items go into the tables.
        dual, aden: folders that `pretrain_dual` and `finetune_aden` wrote.
        out: folder to write, replaced whole. The same inputs give the same version.

    Raises:
        ModelError: weights are missing, damaged or of other shapes than the settings say.
    """
    data = Dataset.load(dataset)
    with track("pack_bundle", total=4) as progress:
        training: dict[str, Any] = {
            "day": data.day.isoformat(),
            "dataset": data.digest,
            "dual": _read_report(dual / TRAINING),
            "aden": _read_report(aden / TRAINING),
        }
        model = _load_aden(config, data, aden / ADEN)
        with write_folder(out) as folder:
            _copy(aden / ADEN, folder / ADEN)
            _copy(dual / DUAL, folder / DUAL)
            data.vocabulary.save(folder / VOCABULARY)
            settings = config.model_copy(update={"windows": _resolved(data)})
            content = settings.model_dump(mode="json", include=CONFIG_SECTIONS, exclude_none=True)
            write_file(folder / CONFIG, tomli_w.dumps(content).encode())
            progress.advance(note="item tables")
            _write_tables(folder, config=settings, data=data, model=model)
            progress.advance(note="ONNX")
            write_file(folder / RANKER, export_ranker(model.ranker, sequence_length=config.features.sequence_length))
            write_file(folder / TRAINING, json.dumps(training).encode())
            progress.advance(note="parity")
            packed = Bundle.open_unverified(folder, Manifest("", data.day, {}))
            training["onnx_difference"] = measure_difference(packed, data, model)
            write_file(folder / TRAINING, json.dumps(training, indent=1).encode())
            seal_folder(folder, day=data.day)
            progress.advance()


def measure_difference(bundle: Bundle, data: Dataset, model: Aden) -> float | None:
    """Largest |difference| of the bundle's click probabilities from those of the trained network.

    The bundle scores from its item tables through ONNX Runtime, the network from titles and covers,
    on validation and held-out impressions.

    Args:
        bundle: packed from `model`.
        data: the dataset of its day.
        model: the trained network, in evaluation mode.

    Returns:
        The difference; None where there is no impression or a score is not finite.
    """
    stories, products = raw_items(data, max_words=bundle.config.features.max_title_words)
    largest = -math.inf
    for instances in (data.validation, data.holdout):
        if not len(instances):
            continue
        index_B = np.unique(np.linspace(0, len(instances) - 1, PARITY_ROWS).astype(np.int64))
        batch = make_batch(
            data,
            instances,
            index_B,
            sequence_length=bundle.config.features.sequence_length,
            block_hours=data.windows.block_hours,
            num_time_blocks=bundle.config.model.num_time_blocks,
        )
        served_B = bundle.score(
            batch, story_vectors=bundle.stories.vectors_ND, product_vectors=bundle.products.vectors_ND
        )
        with torch.no_grad():
            trained_B = torch.sigmoid(model(batch, stories=stories, products=products)).numpy()
        difference = float(np.abs(served_B.astype(np.float64) - trained_B).max())
        if not math.isfinite(difference):
            return None
        largest = max(largest, difference)
    return largest if math.isfinite(largest) else None


def _load_aden(config: Config, data: Dataset, path: Path) -> Aden:
    model = build_aden(config, num_words=data.vocabulary.size)
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise ModelError(
            f"the weights do not fit: {error}",
            expected="a model fine-tuned on this dataset with these settings",
            where=str(path),
            remedy="run finetune_aden again with the same settings",
        ) from error
    return model.eval()


def _write_tables(folder: Path, *, config: Config, data: Dataset, model: Aden) -> None:
    matching = load_trained_extractors(build_extractors(config, num_words=data.vocabulary.size), folder / DUAL)
    both = raw_items(data, max_words=config.features.max_title_words)
    for items, catalog in zip(both, (data.stories, data.products), strict=True):
        vectors_ND = item_vectors(model.extractors, items, pick=lambda features: features.item_ND)
        match_NM = item_vectors(matching, items, pick=lambda features: features.match_NM)
        table_path(folder, items.domain, "ids").parent.mkdir(exist_ok=True)
        np.save(table_path(folder, items.domain, "ids"), np.asarray(catalog.item_ids_N, np.int64))
        np.save(table_path(folder, items.domain, "vectors"), vectors_ND)
        np.save(table_path(folder, items.domain, "match_vectors"), match_NM)


def _resolved(data: Dataset) -> Windows:
    windows = data.windows
    return Windows(
        history_days=windows.history_days,
        training_days=windows.training_days,
        validation_share=windows.validation_share,
        holdout_days=windows.holdout_days,
        block_hours=windows.block_hours,
    )


def _copy(source: Path, target: Path) -> None:
    try:
        content = source.read_bytes()
    except OSError as error:
        raise ModelError(
            f"the weights cannot be read ({error.strerror})", where=str(source), remedy="run the training steps first"
        ) from error
    write_file(target, content)


def _read_report(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the training report cannot be read: {error}", where=str(path), remedy="run the training step again"
        ) from error
    return report
