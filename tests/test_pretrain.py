"""DUAL on a planted marketplace: what it learns, where it starts from, and what it refuses."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from builders import planted_config, planted_dataset
from storyrec.config import Config, save_config
from storyrec.data.dataset import Dataset
from storyrec.errors import ModelError
from storyrec.features.titles import Vocabulary
from storyrec.loop import Moment, Schedule, train
from storyrec.losses import domain_adversarial_loss, dual_domain_loss, info_nce_loss
from storyrec.models.dual import Dual
from storyrec.models.extractors import Extractors, RawItems
from storyrec.pair_stage import PairStage
from storyrec.pairs import Mounts, draw_others
from storyrec.pretrain import TOO_FEW_PAIRS, build_dual, pretrain_dual, raw_items
from storyrec.schema import Domain
from storyrec.storage import FolderStorage
from storyrec.warmstart import WORD_TABLE

Pretrain = Callable[..., tuple[Path, dict[str, Any]]]


def settings(**dual: Any) -> Config:
    config = planted_config(Path("unused"))
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"width": 16}),
            "dual": config.dual.model_copy(update={"contrast": "hinge", "max_epochs": 30, **dual}),
        }
    )


@pytest.fixture(scope="module")
def data() -> Dataset:
    return planted_dataset(0, num_users=20, num_days=4, items_per_day=100, num_clusters=12)


@pytest.fixture
def pretrain(tmp_path: Path) -> Pretrain:
    def pretrain(data: Dataset, config: Config, champion: Path | None = None) -> tuple[Path, dict[str, Any]]:
        data.save(tmp_path / "dataset")
        out = tmp_path / "dual"
        checkpoints = FolderStorage(tmp_path / "checkpoints")
        pretrain_dual(config, dataset=tmp_path / "dataset", champion=champion, checkpoints=checkpoints, out=out)
        return out, json.loads((out / "training.json").read_text())

    return pretrain


def load_dual(folder: Path, config: Config, data: Dataset) -> Dual:
    model = build_dual(config, num_words=data.vocabulary.size)
    model.load_state_dict(safetensors.torch.load_file(folder / "dual.safetensors"))
    return model.eval()


def features(model: Dual, data: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Matching vectors of the stories and of the products of all pairs."""
    items = raw_items(data, max_words=32)
    with torch.inference_mode():
        story, product = (
            model.eval().extractors.extract(side, data.pairs_M2[:, column]).match_NM
            for column, side in enumerate(items)
        )
    return story, product


def reciprocal_rank(model: Dual, data: Dataset) -> float:
    """Mean reciprocal rank of each product's own story among all stories."""
    story, product = features(model, data)
    distances = torch.cdist(product, story)
    return (distances <= distances.diagonal().unsqueeze(1)).float().sum(1).reciprocal().mean().item()


def test_pairs_come_together(data: Dataset, pretrain: Pretrain) -> None:
    config = settings()
    out, report = pretrain(data, config)
    before = reciprocal_rank(build_dual(config, num_words=data.vocabulary.size), data)
    after = reciprocal_rank(load_dual(out, config, data), data)
    assert after > 2 * before
    assert after > 0.16  # a cluster has 33 items, which nothing but noise tells apart: its own mean is 0.12

    first, best = report["curves"][0]["validation"], report["curves"][report["best_epoch"]]["validation"]
    assert first["title_loss"] == pytest.approx(4 + math.log(2), abs=0.3)  # 4 hinges of 1, nothing known
    assert best["title_loss"] < first["title_loss"] - 0.5
    assert best["cover_loss"] < first["cover_loss"] - 1
    assert best["value"] == pytest.approx(-(best["title_hinge"] + best["cover_hinge"]))
    assert report["best_value"] == best["value"]
    assert report["num_pairs"] == len(data.pairs_M2) == report["num_training_pairs"] + report["num_validation_pairs"]
    assert report["seconds"] > 0
    assert not report["start"]["champion"]


