"""Initial weights from the champion, although the vocabulary has changed since.

Rows of the word table belong to words, not to numbers: a word that the champion knows keeps its
row, wherever it stands now.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from storyrec.config import Config, load_config
from storyrec.errors import ConfigError, ModelError
from storyrec.features.titles import TOKENIZER, Vocabulary

WORD_TABLE = "extractors.words.weight"


@dataclass(frozen=True)
class Start:
    """Where initial weights came from, for the record.

    Attributes:
        champion: whether the champion's weights were taken.
        reason: why, or why not.
        num_words_copied, num_words_new: rows of the word table from the champion, and fresh ones.
    """

    champion: bool
    reason: str
    num_words_copied: int
    num_words_new: int

    def to_json(self) -> dict[str, Any]:
        """As it stands in training.json."""
        return asdict(self)


def start_from_champion(
    model: nn.Module,
    *,
    champion: Path | None,
    weights_name: str,
    vocabulary: Vocabulary,
    config: Config,
    block_hours: int | None = None,
) -> Start:
    """Copy the champion's weights into a freshly initialised model, where they fit.

    Args:
        model: has its word table at `extractors.words.weight`; left as it is if the champion does not fit.
        champion: a bundle folder, None if nothing was ever deployed.
        weights_name: the file of this model's weights in the bundle.
        vocabulary: the model's.
        config: the model's; the champion must have the same shapes and the same meaning of its weights.
        block_hours: width of the model's time blocks, where it has any.

    Raises:
        ModelError: a file of the champion is missing or damaged.
    """
    if champion is None:
        return Start(False, "there is no champion", 0, vocabulary.size)
    weights = load_weights(champion / weights_name)
    known = Vocabulary.load(champion / TOKENIZER)
    reason = _difference(champion, config=config, block_hours=block_hours) or _misfit(model, weights)
    if reason:
        return Start(False, reason, 0, vocabulary.size)
    table = weights[WORD_TABLE]
    if len(table) != known.size:
        raise ModelError(
            f"the word table has {len(table)} rows, the vocabulary {known.size} words",
            expected="one row a word",
            where=str(champion),
            remedy="roll back to an older champion or remove the damaged bundle",
        )
    words = model.state_dict()[WORD_TABLE].clone()
    num_copied = copy_word_rows(table, words, known=known, vocabulary=vocabulary)
    model.load_state_dict({**weights, WORD_TABLE: words})
    return Start(True, f"the champion's weights, from {champion.name}", num_copied, vocabulary.size - num_copied)


def copy_word_rows(from_table: Tensor, to_table: Tensor, *, known: Vocabulary, vocabulary: Vocabulary) -> int:
    """Copy the rows of the words that both vocabularies have, in place.

    Args:
        from_table: [size of `known`, D].
        to_table: [size of `vocabulary`, D]; rows of unknown words stay.
        known: whose words `from_table` holds.
        vocabulary: whose words `to_table` holds.

    Returns:
        The number of rows copied.
    """
    numbers = {word: number for number, word in enumerate(known.words)}
    sources = np.array([numbers.get(word, -1) for word in vocabulary.words])
    (shared,) = np.nonzero(sources >= 0)
    with torch.no_grad():
        to_table[torch.from_numpy(shared)] = from_table[torch.from_numpy(sources[shared])].to(to_table.device)
    return len(shared)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        ModelError: it is missing or damaged.
    """
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"the weights cannot be read: {error}",
            expected="a safetensors file",
            where=str(path),
            remedy="run the step that writes this file again",
        ) from error


def _difference(champion: Path, *, config: Config, block_hours: int | None) -> str:
    """Which setting gives the champion's weights another meaning; empty if none does."""
    try:
        theirs = load_config(champion / "config.toml")
    except ConfigError as error:
        return f"the champion's settings cannot be read: {error.found}"
    for name, value in theirs.model.model_dump(exclude={"dropout", "initial_scale"}).items():
        if value != getattr(config.model, name):
            return f"model.{name} was {value}, now {getattr(config.model, name)}"
    if block_hours is not None and theirs.windows.block_hours != block_hours:
        return f"a time block was {theirs.windows.block_hours} hours wide, now {block_hours}"
    return ""


def _misfit(model: nn.Module, weights: dict[str, Tensor]) -> str:
    """Which weight has another shape; empty if all fit but for the number of words."""
    ours = model.state_dict()
    if ours.keys() != weights.keys():
        return f"the champion has other weights: {sorted(ours.keys() ^ weights.keys())}"
    for name, tensor in ours.items():
        axis = 1 if name == WORD_TABLE else 0
        if tensor.shape[axis:] != weights[name].shape[axis:]:
            return f"'{name}' was {tuple(weights[name].shape)}, now {tuple(tensor.shape)}"
    return ""
