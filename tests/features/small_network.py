"""A small network that reads pictures, and its ONNX file."""

import io
import warnings

import torch
from torch import Tensor, nn

from storyrec.schema import COVER_WIDTH

SIDE = 32


class SmallNetwork(nn.Module):
    """A convolution and a linear layer, [B, 3, 32, 32] -> [B, width]."""

    def __init__(self, *, seed: int, width: int = COVER_WIDTH, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.convolution = nn.Conv2d(channels, 8, kernel_size=8, stride=8)
        self.linear = nn.Linear(8 * 16, width)

    def forward(self, pictures_B3HW: Tensor) -> Tensor:
        return self.linear(torch.relu(self.convolution(pictures_B3HW)).flatten(1))


def export(network: nn.Module, *, channels: int = 3, side: int = SIDE, fixed_batch: bool = False) -> bytes:
    """A network as an ONNX file; by torch's older exporter, which is many times faster on so small a one."""
    sink = io.BytesIO()
    names = {"input_names": ["pictures"], "output_names": ["vectors"]}
    axes = None if fixed_batch else {"pictures": {0: "batch"}, "vectors": {0: "batch"}}
    example = torch.zeros(2, channels, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network.eval(), (example,), sink, dynamo=False, dynamic_axes=axes, **names)
    return sink.getvalue()
