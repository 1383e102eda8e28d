"""Several processes that train one model: each takes a share of every batch, and the gradients are added up.

`torchrun` starts the processes and tells each its number in the environment; without it there is one.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed
from torch import nn

WORLD_SIZE, LOCAL_RANK = "WORLD_SIZE", "LOCAL_RANK"
PATIENCE = timedelta(minutes=30)  # how long the others wait while the first process validates

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Team:
    """The processes that train together, as one of them sees them.

    Attributes:
        rank: number of this process, from 0.
        size: of the team.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process validates, writes and reports; the others follow its decisions."""
        return self.rank == 0

    def share(self, num: int) -> slice:
        """This process's part of `num` examples: a run of them, as long as the others' but for one."""
        return slice(num * self.rank // self.size, num * (self.rank + 1) // self.size)

    def follow(self, answer: Callable[[], Answer]) -> Answer:
        """The first process's answer, which it alone works out."""
        if self.size == 1:
            return answer()
        box = [answer() if self.leads else None]
        torch.distributed.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[return-value]

    def add_up(self, parameters: Iterable[nn.Parameter], values: Mapping[str, float]) -> dict[str, float]:
        """Replace each gradient by its sum over the processes.

        Args:
            parameters: in the same order everywhere; one that has a gradient nowhere stays without.
            values: numbers, under the same names everywhere.

        Returns:
            The sums of the values.
        """
        if self.size == 1:
            return dict(values)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in trained]
        flags = [float(part.grad is not None) for part in trained]
        numbers = trained[0].new_tensor([*flags, *values.values()])
        flat = torch.cat([numbers, *(gradient.flatten() for gradient in gradients)])
        torch.distributed.all_reduce(flat)
        numbers, *sums = torch.split(flat, [len(numbers), *(part.numel() for part in trained)])
        flags, totals = numbers[: len(trained)].tolist(), numbers[len(trained) :].tolist()
        for part, flag, total in zip(trained, flags, sums, strict=True):
            part.grad = total.view_as(part) if flag else None
        return dict(zip(values, totals, strict=True))


ALONE = Team()


def present_team() -> Team:
    """The team of this process; of one outside `joined_team`."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return ALONE
    return Team(torch.distributed.get_rank(), torch.distributed.get_world_size())


@contextmanager
def joined_team(*, backend: str) -> Iterator[None]:
    """Meet the other processes that torchrun started, if it did, and part from them at the end.

    Args:
        backend: "gloo" for CPUs, "nccl" for GPUs.
    """
    if int(os.environ.get(WORLD_SIZE, "1")) == 1 or present_team().size > 1:
        yield
        return
    torch.distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
