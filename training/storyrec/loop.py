"""The one training loop: both stages run in it, and a killed run goes on exactly where it was.

Everything random is drawn from (seed, epoch) or (seed, step), never from where a process happens
to be, so a resumed run ends with the very bits of an uninterrupted one (on a CPU). Processes that train
together share every batch; the first one judges and saves, and the others follow it.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from storyrec.checkpoint import Checkpoint, CheckpointStore
from storyrec.device import training_precision
from storyrec.distributed import ALONE, Team, present_team
from storyrec.errors import ModelError
from storyrec.progress import Tracker, track

CHECKPOINT_SECONDS = 30.0
SMALLEST_BATCH = 32
STEPS_OF_A_SMALL_EPOCH = 50

Int64s = NDArray[np.int64]
Weights = dict[str, Tensor]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moment:
    """Where in the training a step is.

    Attributes:
        step: from 0.
        progress: share of the planned steps that are done, in [0, 1].
        generator: for the step's own draws, which are the same in every process.
        team: the processes that share the batch.
    """

    step: int
    progress: float
    generator: np.random.Generator
    team: Team = ALONE


@dataclass(frozen=True)
class Judgement:
    """What a validation says: `value` decides which epoch is best (higher is better)."""

    value: float
    metrics: dict[str, float]


class Stage(Protocol):
    """What is trained; the loop knows nothing else of it."""

    def batches(self, generator: np.random.Generator) -> Sequence[Int64s]:
        """The batches of one epoch, in order."""

    def loss(self, index_B: Int64s, moment: Moment) -> tuple[Tensor, Mapping[str, float]]:
        """This process's part of the loss of a batch, scalar, and of what the curves show of it.

        The sum of the parts of all processes is the loss of the batch. The model is in training mode.
        """

    def validate(self) -> Judgement:
        """Judge the present weights; the model is in evaluation mode, gradients are off."""


@dataclass(frozen=True)
class Schedule:
    """The numbers of a training.

    Attributes:
        seed: of everything random.
        learning_rate: highest step size of AdamW.
        weight_decay: of AdamW, on all weights, embeddings too.
        clip_norm: largest norm of the gradient.
        max_epochs: epochs at most.
        max_steps: steps at most, rounded down to whole epochs (but one epoch at least).
        patience: epochs without a better validation value before stopping.
        warmup_share: share of the planned steps in which the rate rises linearly from 0; afterwards
            it falls linearly to 0.
        keep_start: the initial weights may win (they are trained ones).
    """

    seed: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    max_epochs: int
    max_steps: int
    patience: int
    warmup_share: float
    keep_start: bool


@dataclass(frozen=True)
class Trained:
    """The course of a training; the model itself holds the best epoch's weights.

    Attributes:
        curves: one entry per epoch from 0 (before the first step): "epoch", "validation", and from
            1 on "training" and "learning_rate".
        best_epoch: whose weights won; 0 = the initial ones.
        num_steps: optimiser steps taken.
        seconds: time spent, all attempts together.
        notes: what else should be known, such as a damaged checkpoint.
    """

    curves: list[dict[str, Any]]
    best_epoch: int
    best_value: float
    num_steps: int
    seconds: float
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """As it stands in training.json."""
        return asdict(self)


@dataclass
class _State:
    """Everything of a run but its tensors; JSON in a checkpoint."""

    epoch: int = 0  # the one under way; 0: the initial weights are not yet judged
    position: int = 0  # batches of it that are done
    step: int = 0
    sums: dict[str, list[float]] = field(default_factory=dict)  # training metrics of this epoch: sum, number
    curves: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_value: float = -math.inf
    seconds: float = 0.0
    finished: bool = False


def train(
    model: nn.Module, *, name: str, stage: Stage, schedule: Schedule, store: CheckpointStore | None = None
) -> Trained:
    """Train a model and leave the weights of its best epoch in it.

    Args:
        model: with its initial weights, on its device.
        name: of the step, for the progress.
        stage: gives batches, losses and judgements of this very model.
        schedule: the numbers.
        store: where a killed run is resumed from; a finished run is loaded at once. Its key must
            stand for everything that determines the result.

    Raises:
        ModelError: the loss, the gradient or the validation value is not a finite number.
        StorageError: a checkpoint cannot be written.
    """
    with torch.random.fork_rng():
        return _Run(model, name=name, stage=stage, schedule=schedule, store=store).go()


class _Run:
    def __init__(
        self, model: nn.Module, *, name: str, stage: Stage, schedule: Schedule, store: CheckpointStore | None
    ) -> None:
        self.model, self.name, self.stage, self.schedule, self.store = model, name, stage, schedule, store
        self.team = present_team()
        self.device = next(model.parameters()).device
        self.optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=schedule.learning_rate,
            weight_decay=schedule.weight_decay,
            fused=True,
        )
        self.state = _State()
        self.best: Weights = {}
        self.saved_at = self.started_at = time.monotonic()
        num_batches = max(1, len(self._batches(1)))
        self.num_epochs = max(1, min(schedule.max_epochs, schedule.max_steps // num_batches))
        self.num_planned_steps = self.num_epochs * num_batches

    def go(self) -> Trained:
        checkpoint = self.team.follow(lambda: self.store.load() if self.store else None)
        if checkpoint is not None:
            self._restore(checkpoint)
        state = self.state
        with self._tracked() as tracker:
            tracker.advance(state.step)
            if state.epoch == 0:
                self._judge()
            while not state.finished:
                self._epoch(tracker.advance)
                tracker.note = self._judge()
        self.model.load_state_dict(self.best)
        notes = [self.store.note] if self.store and self.store.note else []
        return Trained(state.curves, state.best_epoch, state.best_value, state.step, state.seconds, notes)

    def _tracked(self) -> AbstractContextManager[Tracker]:
        """The progress, which one process shows."""
        total = self.num_planned_steps
        return track(self.name, total=total) if self.team.leads else nullcontext(Tracker(self.name, total))

    def _batches(self, epoch: int) -> Sequence[Int64s]:
        return self.stage.batches(np.random.default_rng([self.schedule.seed, 0, epoch]))

    def _epoch(self, advance: Callable[[], None]) -> None:
        """Train on the rest of the epoch under way."""
        state = self.state
        batches = self._batches(state.epoch)
        self.model.train()
        for position in range(state.position, len(batches)):
            for metric, value in self._step(batches[position]).items():
                total, number = state.sums.get(metric, (0.0, 0))
                state.sums[metric] = [total + value, number + 1]
            state.position = position + 1
            advance()
            if time.monotonic() - self.saved_at > CHECKPOINT_SECONDS:
                self._save()

    def _step(self, index_B: Int64s) -> Mapping[str, float]:
        state, schedule = self.state, self.schedule
        progress = min(1.0, state.step / self.num_planned_steps)
        entropy = np.random.SeedSequence([schedule.seed, 1, state.step])
        dropout_seed, draw_seed = (int(word) for word in entropy.generate_state(2))
        torch.manual_seed(dropout_seed + self.team.rank)
        halfway = min(1.0, (state.step + 0.5) / self.num_planned_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.learning_rate * rate_factor(halfway, warmup_share=schedule.warmup_share)

        moment = Moment(state.step, progress, np.random.default_rng(draw_seed), self.team)
        with training_precision(self.device):
            loss, part = self.stage.loss(index_B, moment)
        self.optimizer.zero_grad()
        if loss.requires_grad:  # a share of nothing has no gradient
            loss.backward()  # type: ignore[no-untyped-call]
        metrics = self.team.add_up(self.model.parameters(), {"loss": loss.item(), **part})
        loss_value = metrics["loss"]
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), schedule.clip_norm)
        if not math.isfinite(loss_value) or not math.isfinite(norm.item()):
            raise ModelError(
                f"the training diverged: loss {loss_value}, norm of the gradient {norm.item()}",
                expected="finite numbers",
                where=f"{self.name}, epoch {state.epoch}, step {state.step}",
                remedy="lower the learning rate in the settings of this stage, and look for values "
                "that are not finite in the covers",
            )
        self.optimizer.step()
        state.step += 1
        return metrics

    def _judge(self) -> str:
        """Validate, keep the weights if they are the best so far, go on to the next epoch or finish."""
        state, schedule = self.state, self.schedule
        self.model.eval()
        with torch.inference_mode():
            judgement = self.team.follow(self.stage.validate)
        if not math.isfinite(judgement.value):
            raise ModelError(
                f"the validation value is {judgement.value}",
                expected="a finite number",
                where=f"{self.name}, epoch {state.epoch}",
                remedy="check that the validation part of the dataset is not empty",
            )
        entry: dict[str, Any] = {"epoch": state.epoch, "validation": {"value": judgement.value, **judgement.metrics}}
        if state.epoch:
            entry["training"] = {metric: total / number for metric, (total, number) in state.sums.items()}
            entry["learning_rate"] = self.optimizer.param_groups[0]["lr"]
        state.curves.append(entry)
        if (state.epoch or schedule.keep_start) and judgement.value > state.best_value:
            state.best_value, state.best_epoch = judgement.value, state.epoch
            self.best = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        waited = state.epoch - max(0, state.best_epoch)
        state.finished = state.epoch > 0 and (state.epoch >= self.num_epochs or waited >= schedule.patience)
        if not state.finished:
            state.epoch, state.position, state.sums = state.epoch + 1, 0, {}
        self._save()
        if state.finished and self.store and self.team.leads:
            self.store.discard_older()
        return f"epoch {entry['epoch']}: {judgement.value:.4f}"

    def _save(self) -> None:
        now = time.monotonic()
        self.state.seconds += now - self.started_at
        self.started_at = self.saved_at = now
        if self.store is None or not self.team.leads:
            return
        tensors = {f"best.{key}": value for key, value in self.best.items()}
        if not self.state.finished:
            tensors |= {f"model.{key}": value for key, value in self.model.state_dict().items()}
            for number, moments in self.optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{number}.{key}": value for key, value in moments.items()}
        self.store.save(tensors, {key: _to_json(value) for key, value in asdict(self.state).items()})

    def _restore(self, checkpoint: Checkpoint) -> None:
        self.state = _State(**{key: _from_json(value) for key, value in checkpoint.state.items()})
        parts: dict[str, Weights] = {"best": {}, "model": {}, "optimizer": {}}
        for name, tensor in checkpoint.tensors.items():
            part, _, key = name.partition(".")
            parts[part][key] = tensor
        self.best = {key: tensor.to(self.device) for key, tensor in parts["best"].items()}
        if self.state.finished:
            return
        self.model.load_state_dict(parts["model"])
        moments: dict[int, Weights] = {}
        for key, tensor in parts["optimizer"].items():
            number, _, moment = key.partition(".")
            moments.setdefault(int(number), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        _log.info("%s goes on at epoch %d, step %d", self.name, self.state.epoch, self.state.step)


def rate_factor(progress: float, *, warmup_share: float) -> float:
    """The learning rate as a share of its highest value: a linear rise, then a linear fall to 0.

    Args:
        progress: share of the planned steps that are done, in [0, 1].
        warmup_share: where the rise ends, in [0, 1).
    """
    if progress < warmup_share:
        return progress / warmup_share
    return (1.0 - progress) / (1.0 - warmup_share)


def fitted_batch_size(num_examples: int, *, largest: int) -> int:
    """A batch size with which an epoch of few examples still has some fifty steps.

    Args:
        num_examples: of an epoch.
        largest: the size for plenty of examples.
    """
    return min(largest, max(SMALLEST_BATCH, num_examples // STEPS_OF_A_SMALL_EPOCH))


def _to_json(value: Any) -> Any:
    return None if value == -math.inf else value


def _from_json(value: Any) -> Any:
    return -math.inf if value is None else value
