"""ADEN on a planted marketplace: what it learns, where it starts from, and what it refuses."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from builders import planted_config, planted_dataset
from storyrec.config import Config, save_config
from storyrec.data.batches import make_batch
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.errors import DataError, ModelError
from storyrec.features.titles import Vocabulary
from storyrec.finetune import ClickStage, build_aden, covered, finetune_aden, scorable_impressions
from storyrec.loop import Moment
from storyrec.metrics import per_user_auc
from storyrec.models.aden import Aden
from storyrec.models.click_model import ClickModel
from storyrec.models.dual import Dual
from storyrec.pretrain import build_dual, build_extractors, raw_items
from storyrec.schema import Domain
from storyrec.storage import FolderStorage
from storyrec.warmstart import WORD_TABLE

Finetune = Callable[..., tuple[Path, dict[str, Any]]]


def settings(**aden: Any) -> Config:
    config = planted_config(Path("unused"))
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"width": 16, "head_widths": (16, 8)}),
            "aden": config.aden.model_copy(update={"max_epochs": 3, "learning_rate": 5e-3, **aden}),
        }
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return planted_dataset(0)


def write_dual(folder: Path, data: Dataset, config: Config) -> Dual:
    folder.mkdir()
    model = build_dual(config, num_words=data.vocabulary.size)
    with torch.no_grad():
        model.extractors.words.weight[1:].normal_(generator=torch.Generator().manual_seed(9))
    safetensors.torch.save_file(model.state_dict(), folder / "dual.safetensors")
    return model


@pytest.fixture
def finetune(tmp_path: Path) -> Finetune:
    def finetune(data: Dataset, config: Config, champion: Path | None = None) -> tuple[Path, dict[str, Any]]:
        data.save(tmp_path / "dataset")
        if not (tmp_path / "dual").exists():
            write_dual(tmp_path / "dual", data, config)
        out = tmp_path / "aden"
        finetune_aden(
            config,
            dataset=tmp_path / "dataset",
            dual=tmp_path / "dual",
            champion=champion,
            checkpoints=FolderStorage(tmp_path / "checkpoints"),
            out=out,
        )
        return out, json.loads((out / "training.json").read_text())

    return finetune


def make_stage(model: ClickModel, data: Dataset) -> ClickStage:
    stories, products = raw_items(data, max_words=32)
    return ClickStage(
        model, data=data, stories=stories, products=products, batch_size=256, sequence_length=20, num_time_blocks=168
    )


def holdout_auc(folder: Path, data: Dataset, config: Config) -> float:
    model = build_aden(config, num_words=data.vocabulary.size)
    model.load_state_dict(safetensors.torch.load_file(folder / "aden.safetensors"))
    stage, holdout = make_stage(model.eval(), data), data.holdout
    with torch.inference_mode():
        logits_B = stage.score(holdout, np.arange(len(holdout)))
    return per_user_auc(holdout.user_ids_B, holdout.clicked_B, logits_B).mean


def test_planted_structure_is_learned(data: Dataset, finetune: Finetune) -> None:
    out, report = finetune(data, settings())
    assert holdout_auc(out, data, settings()) > 0.7
    best = report["curves"][report["best_epoch"]]["validation"]
    assert (
        best["per_user_auc"]
        == report["best_value"]
        == max(entry["validation"]["per_user_auc"] for entry in report["curves"][1:])
    )
    assert best["log_loss"] < report["curves"][0]["validation"]["log_loss"]
    losses = [entry["training"]["loss"] for entry in report["curves"][1:]]
    assert losses == sorted(losses, reverse=True)
    assert report["stopped_by"] == "per_user_auc"
    assert report["num_training_instances"] == len(data.train)


def test_nothing_is_learned_from_permuted_clicks(finetune: Finetune) -> None:
    data = planted_dataset(0, permuted=True)
    out, _ = finetune(data, settings())
    assert holdout_auc(out, data, settings()) == pytest.approx(0.5, abs=0.05)  # three standard errors


def test_titles_alone_are_learned_from(finetune: Finetune) -> None:
    data = planted_dataset(0, covers=False)
    out, _ = finetune(data, settings())
    assert holdout_auc(out, data, settings()) > 0.65


def test_extractors_start_from_dual(data: Dataset, finetune: Finetune, tmp_path: Path) -> None:
    dual = write_dual(tmp_path / "dual", data, settings())
    out, _ = finetune(data, settings(max_epochs=1, learning_rate=1e-12))
    ours = safetensors.torch.load_file(out / "aden.safetensors")
    for name, tensor in dual.extractors.state_dict().items():
        torch.testing.assert_close(ours[f"extractors.{name}"], tensor, atol=1e-9, rtol=1e-6)


def test_frozen_extractors_end_as_they_started(data: Dataset, finetune: Finetune, tmp_path: Path) -> None:
    dual = write_dual(tmp_path / "dual", data, settings())
    out, report = finetune(data, settings(freeze_extractors=True))
    ours = safetensors.torch.load_file(out / "aden.safetensors")
    for name, tensor in dual.extractors.state_dict().items():
        assert torch.equal(ours[f"extractors.{name}"], tensor), name
    fresh = build_aden(settings(), num_words=data.vocabulary.size).state_dict()
    assert all(not torch.equal(ours[name], fresh[name]) for name in ours if name.startswith("ranker."))
    assert report["best_epoch"] > 0
    assert report["best_value"] > report["curves"][0]["validation"]["per_user_auc"] + 0.05


def test_champion_gives_all_weights_but_those_of_words_it_never_saw(
    data: Dataset, finetune: Finetune, tmp_path: Path
) -> None:
    config = settings(max_epochs=1, learning_rate=1e-12)
    dual = write_dual(tmp_path / "dual", data, config)
    champion, known = write_champion(tmp_path, data, config)
    out, report = finetune(data, config, champion)
    assert report["start"]["champion"]
    theirs = safetensors.torch.load_file(champion / "aden.safetensors")
    ours = safetensors.torch.load_file(out / "aden.safetensors")
    num_new = 0
    for number, word in enumerate(data.vocabulary.words):
        if word in known.words:
            expected = theirs[WORD_TABLE][known.words.index(word)]
        else:
            expected, num_new = dual.extractors.words.weight[number].detach(), num_new + 1
        torch.testing.assert_close(ours[WORD_TABLE][number], expected, atol=1e-9, rtol=1e-6)
    assert num_new == report["start"]["num_words_new"] > 0
    for name in ours.keys() - {WORD_TABLE}:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ({"model": {"num_heads": 2}}, "model.num_heads was 2, now 4"),
        ({"windows": {"block_hours": 5}}, "a time block was 5 hours wide, now 1"),
        ({"windows": {"block_hours": "auto"}}, "a time block was auto hours wide, now 1"),
    ],
)
def test_champion_whose_weights_mean_something_else_is_no_start(
    theirs: dict[str, Any], reason: str, data: Dataset, finetune: Finetune, tmp_path: Path
) -> None:
    champion, _ = write_champion(tmp_path, data, settings(), **theirs)
    _, report = finetune(data, settings(max_epochs=1), champion)
    assert not report["start"]["champion"]
    assert report["start"]["reason"] == reason


def test_challenger_never_ends_worse_than_its_start_on_validation(
    data: Dataset, finetune: Finetune, tmp_path: Path
) -> None:
    trained, _ = finetune(data, settings())
    weights = (trained / "aden.safetensors").read_bytes()
    champion, _ = write_champion(tmp_path, data, settings(), weights=weights)
    out, report = finetune(data, settings(max_epochs=2, learning_rate=1.0), champion)
    assert report["best_epoch"] == 0
    assert (out / "aden.safetensors").read_bytes() == weights
    assert report["best_value"] == report["curves"][0]["validation"]["per_user_auc"]


def test_step_loss_is_equation_11_on_the_batch(data: Dataset) -> None:
    model = build_aden(settings(), num_words=data.vocabulary.size).eval()
    index_B = np.arange(7, 60)
    stage = make_stage(model, data)
    loss, _ = stage.loss(index_B, Moment(step=0, progress=0.0, generator=np.random.default_rng(0)))
    with torch.inference_mode():
        logits_B = torch.from_numpy(stage.score(data.train, index_B))
    terms = [
        -np.log(p if y else 1 - p)
        for p, y in zip(torch.sigmoid(logits_B).tolist(), data.train.clicked_B[index_B], strict=True)
    ]
    assert loss.item() == pytest.approx(np.mean(terms), rel=1e-5)


@pytest.mark.parametrize("reads", [set(), {Domain.STORY}, {Domain.PRODUCT}, set(Domain)])
def test_scores_are_those_of_the_model_on_the_same_impressions(reads: set[Domain], data: Dataset) -> None:
    config = settings()
    torch.manual_seed(0)
    model = ClickModel(
        build_extractors(config, num_words=data.vocabulary.size),
        Aden(width=16, num_heads=4, num_time_blocks=168, head_widths=(16, 8), dropout=0.1, reads=frozenset(reads)),
    ).eval()
    stage, index_B = make_stage(model, data), np.arange(300, 40, -3)
    stories, products = raw_items(data, max_words=32)
    batch = make_batch(
        data, data.holdout, index_B, sequence_length=20, block_hours=data.windows.block_hours, num_time_blocks=168
    )
    with torch.inference_mode():
        logits_B = model(batch, stories=stories, products=products).numpy()
        scores_B = stage.score(data.holdout, index_B)
    assert scores_B.std() > 1e-3
    np.testing.assert_allclose(scores_B, logits_B, atol=1e-5, rtol=1e-4)


def test_covered_positions_are_those_of_any_slice() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        start_B = generator.integers(0, 30, size=generator.integers(0, 6))
        stop_B = start_B + generator.integers(0, 8, size=len(start_B))  # some are empty
        slices = zip(start_B.tolist(), stop_B.tolist(), strict=True)
        expected = sorted({position for start, stop in slices for position in range(start, stop)})
        assert covered(start_B, stop_B).tolist() == expected


def test_validation_judges_every_scorable_impression_once(data: Dataset) -> None:
    model = build_aden(settings(), num_words=data.vocabulary.size).eval()
    stage, validation = make_stage(model, data), data.validation
    with torch.inference_mode():
        value = stage.validate().value
        logits_B = stage.score(validation, np.arange(len(validation)))
    expected = per_user_auc(validation.user_ids_B, validation.clicked_B, logits_B)
    assert value == pytest.approx(expected.mean, abs=1e-3)
    users_U = expected.users_U
    assert sorted(stage.judged_B) == np.flatnonzero(np.isin(validation.user_ids_B, users_U)).tolist()


def test_scorable_impressions_are_those_of_users_with_both_classes() -> None:
    users_B = np.array([3, 1, 2, 1, 3, 2, 3])
    clicked_B = np.array([1, 1, 0, 0, 1, 0, 0], bool)
    nothing_B = np.zeros(7, np.int64)
    instances = Instances(users_B, nothing_B, nothing_B, clicked_B, nothing_B, nothing_B, nothing_B, nothing_B)
    assert scorable_impressions(instances).tolist() == [1, 3, 0, 4, 6]


def test_without_scorable_users_log_loss_judges(data: Dataset, finetune: Finetune) -> None:
    validation = part(data.validation, np.flatnonzero(data.validation.clicked_B))
    _, report = finetune(replace(data, validation=validation), settings(max_epochs=1))
    assert report["stopped_by"] == "log_loss"
    assert report["best_value"] == -report["curves"][1]["validation"]["log_loss"]


@pytest.mark.parametrize("clicked", [True, False])
def test_one_class_is_refused(clicked: bool, data: Dataset, finetune: Finetune, tmp_path: Path) -> None:
    train = part(data.train, np.flatnonzero(data.train.clicked_B == clicked))
    with pytest.raises(DataError, match="some that were clicked and some that were not"):
        finetune(replace(data, train=train), settings())
    assert not (tmp_path / "aden").exists()


def test_no_validation_impressions_are_refused(data: Dataset, finetune: Finetune) -> None:
    with pytest.raises(DataError, match="no validation impressions"):
        finetune(replace(data, validation=part(data.validation, np.zeros(0, np.int64))), settings())


@pytest.mark.parametrize("damage", ["missing", "truncated", "other shape"])
def test_unusable_dual_is_a_model_error(damage: str, data: Dataset, finetune: Finetune, tmp_path: Path) -> None:
    write_dual(tmp_path / "dual", data, settings())
    weights = tmp_path / "dual/dual.safetensors"
    match damage:
        case "missing":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:80])
        case "other shape":
            other = Dual(build_extractors(settings(), num_words=5))
            safetensors.torch.save_file(other.state_dict(), weights)
    with pytest.raises(ModelError, match=r"dual\.safetensors"):
        finetune(data, settings())
    assert not (tmp_path / "aden").exists()


def part(instances: Instances, index_B: np.ndarray) -> Instances:
    return Instances(**{name: np.asarray(values)[index_B] for name, values in vars(instances).items()})


def write_champion(
    root: Path, data: Dataset, config: Config, *, weights: bytes | None = None, **theirs: dict[str, Any]
) -> tuple[Path, Vocabulary]:
    """A bundle as far as a start needs it: without `weights`, drawn ones over other words in another order."""
    folder = root / "champion"
    folder.mkdir()
    sections = {"windows": {"block_hours": data.windows.block_hours}, **theirs}
    for section, values in sections.items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    save_config(config, folder / "config.toml")
    known = data.vocabulary
    if weights is None:
        known = Vocabulary((*known.words[:2], "never-seen", *reversed(known.words[2:-4])))
        model = build_aden(config, num_words=known.size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3)
        weights = safetensors.torch.save(model.state_dict())
    (folder / "aden.safetensors").write_bytes(weights)
    known.save(folder / "tokenizer.json")
    return folder, known
