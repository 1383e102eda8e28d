"""What every method of the comparison does on a marketplace with planted structure, whatever it computes.

`test_rankers.py` holds what they keep to on drawn features.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import safetensors.torch
import torch

from builders import planted_dataset
from storyrec.data.dataset import Dataset
from storyrec.device import training_device
from storyrec.experiments.methods import BEYOND, ORIGINALS, PRETRAININGS, TABLE_4, TABLE_6, Method, Sizes
from storyrec.finetune import ClickStage
from storyrec.loop import Moment, Schedule, train
from storyrec.metrics import per_user_auc
from storyrec.models.click_model import ClickModel
from storyrec.models.extractors import Extractors
from storyrec.pretrain import raw_items

METHODS = {method.name: method for table in (TABLE_4, ORIGINALS, TABLE_6, BEYOND) for method in table}
# the rest of Table VI and of the switches differs from these in where extractors start or what they read
LEARNERS = [*TABLE_4, *ORIGINALS, METHODS["V+T (storytelling)"], METHODS["V+T (product)"], METHODS["domain gating"]]
WIDTH, MAX_WORDS, NUM_TIME_BLOCKS, SEQUENCE_LENGTH = 16, 8, 24, 10

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
every_learner = pytest.mark.parametrize("method", LEARNERS, ids=[method.name for method in LEARNERS])


@pytest.fixture(scope="module")
def data() -> Dataset:
    return planted_dataset(0, num_users=100)


@pytest.fixture(scope="module")
def permuted() -> Dataset:
    return planted_dataset(1, num_users=100, permuted=True)


@pytest.fixture(scope="module")
def coverless() -> Dataset:
    return planted_dataset(0, num_users=20, covers=False)


@dataclass(frozen=True)
class Trial:
    """A method's model and what trains it on a dataset."""

    model: ClickModel
    stage: ClickStage

    @classmethod
    def of(cls, method: Method, data: Dataset, *, seed: int = 0) -> "Trial":
        """A fresh one; the same seed gives the same weights."""
        stories, products = raw_items(data, max_words=MAX_WORDS)
        sizes = Sizes(
            width=WIDTH,
            num_heads=4,
            num_time_blocks=NUM_TIME_BLOCKS,
            sequence_length=SEQUENCE_LENGTH,
            head_widths=(32, 16),
            dropout=0.1,
            num_users=len(data.training_users_U),
            num_categories=int(products.categories_N.max()),
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            extractors = Extractors(num_words=data.vocabulary.size, width=WIDTH, max_words=MAX_WORDS)
            model = ClickModel(extractors, method.build(sizes), modalities=method.modalities)
        stage = ClickStage(
            model,
            data=data,
            stories=stories,
            products=products,
            batch_size=64,
            sequence_length=SEQUENCE_LENGTH,
            num_time_blocks=NUM_TIME_BLOCKS,
        )
        return cls(model, stage)

    def train(self, *, max_epochs: int) -> "Trial":
        schedule = Schedule(
            seed=0,
            learning_rate=1e-2,
            weight_decay=0.01,
            clip_norm=1.0,
            max_epochs=max_epochs,
            max_steps=10_000,
            patience=max_epochs,
            warmup_share=0.1,
            keep_start=False,
        )
        with training_device():
            train(self.model, name="trial", stage=self.stage, schedule=schedule)
        return self

    def score(self, index_B: np.ndarray) -> np.ndarray:
        self.model.eval()
        with torch.inference_mode():
            return self.stage.score(self.stage.data.holdout, index_B)

    def holdout_auc(self) -> float:
        holdout = self.stage.data.holdout
        return per_user_auc(holdout.user_ids_B, holdout.clicked_B, self.score(np.arange(len(holdout)))).mean


@every_learner
def test_planted_structure_is_learned(method: Method, data: Dataset) -> None:
    """Also by the methods without a sequence: every user has instances, every story a title and a cover."""
    assert Trial.of(method, data).train(max_epochs=6).holdout_auc() > 0.65


@every_learner
def test_nothing_is_learned_from_permuted_clicks(method: Method, permuted: Dataset) -> None:
    assert Trial.of(method, permuted).train(max_epochs=2).holdout_auc() == pytest.approx(0.5, abs=0.06)


@every_method
def test_order_and_company_of_impressions_do_not_matter(method: Method, data: Dataset) -> None:
    trial, index_B = Trial.of(method, data), np.arange(40, 80)
    scores_B = trial.score(index_B)
    order_B = np.random.default_rng(0).permutation(len(index_B))
    assert trial.score(index_B[order_B]) == pytest.approx(scores_B[order_B], abs=1e-5)
    alone_B = [trial.score(index_B[[place]])[0] for place in range(0, len(index_B), 8)]
    assert alone_B == pytest.approx(scores_B[::8], abs=1e-5)
    assert len(set(scores_B.round(6))) > 1


@every_method
def test_saved_weights_score_alike(method: Method, data: Dataset) -> None:
    index_B = np.arange(40)
    trial, other = Trial.of(method, data), Trial.of(method, data, seed=1)
    scores_B = trial.score(index_B)
    assert not np.array_equal(other.score(index_B), scores_B)
    other.model.load_state_dict(safetensors.torch.load(safetensors.torch.save(trial.model.state_dict())))
    assert np.array_equal(other.score(index_B), scores_B)


@every_method
def test_without_covers_scores_losses_and_gradients_are_finite(method: Method, coverless: Dataset) -> None:
    """Where a method reads covers alone, it has nothing to read at all."""
    trial = Trial.of(method, coverless)
    assert np.isfinite(trial.score(np.arange(40))).all()
    loss, _ = trial.stage.loss(np.arange(40), Moment(step=0, progress=0.0, generator=np.random.default_rng(0)))
    loss.backward()
    gradients = [part.grad for part in trial.model.parameters() if part.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_table_4_has_the_papers_methods_in_its_order() -> None:
    paper = "MF NCF YouTubeNet THACIL DIN DIEN BST CMF CoNet Cross-BST pi-Net ADAPT"
    assert [method.name for method in TABLE_4] == paper.split()
    groups = [method.group for method in TABLE_4]
    assert groups == ["single-domain"] * 7 + ["cross-domain"] * 5


@every_method
def test_a_name_has_one_meaning_and_what_it_refers_to_exists(method: Method) -> None:
    same = [other for table in (TABLE_4, ORIGINALS, TABLE_6, BEYOND) for other in table if other.name == method.name]
    assert all(other is method for other in same)
    assert method.tuned_as in {"", *METHODS}
    assert method.pretraining in {None, *PRETRAININGS}
