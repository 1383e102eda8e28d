"""The ONNX network that turns pictures into cover vectors.

Suffixes: B = pictures, V = cover, 512; an unnamed 3 is red, green, blue.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from storyrec.errors import ConfigError, ModelError
from storyrec.features.pictures import UInt8s
from storyrec.schema import COVER_WIDTH
from storyrec.storage import open_storage

Floats = npt.NDArray[np.float32]

EXPECTED = "one input [N, 3, height, width] of float32 with N left open, and one output [N, 512] of float32"
PREPARATION = 1
"""Number of the way from a picture to pixels; another one makes other vectors."""


class CoverNetwork:
    """A loaded network; it runs on the GPU where onnxruntime has one, else on the CPU.

    Attributes:
        height, width: of the pictures it takes, pixels.
        sha256: of the ONNX file.
        version: 16 hex digits that change with the file and with the way from a picture to its pixels.
    """

    def __init__(
        self, content: bytes, *, where: str, size: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]
    ) -> None:
        """Open an ONNX file and try it.

        Args:
            content: the file, weights inside.
            where: its place, for errors.
            size: pixels a side where the file leaves height or width open.
            pixel_mean, pixel_std: of red, green and blue in 0..1; pixels are standardized with them.

        Raises:
            ConfigError: the file is no ONNX model, or takes or gives something else.
        """
        self._session = _open(content, where=where)
        self._input, self.height, self.width = _picture_input(self._session, where=where, size=size)
        self._mean = np.asarray(pixel_mean, np.float32)
        self._std = np.asarray(pixel_std, np.float32)
        self.sha256 = hashlib.sha256(content).hexdigest()
        facts = [self.sha256, self.height, self.width, list(pixel_mean), list(pixel_std), PREPARATION]
        self.version = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        try:
            shape = self.embed(np.zeros((2, self.height, self.width, 3), np.uint8)).shape
        except ModelError as error:
            raise _unfit(f"the model does not run on two black pictures: {error.found}", where=where) from error
        if shape != (2, COVER_WIDTH):
            raise _unfit(f"the model makes {list(shape)} of two pictures", where=where)

    def embed(self, pixels_BHW3: UInt8s) -> Floats:
        """Raw vectors of some pictures, [B, height, width, 3] uint8 -> [B, 512] float32.

        Raises:
            ModelError: the network does not run.
        """
        scaled_BHW3 = (pixels_BHW3.astype(np.float32) / 255 - self._mean) / self._std
        inputs = {self._input: np.ascontiguousarray(scaled_BHW3.transpose(0, 3, 1, 2))}
        try:
            (raw_BV,) = self._session.run(None, inputs)
        except Exception as error:  # its exceptions have no common base
            raise ModelError(
                str(error).splitlines()[0],
                where="covers.model",
                remedy="lower covers.batch_size if memory is short, then run the same command again",
            ) from error
        return np.asarray(raw_BV, np.float32)


def load_network(
    model: str, *, s3_endpoint: str, size: int, pixel_mean: Sequence[float], pixel_std: Sequence[float]
) -> CoverNetwork:
    """The network of an ONNX file, a path or `s3://bucket/key`.

    Raises:
        ConfigError: there is none, or it does not fit.
        StorageError: S3 refuses or fails.
    """
    if model.startswith("s3://"):
        place, _, name = model.rpartition("/")
        content = open_storage(place, s3_endpoint=s3_endpoint).read(name)
    else:
        try:
            content = Path(model.removeprefix("file://")).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"the model of the covers cannot be read ({error.strerror})",
                expected="an ONNX file",
                where=f"covers.model = {model!r}",
                remedy="correct the path, or leave the setting empty to do without",
            ) from error
    return CoverNetwork(content, where=model, size=size, pixel_mean=pixel_mean, pixel_std=pixel_std)


def _open(content: bytes, *, where: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores decode pictures meanwhile
    there = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in there]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # its exceptions have no common base
        raise ConfigError(
            f"the model of the covers cannot be opened: {str(error).splitlines()[0]}",
            expected="an ONNX file with its weights inside",
            where=f"covers.model = {where!r}",
            remedy="export it again (torch.onnx.export: external_data=False)",
        ) from error


def _picture_input(session: Any, *, where: str, size: int) -> tuple[str, int, int]:
    """Name, height and width of the input."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    found = ", ".join(f"{i.name} {i.shape} {i.type}" for i in (*inputs, *outputs))
    if len(inputs) != 1 or len(outputs) != 1:
        raise _unfit(f"the model has {len(inputs)} inputs and {len(outputs)} outputs: {found}", where=where)
    shape = inputs[0].shape
    is_picture = len(shape) == 4 and not isinstance(shape[0], int) and (shape[1] == 3 or not isinstance(shape[1], int))
    if not is_picture or inputs[0].type != "tensor(float)":
        raise _unfit(f"the model's input is {shape}, {inputs[0].type}", where=where)
    height, width = (side if isinstance(side, int) else size for side in shape[2:])
    return inputs[0].name, height, width


def _unfit(found: str, *, where: str) -> ConfigError:
    return ConfigError(
        found,
        expected=EXPECTED,
        where=f"covers.model = {where!r}",
        remedy="export the network up to its 512 features, with a dynamic batch",
    )
