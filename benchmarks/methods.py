"""Training instances per second and peak of memory of every method of Table IV, as ratios to pi-Net.

    python benchmarks/methods.py DATASET [--batch-size 1024] [--steps 20]

Each method in a process of its own on one thread, on the same batches, grouped by user; by CPU time.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch
from measure import Steps, describe_machine, in_own_process, make_optimizer, peak_memory_mib, take_steps, use_one_thread

from storyrec.config import Config
from storyrec.data.batches import user_batches
from storyrec.experiments.fit import build_model, open_dataset
from storyrec.experiments.methods import TABLE_4
from storyrec.finetune import ClickStage

REFERENCE = "pi-Net"
WARM_STEPS = 3


def measure(name: str, folder: Path, batch_size: int, num_steps: int) -> tuple[Steps, float]:
    """Some training steps of one method, and the peak of memory in MiB."""
    use_one_thread()
    config = Config()
    (method,) = (method for method in TABLE_4 if method.name == name)
    data, stories, products = open_dataset(folder, max_words=config.features.max_title_words)
    model = build_model(method, config=config, data=data, products=products, seed=0)
    stage = ClickStage(
        model,
        data=data,
        stories=stories,
        products=products,
        batch_size=batch_size,
        sequence_length=config.features.sequence_length,
        num_time_blocks=config.model.num_time_blocks,
    )
    optimizer = make_optimizer(model, learning_rate=1e-3)
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    epochs = (user_batches(data.train, batch_size=batch_size, generator=generator) for _ in itertools.count())
    batches = itertools.chain.from_iterable(epochs)
    take_steps(stage, optimizer, itertools.islice(batches, WARM_STEPS))
    return take_steps(stage, optimizer, itertools.islice(batches, num_steps)), peak_memory_mib()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Training speed of every method of Table IV.")
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--batch-size", type=int, default=1_024)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    use_one_thread()
    print(describe_machine())
    print(f"batches of {arguments.batch_size:,}, {arguments.steps} steps", flush=True)
    measured = {
        method.name: in_own_process(measure, method.name, arguments.dataset, arguments.batch_size, arguments.steps)
        for method in TABLE_4
    }
    reference = measured[REFERENCE][0].rate
    for name, (steps, peak_mib) in measured.items():
        print(f"{name:12} {steps.rate:9,.0f} instances/s   x{steps.rate / reference:.2f}   peak {peak_mib:6,.0f} MiB")


if __name__ == "__main__":
    main()
