"""The device to train on: threads, precision, and item data that stays there."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from builders import planted_config, planted_dataset
from storyrec import device
from storyrec.data.batches import make_batch
from storyrec.data.dataset import Dataset
from storyrec.device import place_items, training_device, training_precision
from storyrec.errors import ConfigError
from storyrec.finetune import build_aden
from storyrec.models.click_model import ClickModel
from storyrec.models.extractors import RawItems
from storyrec.pretrain import build_dual, raw_items

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return planted_dataset(0, num_users=30, num_days=4)


@pytest.fixture(scope="module")
def items(data: Dataset) -> tuple[RawItems, RawItems]:
    return raw_items(data, max_words=32)


@pytest.fixture
def model(data: Dataset) -> ClickModel:
    return build_aden(planted_config(Path("unused")), num_words=data.vocabulary.size)


def test_threads_are_one_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv(device.THREADS, raising=False)
    with training_device():
        assert torch.get_num_threads() == 1
        assert (torch.tensor([1e-40]) * 1.0).item() == 0.0  # denormals are flushed
    assert torch.get_num_threads() == before
    assert (torch.tensor([1e-40]) * 1.0).item() > 0.0
    monkeypatch.setenv(device.THREADS, "2")
    with training_device():
        assert torch.get_num_threads() == 2
    for wrong in ("0", "many", "-1"):
        monkeypatch.setenv(device.THREADS, wrong)
        with pytest.raises(ConfigError, match=device.THREADS), training_device():
            pass


def test_a_cpu_computes_in_32_bits_and_places_nothing(items: tuple[RawItems, RawItems]) -> None:
    with training_precision(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert place_items(items[0], CPU) is items[0]


def test_placed_items_are_the_same_and_are_placed_only_where_they_fit(
    items: tuple[RawItems, RawItems], model: ClickModel
) -> None:
    stories = items[0]
    rows_N = np.array([5, 0, 9, 5])
    expected_ND = model.eval().item_vectors(stories, rows_N)
    titles, covers = stories.tokens_NW.nbytes, stories.visual_raw_NV.nbytes
    for num_bytes, placed_titles, placed_covers in (
        (titles + covers, True, True),
        (titles + covers - 1, True, False),
        (titles - 1, False, False),
    ):
        placed = stories.placed(CPU, num_bytes=num_bytes)
        assert (placed.placed_tokens_NW is not None) is placed_titles
        assert (placed.placed_visual_raw_NV is not None) is placed_covers
        torch.testing.assert_close(model.item_vectors(placed, rows_N), expected_ND)
    assert placed.visual_raw(np.array([0])) is None  # the padding has no cover


def test_placed_covers_keep_half_precision_and_every_row(
    items: tuple[RawItems, RawItems], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storyrec.models.extractors.COPIED_ROWS", 7)  # many pieces, the last one shorter
    placed = items[1].placed(CPU, num_bytes=2**40)
    assert placed.placed_visual_raw_NV.dtype == torch.float16
    assert np.array_equal(placed.placed_visual_raw_NV.numpy(), items[1].visual_raw_NV)
    assert np.array_equal(placed.placed_tokens_NW.numpy(), items[1].tokens_NW)


def test_losses_in_bfloat16_are_near_those_in_32_bits(
    data: Dataset, items: tuple[RawItems, RawItems], model: ClickModel
) -> None:
    """What a GPU computes, tried on a CPU: weights and gradients stay at 32 bits."""
    stories, products = items
    batch = make_batch(data, data.train, np.arange(64), sequence_length=20, block_hours=1, num_time_blocks=168)
    half = copy.deepcopy(model.eval())
    loss = model.loss(batch, stories=stories, products=products)
    loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = half.loss(batch, stories=stories, products=products)
    rough.backward()
    assert rough.dtype == torch.float32
    assert rough.item() != loss.item()
    assert rough.item() == pytest.approx(loss.item(), rel=0.01)
    assert {part.grad.dtype for part in half.parameters()} == {torch.float32}
    total = torch.cat([part.grad.flatten() for part in model.parameters()])
    near_total = torch.cat([part.grad.flatten() for part in half.parameters()])
    assert torch.cosine_similarity(total, near_total, dim=0) > 0.99


def test_dual_runs_in_bfloat16(data: Dataset, items: tuple[RawItems, RawItems]) -> None:
    model = build_dual(planted_config(Path("unused")), num_words=data.vocabulary.size).eval()
    exact = model.extractors.extract(items[0], np.arange(1, 20))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model.extractors.extract(items[0], np.arange(1, 20))
        logits = model(half, strength=0.5)
    torch.testing.assert_close(half.item_ND.float(), exact.item_ND, atol=0.02, rtol=0.02)
    assert torch.isfinite(logits.visual_B.float()).all()