class WithoutReversal(PairStage):
    """The same stage, but the extractors never feel the classifiers."""

    def loss(self, index_B: np.ndarray, moment: Moment) -> tuple[torch.Tensor, Mapping[str, float]]:
        return super().loss(index_B, replace(moment, progress=0.0))


def cover_curve(kind: type[PairStage], pairs_M2: np.ndarray, *, mark: float, max_epochs: int) -> list[dict[str, float]]:
    """Train on covers that carry a mark of their domain; the validation metrics of each epoch."""
    generator = np.random.default_rng(0)
    content_NV = generator.normal(size=(pairs_M2.max() + 1, 10))
    stories, products = (
        RawItems.of(
            np.zeros((len(content_NV), 4), np.int32), (content_NV + sign * mark).astype(np.float16), domain=side
        )
        for sign, side in ((1, Domain.STORY), (-1, Domain.PRODUCT))
    )
    torch.manual_seed(0)
    model = Dual(Extractors(num_words=2, width=8, max_words=4, visual_width=10))
    model.extractors.visual_projection.reset_parameters()  # these covers are several times longer than real ones
    stage = kind(
        model, stories=stories, products=products, mounts=Mounts(pairs_M2), training_M2=pairs_M2,
        validation_M2=pairs_M2, batch_size=50, margin=1.0, squared=False, seed=0,
    )  # fmt: skip
    schedule = Schedule(
        seed=0, learning_rate=0.003, weight_decay=0.01, clip_norm=1.0, max_epochs=max_epochs, max_steps=1_000,
        patience=max_epochs, warmup_share=0.1, keep_start=False,
    )  # fmt: skip
    return [entry["validation"] for entry in train(model, name="dual", stage=stage, schedule=schedule).curves]


def test_domain_accuracy_goes_to_one_half() -> None:
    curve = cover_curve(PairStage, np.stack([np.arange(1, 300)] * 2, 1), mark=1.5, max_epochs=40)
    assert curve[0]["cover_domain_accuracy"] > 0.75
    assert curve[-1]["cover_domain_accuracy"] == pytest.approx(0.5, abs=0.1)
    assert curve[-1]["cover_adversary"] == pytest.approx(math.log(2), abs=0.05)
    assert curve[-1]["cover_hinge"] < 0.1


def test_the_adversary_alone_confuses_the_classifiers() -> None:
    """Every story mounts every product: no negatives, so no hinges; what moves the extractors is the reversal."""
    stories, products = np.meshgrid(np.arange(1, 21), np.arange(1, 21))
    pairs_M2 = np.stack([stories.ravel(), products.ravel()], 1)
    curves = {kind: cover_curve(kind, pairs_M2, mark=0.5, max_epochs=40) for kind in (PairStage, WithoutReversal)}
    assert "cover_hinge" not in curves[PairStage][-1]
    lowest = {kind: min(entry["cover_domain_accuracy"] for entry in curve) for kind, curve in curves.items()}
    assert lowest[WithoutReversal] > 0.8
    assert lowest[PairStage] < 0.5  # both sides chase each other without end, so not every epoch shows it


def test_losses_of_a_batch_are_equations_5_and_6(data: Dataset) -> None:
    """Recomputed from the features, with the negatives drawn one modality after the other."""
    model = build_dual(settings(), num_words=data.vocabulary.size).eval()
    stories, products = raw_items(data, max_words=32)
    pairs_B2, mounts = data.pairs_M2[:40], Mounts(data.pairs_M2)
    stage = make_stage(model, data, validation_M2=pairs_B2, training_M2=pairs_B2)
    generator = np.random.default_rng(5)
    loss, shown = stage.loss(np.arange(40), Moment(step=0, progress=0.3, generator=np.random.default_rng(5)))

    story, product = (
        model.extractors.extract(stories, pairs_B2[:, 0]),
        model.extractors.extract(products, pairs_B2[:, 1]),
    )
    expected, draws = 0.0, []
    for name, classifier in (("textual_ND", model.textual_classifier), ("visual_ND", model.visual_classifier)):
        s, p = getattr(story, name), getattr(product, name)
        draws.append(draw_others(pairs_B2, mounts=mounts, generator=generator))
        expected += dual_domain_loss(s, p, s[draws[-1]], p[draws[-1]], margin=1.0)
        expected += domain_adversarial_loss(classifier(s).squeeze(-1), classifier(p).squeeze(-1))
    assert not np.array_equal(*draws)  # title and cover have their own negatives
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    parts = ("title_hinge", "title_adversary", "cover_hinge", "cover_adversary")
    assert sum(shown[part] for part in parts) == pytest.approx(expected.item(), rel=1e-5)


