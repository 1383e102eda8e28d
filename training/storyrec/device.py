"""The device to train on, and what is done for it: threads, precision, compilation, item data that stays there.

On a CPU everything is computed in 32 bits, one way for all machines. On a GPU the losses are computed in
bfloat16 where that does no harm, while weights, optimiser and validation stay at 32 bits.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from storyrec.distributed import LOCAL_RANK, joined_team
from storyrec.errors import ConfigError
from storyrec.models.extractors import RawItems

THREADS = "STORYREC_THREADS"
LARGEST_SHARE = 0.7  # of a GPU's free memory that item data may take; the rest is the training's


@contextmanager
def training_device() -> Iterator[torch.device]:
    """The device to train on, set up for it: this process's GPU if there is one, else the CPU.

    Under torchrun the block is the time that the processes spend together.

    One thread, because on shared cores a second one made training five times slower; the environment
    variable STORYREC_THREADS overrides it. Denormal numbers are flushed to zero, as Adam's moments
    decay into them and they are slow.

    Raises:
        ConfigError: STORYREC_THREADS is not a positive integer.
    """
    text = os.environ.get(THREADS, "1")
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(
            f"{THREADS} is '{text}'", expected="a positive integer", where="environment", remedy="correct or unset it"
        )
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get(LOCAL_RANK, "0")))
        torch.cuda.set_device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(int(text))
    torch.set_flush_denormal(True)
    try:
        with joined_team(backend="nccl" if device.type == "cuda" else "gloo"):
            yield device
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)


def training_precision(device: torch.device) -> torch.autocast:
    """The context in which a loss is computed: bfloat16 on a GPU, 32 bits elsewhere."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def compile_on_gpu(module: nn.Module, device: torch.device) -> None:
    """Compile a module in place where that pays: many small kernels become few. The names of weights stay."""
    if device.type == "cuda":
        module.compile(dynamic=True)


def place_items(items: RawItems, device: torch.device) -> RawItems:
    """The same items, with titles and covers on the GPU where they fit into its free memory.

    What does not fit stays where it is, in memory or mapped from disk, and is sent batch by batch.
    """
    if device.type != "cuda":
        return items
    free, _ = torch.cuda.mem_get_info(device)
    return items.placed(device, num_bytes=int(LARGEST_SHARE * free))
