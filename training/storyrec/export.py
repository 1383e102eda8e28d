"""What torch does for a bundle: export the ranker to ONNX, compute item vectors.

Suffixes: B batch, S and P sequences (both of one length), D width, N items.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from storyrec.errors import ModelError
from storyrec.finetune import EXTRACTORS
from storyrec.models.aden import Aden
from storyrec.models.click_model import Features, Ranker
from storyrec.models.extractors import Extractors, ItemFeatures, RawItems
from storyrec.schema import Domain
from storyrec.warmstart import load_weights

INPUTS_OF_A_REQUEST = ("target_BD", "story_LD", "story_blocks_L", "product_LD", "product_blocks_L")
"""The same of the ranker for one user: both sequences once, L long."""

INPUTS = ("target_BD", "story_BSD", "story_blocks_BS", "product_BPD", "product_blocks_BP")
"""Names of the exported ranker's inputs: float32 vectors and int64 time blocks, 0 = padding."""

OUTPUT = "probabilities_B"
OUTPUTS_OF_A_REQUEST = (OUTPUT, "story_weights_BHL", "product_weights_BHL")
EMBEDDING_BATCH = 4_096


class _Clicks(nn.Module):
    """The ranker with the calibrated logistic function behind it."""

    def __init__(self, ranker: Ranker, *, logit_offset: float) -> None:
        super().__init__()
        self.ranker = ranker
        self.logit_offset = logit_offset

    def forward(
        self,
        target_BD: Tensor,
        story_BSD: Tensor,
        story_blocks_BS: Tensor,
        product_BPD: Tensor,
        product_blocks_BP: Tensor,
    ) -> Tensor:
        nothing_B = torch.zeros_like(target_BD[:, 0], dtype=torch.int64)  # ADEN knows neither users nor categories
        features = Features(
            target_BD=target_BD,
            story_BSD=story_BSD,
            story_blocks_BS=story_blocks_BS,
            product_BPD=product_BPD,
            product_blocks_BP=product_blocks_BP,
            user_rows_B=nothing_B,
            target_categories_B=nothing_B,
            story_categories_BS=torch.zeros_like(story_blocks_BS),
        )
        logits_B = self.ranker(features)
        return torch.sigmoid(logits_B + self.logit_offset)


class _ClicksOfOneUser(nn.Module):
    """ADEN for one user's request: the probabilities, and what each candidate attends to."""

    def __init__(self, ranker: Aden, *, logit_offset: float) -> None:
        super().__init__()
        self.ranker = ranker
        self.logit_offset = logit_offset

    def forward(
        self, target_BD: Tensor, story_LD: Tensor, story_blocks_L: Tensor, product_LD: Tensor, product_blocks_L: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits_B, weights = self.ranker.of_one_user(
            target_BD,
            story_LD=story_LD,
            story_blocks_L=story_blocks_L,
            product_LD=product_LD,
            product_blocks_L=product_blocks_L,
        )
        return torch.sigmoid(logits_B + self.logit_offset), weights[Domain.STORY], weights[Domain.PRODUCT]


def export_ranker(ranker: Ranker, *, width: int, sequence_length: int, logit_offset: float) -> bytes:
    """The ranker as one ONNX file with its weights inside; the same weights give the same bytes.

    Args:
        ranker: trained; one that reads neither users nor categories.
        width: d of the item features.
        sequence_length: S and P of the exported graph; the batch size stays free.
        logit_offset: added to the logits; makes up for the non-clicks that training left out.
    """
    batch_size = 3  # anything above 1, which the exporter would take for fixed
    blocks = [torch.ones(batch_size, sequence_length, dtype=torch.int64) for _ in range(2)]
    vectors = [torch.zeros(batch_size, sequence_length, width) for _ in range(2)]
    # five tensors of their own: the exporter takes inputs that are one object for one input
    example = (torch.zeros(batch_size, width), vectors[0], blocks[0], vectors[1], blocks[1])
    batch = torch.export.Dim("batch", min=1)
    return _export(
        _Clicks(ranker, logit_offset=logit_offset),
        example,
        inputs=INPUTS,
        outputs=[OUTPUT],
        dynamic_shapes=tuple({0: batch} for _ in INPUTS),
    )


def export_ranker_of_one_user(ranker: Aden, *, width: int, sequence_length: int, logit_offset: float) -> bytes:
    """ADEN as `export_ranker` has it, for one user and any number of targets, with the attention weights.

    A runtime computes only what it is asked for: ranking does not pay for the weights.

    Args:
        ranker: trained, reading both domains.
        width, sequence_length, logit_offset: as for `export_ranker`.
    """
    sequences = [
        part
        for _ in Domain
        for part in (torch.zeros(sequence_length, width), torch.ones(sequence_length, dtype=torch.int64))
    ]
    batch = torch.export.Dim("batch", min=1)
    return _export(
        _ClicksOfOneUser(ranker, logit_offset=logit_offset),
        (torch.zeros(3, width), *sequences),
        inputs=INPUTS_OF_A_REQUEST,
        outputs=OUTPUTS_OF_A_REQUEST,
        dynamic_shapes=({0: batch}, *(None for _ in sequences)),
    )


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic_shapes: tuple[Any, ...],
) -> bytes:
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    with warnings.catch_warnings(), _quiet(registration):  # both tell of packages that nothing here needs
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            example,
            dynamo=True,
            verbose=False,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic_shapes,
            external_data=False,
        )
    assert program is not None
    model = program.model_proto
    # stack traces and paths of the exporting machine are no part of the model
    for node in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    model.graph.ClearField("metadata_props")
    model.graph.ClearField("doc_string")
    model.ClearField("metadata_props")
    content: bytes = model.SerializeToString(deterministic=True)
    return content


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_trained_extractors(extractors: Extractors, path: Path) -> Extractors:
    """Put the extractors' weights of dual.safetensors or aden.safetensors into place.

    Raises:
        ModelError: the file is missing, damaged or of other shapes.
    """
    weights = load_weights(path)
    own = {name.removeprefix(EXTRACTORS): weight for name, weight in weights.items() if name.startswith(EXTRACTORS)}
    try:
        extractors.load_state_dict(own)
    except RuntimeError as error:
        raise ModelError(
            f"the extractors' weights do not fit: {error}",
            expected="weights trained with the settings and the vocabulary beside them",
            where=str(path),
            remedy="run the training again with the same settings",
        ) from error
    return extractors.eval()


def item_vectors(
    extractors: Extractors, items: RawItems, *, pick: Callable[[ItemFeatures], Tensor]
) -> npt.NDArray[np.float32]:
    """One vector per item, in batches, without gradients.

    Args:
        extractors: trained.
        items: N items of one domain.
        pick: which vector of the features, such as `ItemFeatures.item_ND.fget`.

    Returns:
        [N, width of the picked vector] float32; zeros at an item without title and cover.
    """
    parts = []
    with torch.no_grad():
        for start in range(0, len(items), EMBEDDING_BATCH):
            rows_N = np.arange(start, min(start + EMBEDDING_BATCH, len(items)))
            parts.append(pick(extractors.extract(items, rows_N)).float().numpy())
    return np.concatenate(parts)