def test_infonce_stage_contrasts_all_pairs_of_the_batch(data: Dataset) -> None:
    """Recomputed from the features; two stories of one product and two products of one story are no negatives."""
    model = build_dual(settings(), num_words=data.vocabulary.size).eval()
    stories, products = raw_items(data, max_words=32)
    pairs_B2 = data.pairs_M2[:20].copy()
    pairs_B2[3, 0], pairs_B2[7, 1] = pairs_B2[2, 0], pairs_B2[6, 1]
    known = {tuple(pair) for pair in pairs_B2.tolist()}
    related_BB = torch.tensor([[(s, p) in known for p in pairs_B2[:, 1].tolist()] for s in pairs_B2[:, 0].tolist()])
    assert related_BB.sum() == 20 + 4
    stage = make_stage(
        model, replace(data, pairs_M2=pairs_B2), training_M2=pairs_B2, validation_M2=pairs_B2, contrast="infonce"
    )
    with torch.no_grad():
        loss, shown = stage.loss(np.arange(20), Moment(step=0, progress=0.3, generator=np.random.default_rng(5)))
        judgement = stage.validate()

        story = model.extractors.extract(stories, pairs_B2[:, 0])
        product = model.extractors.extract(products, pairs_B2[:, 1])
        contrasts, adversaries = [], []
        for name, classifier in (("textual_ND", model.textual_classifier), ("visual_ND", model.visual_classifier)):
            s, p = getattr(story, name), getattr(product, name)
            contrasts.append(info_nce_loss(s, p, related_BB).item())
            adversaries.append(domain_adversarial_loss(classifier(s).squeeze(-1), classifier(p).squeeze(-1)).item())
    assert [shown["title_infonce"], shown["cover_infonce"]] == pytest.approx(contrasts, rel=1e-5)
    assert loss.item() == pytest.approx(sum(contrasts) + sum(adversaries), rel=1e-5)
    assert judgement.value == pytest.approx(-sum(contrasts), rel=1e-5)
    assert not any("hinge" in name for name in [*shown, *judgement.metrics])


def test_infonce_brings_pairs_together(data: Dataset, pretrain: Pretrain) -> None:
    config = settings(contrast="infonce", max_epochs=15)
    out, report = pretrain(data, config)
    before = reciprocal_rank(build_dual(config, num_words=data.vocabulary.size), data)
    assert reciprocal_rank(load_dual(out, config, data), data) > 2 * before
    best = report["curves"][report["best_epoch"]]["validation"]
    assert report["best_value"] == best["value"] == pytest.approx(-(best["title_infonce"] + best["cover_infonce"]))


