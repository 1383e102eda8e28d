"""How many instances a second ADEN learns from, against computing the items of every slot; and how well.

    python benchmarks/training.py DATASET [--seeds 2] [--epochs 4]     a folder that `storyrec build-dataset` wrote

The same model, trained for the same number of epochs in several ways, each in a process of its own on one
thread: every slot of random batches of 128 (the plain way, and the paper's batch), each distinct item of these
batches once, and each distinct item of batches grouped by user once (what `finetune_aden` does). Each way has
the learning rate and the weight decay that did best for it: large batches of few users want more of both.
Prints instances per second of CPU time, the ratio to the plain way, the peak of memory, and the per-user AUC of
the held-out day. The plain way takes some steps only: trained through it gives what the next line's gives, which
computes the same numbers of the same batches.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from measure import (
    Int64s,
    describe_machine,
    in_own_process,
    make_optimizer,
    peak_memory_mib,
    take_steps,
    use_one_thread,
)

import storyrec.models.click_model as click_model
from storyrec.config import Config, update_config
from storyrec.data.batches import user_batches
from storyrec.data.dataset import Dataset
from storyrec.finetune import ClickStage, build_aden
from storyrec.metrics import per_user_auc
from storyrec.pretrain import raw_items


@dataclass(frozen=True)
class Way:
    """A way of training.

    Attributes:
        name: for the table.
        batch_size: instances of a batch.
        learning_rate, weight_decay: of AdamW.
        every_slot: extract the item of every slot, instead of each distinct item once.
        grouped: keep the instances of a user together, instead of drawing them at random.
    """

    name: str
    batch_size: int
    learning_rate: float
    weight_decay: float
    every_slot: bool = False
    grouped: bool = False


PLAIN_STEPS = 200
PLAIN = Way("every slot, random batches", 128, 7e-4, 0.01, every_slot=True)
WAYS = (
    PLAIN,
    Way("distinct items, random batches", 128, 7e-4, 0.01),
    Way("distinct items, grouped by user", 1_024, 1e-2, 0.2, grouped=True),
    Way("distinct items, grouped by user", 2_048, 1.2e-2, 0.2, grouped=True),
)


@dataclass(frozen=True)
class Measured:
    """What came of it: instances per second of CPU time, peak of memory in MiB, per-user AUC of the trained ones."""

    rate: float
    peak_mib: float
    auc: float | None


def every_slot(rows: Int64s, *, num_rows: int) -> tuple[Int64s, Int64s]:
    """What `distinct` would be if each slot were an item of its own."""
    return rows, np.arange(len(rows))


def measure(way: Way, folder: Path, seed: int, num_epochs: int) -> Measured:
    """Train one model."""
    use_one_thread()
    config = update_config(Config(), {"aden": {"seed": seed}})
    data = Dataset.load(folder)
    stories, products = raw_items(data, max_words=config.features.max_title_words)
    model = build_aden(config, num_words=data.vocabulary.size)
    stage = ClickStage(
        model,
        data=data,
        stories=stories,
        products=products,
        batch_size=way.batch_size,
        sequence_length=config.features.sequence_length,
        num_time_blocks=config.model.num_time_blocks,
    )
    optimizer = make_optimizer(model, learning_rate=way.learning_rate, weight_decay=way.weight_decay)
    if way.every_slot:
        click_model.distinct = every_slot
    epochs = [epoch(way, data, seed=seed, number=number) for number in range(num_epochs)]
    torch.manual_seed(seed)
    if way.every_slot:
        steps = take_steps(stage, optimizer, epochs[0][:PLAIN_STEPS])
        return Measured(steps.rate, peak_memory_mib(), None)
    done, rates = 0, []
    for batches in epochs:
        rates.append(take_steps(stage, optimizer, batches, done=done, of=sum(map(len, epochs))).rate)
        done += len(batches)
    peak_mib = peak_memory_mib()
    model.eval()
    with torch.inference_mode():
        logits_B = stage.score(data.holdout, np.arange(len(data.holdout)))
    auc = per_user_auc(data.holdout.user_ids_B, data.holdout.clicked_B, logits_B).mean
    return Measured(median(rates), peak_mib, auc)


def epoch(way: Way, data: Dataset, *, seed: int, number: int) -> list[Int64s]:
    """The batches of an epoch."""
    generator = np.random.default_rng([seed, number])
    if way.grouped:
        return list(user_batches(data.train, batch_size=way.batch_size, generator=generator))
    order_B = generator.permutation(len(data.train))
    return [order_B[start : start + way.batch_size] for start in range(0, len(order_B), way.batch_size)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="ADEN's training speed and quality, in several ways.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    use_one_thread()
    print(describe_machine(), flush=True)
    print(f"{arguments.epochs} epochs, {arguments.seeds} seeds", flush=True)
    plain = 0.0
    for way in WAYS:
        runs = [
            in_own_process(measure, way, arguments.dataset, seed, arguments.epochs) for seed in range(arguments.seeds)
        ]
        rate = median(run.rate for run in runs)
        plain = plain or rate
        aucs = [run.auc for run in runs if run.auc is not None]
        quality = f"per-user AUC {mean(aucs):.4f} ({min(aucs):.4f} to {max(aucs):.4f})" if aucs else "as the next line"
        print(
            f"{way.name:32} batch {way.batch_size:5,} {rate:9,.0f} instances/s   x{rate / plain:.1f}   "
            f"peak {max(run.peak_mib for run in runs):6,.0f} MiB   {quality}",
            flush=True,
        )


if __name__ == "__main__":
    main()
