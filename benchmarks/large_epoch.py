"""One epoch of ADEN over data of SRD-2's size, drawn at random, and what bounds it.

    python benchmarks/large_epoch.py [--scale 1.0] [--batch-size 2048] [--steps 200]

SRD-2 has 23.3 million instances of 1.2 million users, 0.8 million stories and 15.3 million products with covers of
512 half-precision numbers: 17 GB of covers, which are mapped from a temporary file, and on a GPU with more than 40 GB
live there. `--scale` shrinks all of it; 0.002 is the twin for a CPU. `--steps 0` takes the whole epoch, any other
number extrapolates it. On a GPU the ranker is timed as it is and compiled. Ends with torch's profile of a few steps.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from measure import Int64s, describe_machine, make_optimizer, peak_memory_mib
from torch.profiler import ProfilerActivity, profile

from storyrec.config import Config
from storyrec.data.batches import HOUR_US, user_batches
from storyrec.data.catalog import Catalog
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.data.windows import ResolvedWindows
from storyrec.device import compile_on_gpu, place_items, training_device, training_precision
from storyrec.features.sequences import ClickLog
from storyrec.features.titles import Vocabulary
from storyrec.finetune import ClickStage, build_aden
from storyrec.loop import Moment
from storyrec.models.extractors import RawItems
from storyrec.schema import COVER_WIDTH, Domain

NUM_INSTANCES, NUM_USERS, NUM_STORIES, NUM_PRODUCTS = 23_300_000, 1_230_454, 800_000, 15_300_000
NUM_WORDS, MAX_WORDS = 21_128, 32
MEAN_WORDS = {Domain.STORY: 13, Domain.PRODUCT: 28}  # of the published pairs
SEQUENCE, CLICKS_PER_USER = 20, 40
PIECE = 1 << 16
WARM_STEPS, PROFILED_STEPS = 20, 10


def draw_items(folder: Path, num: int, *, domain: Domain, generator: np.random.Generator) -> RawItems:
    """Items with titles of random words and random covers, which are mapped from disk; row 0 is the padding."""
    covers_NV = np.lib.format.open_memmap(
        folder / f"{domain.name}.npy", mode="w+", dtype=np.float16, shape=(num + 1, COVER_WIDTH)
    )
    piece_NV = (generator.standard_normal((PIECE, COVER_WIDTH), np.float32) / COVER_WIDTH**0.5).astype(np.float16)
    tokens_NW = np.zeros((num + 1, MAX_WORDS), np.int32)
    for start in range(1, num + 1, PIECE):
        stop = min(start + PIECE, num + 1)
        covers_NV[start:stop] = piece_NV[: stop - start]
        words_NW = 2 + (generator.random((stop - start, MAX_WORDS)) ** 3 * (NUM_WORDS - 2)).astype(np.int32)
        lengths_N = np.clip(generator.poisson(MEAN_WORDS[domain], stop - start), 1, MAX_WORDS)
        tokens_NW[start:stop] = np.where(np.arange(MAX_WORDS) < lengths_N[:, None], words_NW, 0)
    covers_NV.flush()
    has_cover_N = np.arange(num + 1) > 0
    return RawItems(tokens_NW, np.asarray(covers_NV), has_cover_N, domain, np.zeros(num + 1, np.int64))


def draw_rows(num: int, *, num_items: int, generator: np.random.Generator) -> Int64s:
    """Rows of items, some of them far more popular than others."""
    return 1 + (generator.random(num) ** 3 * num_items).astype(np.int64)


def draw_dataset(scale: float, *, generator: np.random.Generator) -> Dataset:
    """Users with their clicks, and instances that each look at a window of twenty of them."""
    num_users, num_instances = max(2, int(NUM_USERS * scale)), int(NUM_INSTANCES * scale)
    users_C = np.repeat(np.arange(1, num_users + 1), CLICKS_PER_USER)
    clicked_us_C = np.tile(np.arange(CLICKS_PER_USER) * HOUR_US, num_users)
    user_B = np.sort(generator.integers(num_users, size=num_instances))
    # later instances of a user look further
    within_B = np.arange(num_instances) - np.searchsorted(user_B, user_B)
    start_B = user_B * CLICKS_PER_USER + np.minimum(within_B // 2, CLICKS_PER_USER - SEQUENCE)
    rows = [
        draw_rows(len(users_C), num_items=int(number * scale), generator=generator)
        for number in (NUM_STORIES, NUM_PRODUCTS)
    ]
    instances = Instances(
        user_ids_B=user_B + 1,
        story_rows_B=draw_rows(num_instances, num_items=int(NUM_STORIES * scale), generator=generator),
        shown_us_B=np.full(num_instances, (CLICKS_PER_USER + 1) * HOUR_US),
        clicked_B=generator.random(num_instances) < 0.5,
        story_start_B=start_B,
        story_stop_B=start_B + SEQUENCE,
        product_start_B=start_B,
        product_stop_B=start_B + SEQUENCE,
    )
    zeros = np.zeros(1, np.int64)
    nothing = Catalog(zeros, [""], np.zeros((1, COVER_WIDTH), np.float16), zeros, zeros.astype(np.int8), zeros)
    clicks = [ClickLog(users_C, rows_C, clicked_us_C) for rows_C in rows]
    return Dataset(
        day=date(2020, 1, 2),
        windows=ResolvedWindows(
            history_days=7, training_days=1, holdout_days=1, block_hours=1, validation_share=0.1, reasons=()
        ),
        sequence_length=SEQUENCE,
        stories=nothing,
        products=nothing,
        vocabulary=Vocabulary(()),
        unknown_words={},
        story_clicks=clicks[0],
        product_clicks=clicks[1],
        story_click_rows_C=rows[0],
        product_click_rows_C=rows[1],
        pairs_M2=np.empty((0, 2), np.int64),
        holdout_pairs_M2=np.empty((0, 2), np.int64),
        train=instances,
        validation=instances.take(np.arange(0)),
        holdout=instances.take(np.arange(0)),
        left_out={},
        made_of="",
        digest="",
    )


def take_steps(
    stage: ClickStage, optimizer: torch.optim.AdamW, batches: Sequence[Int64s], *, device: torch.device
) -> float:
    """Take the training loop's steps; instances per second of wall-clock time."""
    started = time.perf_counter()
    for number, index_B in enumerate(batches):
        with training_precision(device):
            loss, _ = stage.loss(index_B, Moment(number, 0.5, np.random.default_rng(number)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
        optimizer.step()
        loss.item()
    return sum(map(len, batches)) / (time.perf_counter() - started)


def main() -> None:
    """Draw, measure, profile and print."""
    parser = argparse.ArgumentParser(description="One epoch over data of SRD-2's size.")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--batch-size", type=int, default=2_048)
    parser.add_argument("--steps", type=int, default=200)
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, training_device() as device:
        print(describe_machine(), flush=True)
        started = time.perf_counter()
        data = draw_dataset(arguments.scale, generator=generator)
        stories, products = (
            draw_items(Path(folder), int(number * arguments.scale), domain=domain, generator=generator)
            for domain, number in ((Domain.STORY, NUM_STORIES), (Domain.PRODUCT, NUM_PRODUCTS))
        )
        print(f"{len(data.train):,} instances, {len(stories):,} stories, {len(products):,} products drawn in "
              f"{time.perf_counter() - started:.0f} s", flush=True)  # fmt: skip
        model = build_aden(Config(), num_words=NUM_WORDS).to(device).train()
        stage = ClickStage(
            model,
            data=data,
            stories=place_items(stories, device),
            products=place_items(products, device),
            batch_size=arguments.batch_size,
            sequence_length=SEQUENCE,
            num_time_blocks=Config().model.num_time_blocks,
        )
        placed = [items.placed_visual_raw_NV is not None for items in (stage.stories, stage.products)]
        print(f"on {device}; covers of stories and products on the GPU: {placed}", flush=True)
        started = time.perf_counter()
        batches = list(user_batches(data.train, batch_size=arguments.batch_size, generator=generator))
        ordering = time.perf_counter() - started
        print(f"{len(batches):,} batches of an epoch ordered in {ordering:.1f} s", flush=True)
        optimizer = make_optimizer(model, learning_rate=1e-3)

        chosen = batches[: arguments.steps] if arguments.steps else batches
        for name in ("as it is", "compiled") if device.type == "cuda" else ("as it is",):
            if name == "compiled":
                compile_on_gpu(model.ranker, device)
            take_steps(stage, optimizer, batches[:WARM_STEPS], device=device)
            rate = take_steps(stage, optimizer, chosen, device=device)
            seconds = ordering / arguments.scale + NUM_INSTANCES / rate
            how = "measured" if arguments.scale == 1.0 and len(chosen) == len(batches) else "extrapolated"
            print(f"ranker {name}: {rate:,.0f} instances/s; an epoch of {NUM_INSTANCES:,}: {seconds:,.0f} s ({how})")
        memory = f", GPU {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.type == "cuda" else ""
        print(f"peak of memory {peak_memory_mib():,.0f} MiB{memory}", flush=True)

        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
        with profile(activities=activities) as profiled:
            take_steps(stage, optimizer, batches[:PROFILED_STEPS], device=device)
        order = f"self_{'cuda' if device.type == 'cuda' else 'cpu'}_time_total"
        print(profiled.key_averages().table(sort_by=order, row_limit=20, max_name_column_width=50))


if __name__ == "__main__":
    main()
