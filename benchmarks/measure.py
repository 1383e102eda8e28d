"""What every benchmark here says of itself: the machine, the memory, and one way of taking training steps."""

import os
import platform
import resource
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from storyrec.finetune import ClickStage
from storyrec.loop import Moment, rate_factor

CLIP_NORM, WEIGHT_DECAY, WARMUP_SHARE = 1.0, 0.01, 0.1

Int64s = NDArray[np.int64]


@dataclass(frozen=True)
class Steps:
    """What some training steps took, by the CPU time of this process: others on the machine count little.

    Attributes:
        num_instances: learned from.
        seconds: of one thread.
    """

    num_instances: int
    seconds: float

    @property
    def rate(self) -> float:
        """Instances per second."""
        return self.num_instances / self.seconds


def describe_machine() -> str:
    """One line: processor, cores, memory, versions, threads."""
    cpu = platform.processor() or "unknown processor"
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB{gpu}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), load {os.getloadavg()[0]:.1f}"
    )


def peak_memory_mib() -> float:
    """The most memory that this process has held so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def in_own_process(function: Any, *arguments: Any) -> Any:
    """The result of a call in a fresh process, whose peak of memory is then its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def use_one_thread() -> None:
    """Set the CPU up as the training does."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float = WEIGHT_DECAY) -> torch.optim.AdamW:
    """The training loop's optimiser."""
    return torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, fused=True)


def take_steps(
    stage: ClickStage, optimizer: torch.optim.AdamW, batches: Iterable[Int64s], *, done: float = 0.5, of: int = 0
) -> Steps:
    """Take the training loop's steps.

    Args:
        stage: of the model.
        optimizer: of its weights.
        batches: one a step.
        done, of: steps before these, and of the whole training, for the learning rate; 0: it stays as it is.
    """
    stage.model.train()
    num_instances, started = 0, time.process_time()
    highest = optimizer.defaults["lr"]
    for number, index_B in enumerate(batches):
        if of:
            factor = rate_factor((done + number + 0.5) / of, warmup_share=WARMUP_SHARE)
            for group in optimizer.param_groups:
                group["lr"] = highest * factor
        loss, _ = stage.loss(index_B, Moment(number, 0.5, np.random.default_rng(number)))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(stage.model.parameters(), CLIP_NORM)
        loss.item()
        optimizer.step()
        num_instances += len(index_B)
    return Steps(num_instances, time.process_time() - started)
