"""How many instances a second ADEN learns from, against computing the items of every slot.

    python benchmarks/training.py DATASET     a folder that `storyrec build-dataset` wrote

Three ways of the same arithmetic, in turn and in one run: every slot of random batches (the plain way), each
distinct item of random batches once, each distinct item of batches grouped by user once (what `finetune_aden`
does). Prints instances per second and the ratio to the plain way.
"""

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray

import storyrec.models.click_model as click_model
from storyrec.config import Config
from storyrec.data.batches import make_batch, user_batches
from storyrec.data.dataset import Dataset
from storyrec.finetune import build_aden
from storyrec.pretrain import raw_items

BATCH_SIZE = 512
NUM_STEPS = 8
NUM_ROUNDS = 3

Int64s = NDArray[np.int64]


def every_slot(rows: Int64s, *, num_rows: int) -> tuple[Int64s, Int64s]:
    """What `distinct` would be if each slot were an item of its own."""
    return rows, np.arange(len(rows))


def random_batches(num_instances: int, generator: np.random.Generator) -> Iterator[Int64s]:
    """Batches without regard to users."""
    order_B = generator.permutation(num_instances)
    return (order_B[start : start + BATCH_SIZE] for start in range(0, num_instances, BATCH_SIZE))


def main(folder: Path) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    config, data = Config(), Dataset.load(folder)
    stories, products = raw_items(data, max_words=config.features.max_title_words)
    distinct = click_model.distinct
    variants = {
        "every slot, random batches": (every_slot, False),
        "distinct items, random batches": (distinct, False),
        "distinct items, grouped by user": (distinct, True),
    }
    rates: dict[str, list[float]] = {name: [] for name in variants}
    for seed, (name, (items_of, grouped)) in itertools.product(range(NUM_ROUNDS), variants.items()):
        click_model.distinct = items_of
        generator = np.random.default_rng(seed)
        batches = (
            user_batches(data.train, batch_size=BATCH_SIZE, generator=generator)
            if grouped
            else random_batches(len(data.train), generator)
        )
        model = build_aden(config, num_words=data.vocabulary.size)
        optimizer = torch.optim.AdamW(model.parameters())
        num_instances, started = 0, time.perf_counter()
        for index_B in itertools.islice(batches, NUM_STEPS):
            batch = make_batch(
                data,
                data.train,
                index_B,
                sequence_length=config.features.sequence_length,
                block_hours=data.windows.block_hours,
                num_time_blocks=config.model.num_time_blocks,
            )
            loss = model.loss(batch, stories=stories, products=products)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            num_instances += len(index_B)
        rates[name].append(num_instances / (time.perf_counter() - started))
    plain = median(rates["every slot, random batches"])
    for name, values in rates.items():
        print(f"{name:34} {median(values):9,.0f} instances/s   x{median(values) / plain:.1f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