@pytest.mark.parametrize("contrast", ["hinge", "infonce"])
def test_without_the_adversary_the_contrast_is_all(contrast: str, data: Dataset) -> None:
    pairs_B2 = data.pairs_M2[:40]
    losses, gradients, judged = {}, {}, {}
    for adversary in (True, False):
        model = build_dual(settings(), num_words=data.vocabulary.size).eval()
        stage = make_stage(
            model, data, training_M2=pairs_B2, validation_M2=pairs_B2, contrast=contrast, adversary=adversary
        )
        moment = Moment(step=0, progress=0.3, generator=np.random.default_rng(5))
        total, losses[adversary] = stage.loss(np.arange(40), moment)
        total.backward()
        assert total.item() == pytest.approx(losses[adversary]["title_loss"] + losses[adversary]["cover_loss"])
        gradients[adversary] = [
            part.grad for classifier in (model.textual_classifier, model.visual_classifier)
            for part in classifier.parameters()
        ]  # fmt: skip
        with torch.no_grad():
            judged[adversary] = stage.validate().value
    parts = {f"{modality}_{contrast}" for modality in ("title", "cover")}
    assert losses[False].keys() == parts | {"title_loss", "cover_loss"}
    assert losses[False].items() >= {name: losses[True][name] for name in parts}.items()
    assert all(gradient is None for gradient in gradients[False])
    assert all(gradient.any() for gradient in gradients[True])
    assert judged[True] == judged[False]


def test_pairs_without_a_cover_count_by_title_alone(data: Dataset) -> None:
    model = build_dual(settings(), num_words=data.vocabulary.size).eval()
    covers_NV = np.array(data.stories.visual_raw_NV)
    pairs_B2 = data.pairs_M2[:40]
    covers_NV[pairs_B2[:30, 0]] = 0.0
    bare = replace(data, stories=replace(data.stories, visual_raw_NV=covers_NV))
    with torch.inference_mode():
        some = make_stage(model, bare, validation_M2=pairs_B2, training_M2=pairs_B2).validate().metrics
        last = make_stage(model, data, validation_M2=pairs_B2[30:], training_M2=pairs_B2).validate().metrics
        whole = make_stage(model, data, validation_M2=pairs_B2, training_M2=pairs_B2).validate().metrics
    assert some["title_hinge"] == whole["title_hinge"]
    assert some["cover_hinge"] != whole["cover_hinge"]
    assert abs(some["cover_hinge"] - last["cover_hinge"]) < 0.5  # a zero vector for a cover would pull it towards 4
    assert some["cover_domain_accuracy"] != last["cover_domain_accuracy"]  # all 40 products have covers


def test_without_any_cover_titles_train_alone(pretrain: Pretrain) -> None:
    data = planted_dataset(0, num_users=10, num_days=3, covers=False)
    out, report = pretrain(data, settings(max_epochs=3))
    assert not any("cover" in name for entry in report["curves"] for name in entry["validation"])
    model = load_dual(out, settings(), data)
    untrained = build_dual(settings(), num_words=data.vocabulary.size)
    weights = model.extractors.visual_projection.weight, untrained.extractors.visual_projection.weight
    assert torch.equal(*weights)
    assert not torch.equal(model.extractors.words.weight, untrained.extractors.words.weight)


def test_champion_gives_each_word_its_row(data: Dataset, pretrain: Pretrain, tmp_path: Path) -> None:
    champion, known = write_champion(tmp_path, data, settings())
    _, report = pretrain(data, settings(max_epochs=1, learning_rate=1e-12), champion)
    start = report["start"]
    assert start["champion"]
    assert (start["num_words_copied"], start["num_words_new"]) == (
        known.size - 1,
        data.vocabulary.size - known.size + 1,
    )

    theirs = safetensors.torch.load_file(champion / "dual.safetensors")
    fresh = build_dual(settings(), num_words=data.vocabulary.size).state_dict()
    ours = safetensors.torch.load_file(tmp_path / "dual/dual.safetensors")
    for number, word in enumerate(data.vocabulary.words):
        expected = theirs[WORD_TABLE][known.words.index(word)] if word in known.words else fresh[WORD_TABLE][number]
        torch.testing.assert_close(ours[WORD_TABLE][number], expected, atol=1e-9, rtol=1e-6)
    for name in ours.keys() - {WORD_TABLE}:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": {"width": 32}}, "model.width was 16, now 32"),
        ({"model": {"word_positions": False}}, "model.word_positions was True, now False"),
        ({"features": {"max_title_words": 12}}, "extractors.positions.weight' was (32, 16), now (12, 16)"),
    ],
)
def test_champion_of_another_shape_is_no_start(
    change: dict[str, Any], reason: str, data: Dataset, pretrain: Pretrain, tmp_path: Path
) -> None:
    champion, _ = write_champion(tmp_path, data, settings())
    config = settings(max_epochs=1)
    for section, values in change.items():
        config = config.model_copy(update={section: getattr(config, section).model_copy(update=values)})
    _, report = pretrain(data, config, champion)
    assert not report["start"]["champion"]
    assert reason in report["start"]["reason"]


