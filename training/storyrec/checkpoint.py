"""Checkpoints that survive a kill at any instant: tensors in one object, the state that names them in another.

Tensors go in turn to one of two objects; the state, written after them, says which one and its
SHA-256. A kill between the two writes leaves the older pair whole.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from storyrec.storage import Storage

STATE = "state.json"
FORMAT = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """What was saved: tensors on the CPU and a JSON object."""

    tensors: dict[str, Tensor]
    state: dict[str, Any]


class CheckpointStore:
    """The checkpoint of one training run.

    Args:
        storage: where checkpoints live.
        key: names the run; see `run_key`.
    """

    def __init__(self, storage: Storage, *, key: str) -> None:
        self.storage, self.key = storage, key
        self.note = ""
        self._slot = 0

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the checkpoint.

        Raises:
            StorageError: the disk is full or the place refuses; the older checkpoint stays.
        """
        name = f"tensors-{self._slot}.safetensors"
        content = safetensors.torch.save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        self.storage.write(f"{self.key}/{name}", content)
        envelope = {"format": FORMAT, "tensors": name, "sha256": _digest(content, state), "state": dict(state)}
        self.storage.write(f"{self.key}/{STATE}", json.dumps(envelope).encode())
        self._slot = 1 - self._slot

    def load(self) -> Checkpoint | None:
        """The checkpoint; None where there is none or it is damaged, which `note` then says."""
        found = self.storage.read_versioned(f"{self.key}/{STATE}")
        if found is None:
            return None
        try:
            envelope = json.loads(found[0])
            if envelope["format"] != FORMAT:
                raise ValueError(f"format {envelope['format']}, not {FORMAT}")
            name, state = str(envelope["tensors"]), dict(envelope["state"])
            content = self.storage.read_versioned(f"{self.key}/{name}")
            if content is None or _digest(content[0], state) != envelope["sha256"]:
                raise ValueError(f"'{name}' is missing or not what was written")
            tensors = safetensors.torch.load(content[0])
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            self.note = f"a damaged checkpoint was ignored and the training began anew: {error}"
            _log.warning("%s (%s/%s)", self.note, self.storage.url, self.key)
            return None
        self._slot = 1 - int(name == "tensors-1.safetensors")
        return Checkpoint(tensors, state)

    def discard_older(self) -> None:
        """Remove the tensors that no state names any more."""
        self.storage.delete(f"{self.key}/tensors-{self._slot}.safetensors")


def run_key(stage: str, *, model: nn.Module, settings: Mapping[str, Any]) -> str:
    """The key prefix of a run: a digest of everything that determines its result.

    Args:
        stage: the step's name; the key starts with it.
        model: with its initial weights.
        settings: JSON values: data digest, numbers of the loop and so on.
    """
    facts = {"settings": dict(settings), "weights": weights_digest(model), "torch": torch.__version__}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return f"{stage}-{digest[:16]}"


def weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all weights."""
    content = safetensors.torch.save({key: value.cpu().contiguous() for key, value in model.state_dict().items()})
    return hashlib.sha256(content).hexdigest()


def _digest(content: bytes, state: Mapping[str, Any]) -> str:
    return hashlib.sha256(content + json.dumps(state, sort_keys=True).encode()).hexdigest()
