"""The step `pack_bundle`: a trained model becomes a bundle.

Suffixes: B batch, D width, M matching width, N items.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tomli_w
import torch
from scipy.optimize import brentq
from scipy.special import expit

from storyrec.bundle import ADEN, CONFIG, DUAL, RANKER, RANKER_OF_ONE_USER, TRAINING, VOCABULARY, Bundle, table_path
from storyrec.config import Config, Windows
from storyrec.data.batches import make_batch
from storyrec.data.dataset import Dataset
from storyrec.errors import ModelError
from storyrec.export import export_ranker, export_ranker_of_one_user, item_vectors, load_trained_extractors
from storyrec.finetune import build_aden
from storyrec.manifest import Manifest, seal_folder
from storyrec.models.aden import Aden
from storyrec.models.click_model import ClickModel
from storyrec.pretrain import build_extractors, raw_items
from storyrec.progress import track
from storyrec.storage import write_file, write_folder
from storyrec.warmstart import load_weights

CONFIG_SECTIONS = {"windows", "features", "model", "dual", "aden"}  # what makes the model, and no places
LOGIT_BATCH = 4_096
PARITY_ROWS = 1_024  # of the validation and of the held-out impressions each

Floats = npt.NDArray[np.float32]
Booleans = npt.NDArray[np.bool_]


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
            logits_B = _validation_logits(model, data, config=settings)
            offset = calibration_offset(logits_B, data.validation.clicked_B)
            training["logit_offset"] = offset
            ranker = export_ranker(
                model.ranker,
                width=config.model.width,
                sequence_length=config.features.sequence_length,
                logit_offset=offset,
            )
            write_file(folder / RANKER, ranker)
            assert isinstance(model.ranker, Aden)
            of_one_user = export_ranker_of_one_user(
                model.ranker,
                width=config.model.width,
                sequence_length=config.features.sequence_length,
                logit_offset=offset,
            )
            write_file(folder / RANKER_OF_ONE_USER, of_one_user)
            write_file(folder / TRAINING, json.dumps(training).encode())
            progress.advance(note="parity")
            packed = Bundle.open_unverified(folder, Manifest("", data.day, {}))
            training["onnx_difference"] = measure_difference(packed, data, model, logit_offset=offset)
            write_file(folder / TRAINING, json.dumps(training, indent=1).encode())
            seal_folder(folder, day=data.day)
            progress.advance()


def calibration_offset(logits_B: npt.NDArray[np.floating], clicked_B: Booleans) -> float:
    """What to add to all logits so that the mean click probability equals the click rate.

    Training keeps as many non-clicks as clicks, so its probabilities are too high for the natural
    click rate; one offset mends that and changes no order.

    Args:
        logits_B: of the validation impressions at their natural click rate, [B].
        clicked_B: their labels, [B].

    Returns:
        The offset; 0 where the impressions do not determine one.
    """
    click_rate = float(clicked_B.mean()) if len(clicked_B) else 0.0
    if not 0 < click_rate < 1 or not np.isfinite(logits_B).all():
        return 0.0
    logits_B = logits_B.astype(np.float64)
    bound = 40.0 + float(np.abs(logits_B).max())
    return float(brentq(lambda offset: expit(logits_B + offset).mean() - click_rate, -bound, bound))


def measure_difference(bundle: Bundle, data: Dataset, model: ClickModel, *, logit_offset: float) -> float | None:
    """Largest |difference| of the bundle's click probabilities from those of the trained network.

    The bundle scores from its item tables through ONNX Runtime, the network from titles and covers,
    on validation and held-out impressions.

    Args:
        bundle: packed from `model`.
        data: the dataset of its day.
        model: the trained network, in evaluation mode.
        logit_offset: the calibration that the bundle was packed with.

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
            trained_B = torch.sigmoid(model(batch, stories=stories, products=products) + logit_offset).numpy()
        difference = float(np.abs(served_B.astype(np.float64) - trained_B).max())
        if not math.isfinite(difference):
            return None
        largest = max(largest, difference)
    return largest if math.isfinite(largest) else None


def _validation_logits(model: ClickModel, data: Dataset, *, config: Config) -> Floats:
    """The network's logits of the validation impressions, [B]."""
    index_B = np.arange(len(data.validation))
    stories, products = raw_items(data, max_words=config.features.max_title_words)
    parts = [np.empty(0, np.float32)]
    for start in range(0, len(index_B), LOGIT_BATCH):
        batch = make_batch(
            data,
            data.validation,
            index_B[start : start + LOGIT_BATCH],
            sequence_length=config.features.sequence_length,
            block_hours=data.windows.block_hours,
            num_time_blocks=config.model.num_time_blocks,
        )
        with torch.no_grad():
            parts.append(model(batch, stories=stories, products=products).numpy())
    return np.concatenate(parts)


def _load_aden(config: Config, data: Dataset, path: Path) -> ClickModel:
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


def _write_tables(folder: Path, *, config: Config, data: Dataset, model: ClickModel) -> None:
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