def test_trained_start_is_kept_where_training_only_harms(data: Dataset, pretrain: Pretrain, tmp_path: Path) -> None:
    out, _ = pretrain(data, settings(max_epochs=5))
    champion, _ = write_champion(tmp_path, data, settings(), weights=out / "dual.safetensors")
    harmful, report = pretrain(data, settings(max_epochs=2, learning_rate=5.0), champion)
    assert report["best_epoch"] == 0
    assert (harmful / "dual.safetensors").read_bytes() == (champion / "dual.safetensors").read_bytes()


@pytest.mark.parametrize("num_pairs", [0, 1])
def test_too_few_pairs_leave_the_extractors_as_they_started(
    num_pairs: int, data: Dataset, pretrain: Pretrain, tmp_path: Path
) -> None:
    started, _ = pretrain(data, settings(max_epochs=2))
    champion, _ = write_champion(tmp_path, data, settings(), weights=started / "dual.safetensors")
    out, report = pretrain(replace(data, pairs_M2=data.pairs_M2[:num_pairs]), settings(), champion)
    assert report["notes"] == [TOO_FEW_PAIRS]
    assert report["num_steps"] == 0
    assert (out / "dual.safetensors").read_bytes() == (champion / "dual.safetensors").read_bytes()


def test_two_stories_are_enough(data: Dataset, pretrain: Pretrain) -> None:
    _, report = pretrain(replace(data, pairs_M2=data.pairs_M2[:2]), settings(max_epochs=2))
    assert report["num_steps"] == 2


@pytest.mark.parametrize("damage", ["missing", "truncated", "vocabulary"])
def test_damaged_champion_is_a_model_error(damage: str, data: Dataset, pretrain: Pretrain, tmp_path: Path) -> None:
    champion, known = write_champion(tmp_path, data, settings())
    weights = champion / "dual.safetensors"
    match damage:
        case "missing":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:50])
        case "vocabulary":
            Vocabulary(known.words[:-1]).save(champion / "tokenizer.json")
    with pytest.raises(ModelError, match="champion"):
        pretrain(data, settings(), champion)
    assert not (tmp_path / "dual").exists()


def make_stage(
    model: Dual, data: Dataset, *, training_M2: np.ndarray, validation_M2: np.ndarray, **variant: Any
) -> PairStage:
    stories, products = raw_items(data, max_words=32)
    return PairStage(
        model, stories=stories, products=products, mounts=Mounts(data.pairs_M2), training_M2=training_M2,
        validation_M2=validation_M2, batch_size=512, margin=1.0, squared=False, seed=0, **variant,
    )  # fmt: skip


def write_champion(
    root: Path, data: Dataset, config: Config, *, weights: Path | None = None
) -> tuple[Path, Vocabulary]:
    """A bundle as far as a start needs it: without `weights`, drawn ones over other words in another order."""
    folder = root / "champion"
    folder.mkdir()
    save_config(config, folder / "config.toml")
    known = data.vocabulary
    if weights is None:
        reserved, words = known.words[:2], known.words[2:]
        known = Vocabulary((*reserved, "never-seen", *reversed(words[:-4])))
        model = build_dual(config, num_words=known.size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        safetensors.torch.save_file(model.state_dict(), folder / "dual.safetensors")
    else:
        (folder / "dual.safetensors").write_bytes(weights.read_bytes())
    known.save(folder / "tokenizer.json")
    return folder, known
