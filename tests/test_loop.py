"""The training loop: exact resume, best weights, early stopping, and what it refuses."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from killed_step import STEPS, run_step, write_dataset
from storyrec import loop
from storyrec.checkpoint import CheckpointStore, run_key, weights_digest
from storyrec.errors import ModelError
from storyrec.loop import Judgement, Moment, Schedule, fitted_batch_size, rate_factor, train
from storyrec.models.dropout import Dropout
from storyrec.storage import FolderStorage

SCHEDULE = Schedule(
    seed=3, learning_rate=0.05, weight_decay=0.01, clip_norm=1.0, max_epochs=4, max_steps=1_000, patience=9,
    warmup_share=0.1, keep_start=False,
)  # fmt: skip


class Interrupted(Exception):
    """Stands for whatever ends a process."""


@dataclass
class LineStage:
    """Fits a noisy line; `values` replaces the validation values, `stop_at` interrupts a step."""

    model: torch.nn.Module
    values: Sequence[float] = ()
    stop_at: int = -1
    steps: list[int] = field(default_factory=list)
    num_judged: int = 0

    def batches(self, generator: np.random.Generator) -> Sequence[np.ndarray]:
        return list(generator.permutation(40).reshape(5, 8))

    def loss(self, index_B: np.ndarray, moment: Moment) -> tuple[torch.Tensor, Mapping[str, float]]:
        if moment.step == self.stop_at:
            raise Interrupted
        self.steps.append(moment.step)
        x_B3 = torch.from_numpy(np.stack([index_B / 40, np.sin(index_B), np.cos(index_B)], axis=1)).float()
        noise_B = torch.from_numpy(moment.generator.normal(size=len(index_B))).float()
        y_B = x_B3 @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * noise_B
        return (self.model(x_B3).squeeze(-1) - y_B).square().mean(), {"step": float(moment.step)}

    def validate(self) -> Judgement:
        self.num_judged += 1
        if self.values:
            return Judgement(self.values[self.num_judged - 1], {})
        weight = self.model[0].weight.sum().item()
        return Judgement(weight, {"weight": weight})


def make_model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), Dropout(0.3), torch.nn.Linear(4, 1))


def run(stage: LineStage, schedule: Schedule = SCHEDULE, store: CheckpointStore | None = None) -> loop.Trained:
    return train(stage.model, name="line", stage=stage, schedule=schedule, store=store)


@pytest.mark.parametrize("stop_at", [1, 5, 12])
def test_interrupted_run_ends_with_the_same_bits(stop_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole = LineStage(make_model())
    expected = run(whole)

    first = LineStage(make_model(), stop_at=stop_at)
    with pytest.raises(Interrupted):
        run(first, store=CheckpointStore(FolderStorage(tmp_path), key="k"))
    second = LineStage(make_model())
    trained = run(second, store=CheckpointStore(FolderStorage(tmp_path), key="k"))

    assert first.steps + second.steps == whole.steps == list(range(20))  # not one step twice
    assert weights_digest(second.model) == weights_digest(whole.model)
    assert trained.curves == expected.curves
    assert (trained.best_epoch, trained.num_steps) == (expected.best_epoch, 20)


@pytest.mark.parametrize(("step", "num_writes"), [("pretrain_dual", 5), ("finetune_aden", 12)])
def test_killed_step_ends_with_the_same_bits(step: str, num_writes: int, tmp_path: Path) -> None:
    """SIGKILL after a whole checkpoint (even) or between its tensors and its state (odd)."""
    write_dataset(tmp_path)
    if step == "finetune_aden":
        run_step("pretrain_dual", tmp_path, checkpoints=FolderStorage(tmp_path / "others"), out=tmp_path / "dual")
    run_step(step, tmp_path, checkpoints=FolderStorage(tmp_path / "undisturbed"), out=tmp_path / "expected")

    command = [sys.executable, str(Path(__file__).parent / "killed_step.py"), step, str(tmp_path), str(num_writes)]
    assert subprocess.run(command, check=False).returncode == -9
    assert not (tmp_path / "never").exists()
    (state,) = (tmp_path / "checkpoints").glob("*/state.json")
    assert '"finished": false' in state.read_text()

    run_step(step, tmp_path, checkpoints=FolderStorage(tmp_path / "checkpoints"), out=tmp_path / "resumed")
    name = f"{STEPS[step]}.safetensors"
    assert (tmp_path / "resumed" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


def test_finished_run_is_loaded_at_once(tmp_path: Path) -> None:
    first, second = LineStage(make_model()), LineStage(make_model())
    trained = run(first, store=CheckpointStore(FolderStorage(tmp_path), key="k"))
    again = run(second, store=CheckpointStore(FolderStorage(tmp_path), key="k"))
    assert second.steps == []
    assert second.num_judged == 0
    assert weights_digest(second.model) == weights_digest(first.model)
    assert again == trained
    assert len(list((tmp_path / "k").glob("*.safetensors"))) == 1  # the older one is gone


@pytest.mark.parametrize("damage", ["tensors", "truncated", "state", "no tensors", "meaning"])
def test_damaged_checkpoint_is_ignored_with_a_note(damage: str, tmp_path: Path) -> None:
    expected = LineStage(make_model())
    run(expected, store=CheckpointStore(FolderStorage(tmp_path), key="k"))
    state, (tensors,) = tmp_path / "k/state.json", (tmp_path / "k").glob("*.safetensors")
    match damage:
        case "tensors":
            content = bytearray(tensors.read_bytes())
            content[-1] ^= 1
            tensors.write_bytes(content)
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:100])
        case "no tensors":
            tensors.unlink()
        case "state":
            state.write_text(state.read_text()[:-20])
        case "meaning":
            state.write_text(state.read_text().replace('"best_epoch"', '"worst_epoch"'))
    stage = LineStage(make_model())
    trained = run(stage, store=CheckpointStore(FolderStorage(tmp_path), key="k"))
    assert stage.steps == list(range(20))
    assert "damaged checkpoint" in trained.notes[0]
    assert weights_digest(stage.model) == weights_digest(expected.model)
    assert run(LineStage(make_model()), store=CheckpointStore(FolderStorage(tmp_path), key="k")).notes == []


def test_best_epoch_wins_and_patience_ends_the_run() -> None:
    stage = LineStage(make_model(), values=[9.0, 0.1, 0.5, 0.4, 0.5])
    trained = run(stage, replace(SCHEDULE, max_epochs=9, patience=2))
    assert trained.best_epoch == 2  # an equal value later is no better
    assert [entry["epoch"] for entry in trained.curves] == [0, 1, 2, 3, 4]
    two_epochs = LineStage(make_model(), values=[9.0, 0.1, 0.5])
    run(two_epochs, replace(SCHEDULE, max_epochs=9, max_steps=14))
    assert two_epochs.steps == list(range(10))  # whole epochs only


def test_best_weights_are_those_of_their_epoch() -> None:
    seen: list[str] = []

    class Watching(LineStage):
        def validate(self) -> Judgement:
            seen.append(weights_digest(self.model))
            return super().validate()

    stage = Watching(make_model(), values=[0.0, 0.1, 0.5, 0.4, 0.2])
    run(stage)
    assert weights_digest(stage.model) == seen[2]
    assert len(set(seen)) == 5


def test_trained_start_wins_only_where_it_may() -> None:
    start = weights_digest(make_model())
    for keep_start, best_epoch in ((True, 0), (False, 1)):
        stage = LineStage(make_model(), values=[9.0, 3.0, 2.0, 1.0, 0.0])
        trained = run(stage, replace(SCHEDULE, keep_start=keep_start))
        assert trained.best_epoch == best_epoch
        assert (weights_digest(stage.model) == start) is keep_start


def test_curves_hold_the_means_of_each_epoch() -> None:
    trained = run(LineStage(make_model()))
    assert [entry["training"]["step"] for entry in trained.curves[1:]] == [2.0, 7.0, 12.0, 17.0]
    assert "training" not in trained.curves[0]


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_diverged_training_is_a_model_error(wrong: float) -> None:
    class Diverging(LineStage):
        def loss(self, index_B: np.ndarray, moment: Moment) -> tuple[torch.Tensor, Mapping[str, float]]:
            loss, metrics = super().loss(index_B, moment)
            return (loss * wrong if moment.step == 7 else loss), metrics

    with pytest.raises(ModelError, match=r"diverged(.|\n)*line, epoch 2, step 7"):
        run(Diverging(make_model()))
    with pytest.raises(ModelError, match="validation value"):
        run(LineStage(make_model(), values=[0.0, wrong]))


def test_callers_random_state_is_left_alone() -> None:
    model = make_model()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    run(LineStage(model))
    assert torch.equal(torch.rand(3), expected)


def test_run_key_stands_for_weights_and_settings() -> None:
    model, settings = make_model(), {"a": 1}
    key = run_key("line", model=model, settings=settings)
    assert key == run_key("line", model=make_model(), settings={"a": 1})
    assert key != run_key("line", model=model, settings={"a": 2})
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    assert key != run_key("line", model=model, settings=settings)


def test_rate_rises_and_falls_linearly() -> None:
    factors = [rate_factor(progress, warmup_share=0.2) for progress in (0.0, 0.1, 0.2, 0.6, 1.0)]
    assert factors == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0])
    assert rate_factor(0.0, warmup_share=0.0) == 1.0


def test_few_examples_get_small_batches() -> None:
    assert [fitted_batch_size(number, largest=512) for number in (3, 1_600, 10_000, 10**6)] == [32, 32, 200, 512]
