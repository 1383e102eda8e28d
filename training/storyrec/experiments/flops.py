"""Table V: floating-point operations of every method, counted on its real modules.

Paper: Sec. IV-D, Table V. Counted by torch's FlopCounterMode: multiply-accumulates of matrix products,
two operations each; what is done element by element is not counted, as in the paper.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from storyrec.config import Config
from storyrec.data.batches import Batch, make_batch, user_batches
from storyrec.data.dataset import Dataset
from storyrec.experiments.fit import build_model, open_dataset
from storyrec.experiments.methods import Method
from storyrec.experiments.prepare import describe
from storyrec.experiments.results import Results, Run
from storyrec.models.click_model import ClickModel, Ranker
from storyrec.models.extractors import RawItems
from storyrec.pretrain import build_dual
from storyrec.progress import track
from storyrec.schema import Domain

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Flops:
    """Operations of one method, in millions per instance.

    Attributes:
        training_all, inference_all: of the whole model, every slot's item extracted and every sequence read for itself.
        training_all_once, inference_all_once: likewise, each distinct item of the batch extracted and each distinct
            sequence read once.
        training_sequence, inference_sequence: of what lies between the item features and the head, where the
            method reads clicks; else 0.
        dual: a DUAL step's operations per pair, where the method starts from it; else 0.
    """

    training_all: float
    training_all_once: float
    training_sequence: float
    inference_all: float
    inference_all_once: float
    inference_sequence: float
    dual: float


def run_table5(methods: Sequence[Method], *, config: Config, dataset: Path) -> Results:
    """Count every method on the same batch.

    Args:
        methods: which.
        config: sections `model`, `features` and `aden`.
        dataset: folder that `build_dataset` wrote.

    Returns:
        One run a method, seed 0; its metrics are the fields of `Flops`.
    """
    data, stories, products = open_dataset(dataset, max_words=config.features.max_title_words)
    runs = []
    with track("table5", total=len(methods)) as progress:
        for method in methods:
            flops = count_flops(
                method, config=config, data=data, stories=stories, products=products, batch_size=config.aden.batch_size
            )
            model = build_model(method, config=config, data=data, products=products, seed=0)
            num_parameters = sum(parameter.numel() for parameter in model.parameters())
            settings = {"batch_size": config.aden.batch_size}
            runs.append(Run(method.name, method.group, 0, asdict(flops), 0.0, num_parameters, 0, settings))
            progress.advance(note=method.name)
    return Results(
        experiment="table5",
        data={"name": config.locations.logs, **describe(data)},
        runs=tuple(runs),
        references={},
        notes=(f"counted on one batch of {config.aden.batch_size} instances, grouped by user",),
    )


def count_flops(
    method: Method, *, config: Config, data: Dataset, stories: RawItems, products: RawItems, batch_size: int
) -> Flops:
    """Count a method's operations on one batch of real instances, grouped by user as in training.

    Args:
        method: which.
        config: sections `model` and `features`.
        data, stories, products: what the batch is cut out of.
        batch_size: instances of the batch.
    """
    model = build_model(method, config=config, data=data, products=products, seed=0).eval()
    index_B = next(user_batches(data.train, batch_size=batch_size, generator=np.random.default_rng(0)))
    batch = make_batch(
        data,
        data.train,
        index_B,
        sequence_length=config.features.sequence_length,
        block_hours=data.windows.block_hours,
        num_time_blocks=config.model.num_time_blocks,
    )
    story_slots, product_slots = _slots(batch, model)

    def extract(story_rows: Int64s, product_rows: Int64s) -> Tensor:
        parts = [model.item_vectors(stories, story_rows)]
        if len(product_rows):
            parts.append(model.item_vectors(products, product_rows))
        return torch.cat(parts).sum()

    def parts(work: Callable[[], Tensor], *, backward: bool) -> dict[str, float]:
        """Operations per instance, in millions."""
        whole, _ = _count(work, backward=backward)
        with _every_sequence(model.ranker):
            alone, head = _count(work, backward=backward)
        per_slot, _ = _count(
            lambda: extract(story_slots[story_slots > 0], product_slots[product_slots > 0]), backward=backward
        )
        once, _ = _count(lambda: extract(np.unique(story_slots), np.unique(product_slots)), backward=backward)
        sequence = alone - once - head if model.ranker.reads else 0
        figures = {"all": alone - once + per_slot, "all_once": whole, "sequence": sequence}
        return {name: 1e-6 * value / len(index_B) for name, value in figures.items()}

    trained = parts(lambda: model.loss(batch, stories=stories, products=products), backward=True)
    used = parts(lambda: model(batch, stories=stories, products=products).sum(), backward=False)
    return Flops(
        **{f"training_{name}": value for name, value in trained.items()},
        **{f"inference_{name}": value for name, value in used.items()},
        dual=1e-6 * _dual(config, data, stories=stories, products=products) if method.pretraining else 0.0,
    )


@contextmanager
def _every_sequence(ranker: Ranker) -> Iterator[None]:
    """Let a ranker read the sequences of every impression, as if no two were the same."""
    shares, ranker.shares_sequences = ranker.shares_sequences, False
    try:
        yield
    finally:
        ranker.shares_sequences = shares


def _slots(batch: Batch, model: ClickModel) -> tuple[Int64s, Int64s]:
    """The catalog row of every slot that the method reads, targets among the stories; 0 at padding."""
    reads = model.ranker.reads
    story_slots = batch.story_slots_BS.ravel() if Domain.STORY in reads else batch.story_rows_B[:0]
    product_slots = batch.product_slots_BP.ravel()
    return np.concatenate([batch.story_rows_B, story_slots]), product_slots[: None if Domain.PRODUCT in reads else 0]


def _count(work: Callable[[], Tensor], *, backward: bool) -> tuple[int, int]:
    """Operations of a piece of work: in all, and in the ranker's head."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        result = work()
        if backward:
            result.backward()  # type: ignore[no-untyped-call]
    heads = (sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items() if name.endswith(".head"))
    return counter.get_total_flops(), sum(heads)


def _dual(config: Config, data: Dataset, *, stories: RawItems, products: RawItems) -> float:
    """Operations of a DUAL step per pair."""
    model = build_dual(config, num_words=data.vocabulary.size)
    pairs_M2 = np.asarray(data.pairs_M2[: config.dual.batch_size])

    def forward() -> Tensor:
        logits = [
            model(model.extractors.extract(items, rows), strength=1.0)
            for items, rows in ((stories, pairs_M2[:, 0]), (products, pairs_M2[:, 1]))
        ]
        return torch.cat([part for pair in logits for part in (pair.textual_B, pair.visual_B)]).sum()

    return _count(forward, backward=True)[0] / len(pairs_M2)
