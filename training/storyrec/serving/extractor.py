"""Stories to vectors without torch: the bundle's extractors in numpy, for stories that are younger than the bundle.

Paper: Sec. III-A, Eq. 2-4. Legend: N stories, W words of a title, V raw visual, D width.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyrec.bundle import ADEN, DUAL, Bundle, ItemTable
from storyrec.errors import ModelError

PREFIX = "extractors."
PADDING_WORD = 0
STORIES_AT_A_TIME = 1_024

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class StoryExtractor:
    """One stage's extractor of stories; attributes are its weights, named as in `models.extractors`."""

    words: Floats
    positions: Floats | None
    visual_projection: Floats
    hidden_weight: Floats
    hidden_bias: Floats
    attention_score: Floats

    @classmethod
    def load(cls, path: Path) -> "StoryExtractor":
        """Read the weights of aden.safetensors or dual.safetensors.

        Raises:
            ModelError: the file is missing, damaged or of another model.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            weights = load_file(path)
            return cls(
                words=weights[f"{PREFIX}words.weight"],
                positions=weights.get(f"{PREFIX}positions.weight"),
                visual_projection=weights[f"{PREFIX}visual_projection.weight"],
                hidden_weight=weights[f"{PREFIX}attention_hidden.weight"],
                hidden_bias=weights[f"{PREFIX}attention_hidden.bias"],
                attention_score=weights[f"{PREFIX}attention_score.weight"],
            )
        except (OSError, KeyError, SafetensorError) as error:
            raise ModelError(
                f"the extractor's weights cannot be read: {error}",
                expected="weights as pack_bundle copies them",
                where=str(path),
                remedy="pack the bundle again",
            ) from error

    def extract(self, tokens_NW: npt.NDArray[np.int32], visual_raw_NV: Floats) -> tuple[Floats, Floats]:
        """Features of stories in both modalities, [N, D] each: textual, visual; zero where there is nothing."""
        parts = [
            self._textual(tokens_NW[start : start + STORIES_AT_A_TIME])
            for start in range(0, len(tokens_NW), STORIES_AT_A_TIME)
        ]
        return np.concatenate([self.words[:0], *parts]), visual_raw_NV @ self.visual_projection.T

    def _textual(self, tokens_NW: npt.NDArray[np.int32]) -> Floats:
        mask_NW1 = (tokens_NW != PADDING_WORD)[:, :, None]
        words_NWD = self.words[tokens_NW]
        if self.positions is not None:
            words_NWD = words_NWD + self.positions[: tokens_NW.shape[1]]
        hidden_NWD = np.tanh(words_NWD @ self.hidden_weight.T + self.hidden_bias)
        scores_NWD = np.where(mask_NW1, hidden_NWD @ self.attention_score.T, -np.inf)
        largest_N1D = scores_NWD.max(axis=1, keepdims=True)
        weights_NWD = np.exp(scores_NWD - np.where(np.isfinite(largest_N1D), largest_N1D, 0.0))
        total_ND = weights_NWD.sum(axis=1)
        textual_ND: Floats = (weights_NWD * words_NWD).sum(axis=1) / np.where(total_ND > 0, total_ND, 1.0)
        return textual_ND


def embed_stories(
    bundle: Bundle, *, story_ids_N: npt.NDArray[np.int64], titles: list[str], visual_raw_NV: Floats
) -> ItemTable:
    """A table of stories as the bundle would hold them, had it known them.

    Args:
        bundle: whose extractors and vocabulary are used.
        story_ids_N: ascending, each once.
        titles: one a story; may be empty.
        visual_raw_NV: covers, zero where there is none.

    Raises:
        ModelError: the bundle's weights or vocabulary cannot be read.
    """
    tokens_NW = bundle.vocabulary.encode(titles, max_words=bundle.config.features.max_title_words)
    # the bundle's own catalog has covers in half precision
    visual_raw_NV = visual_raw_NV.astype(np.float16).astype(np.float32)
    textual_ND, visual_ND = StoryExtractor.load(bundle.folder / ADEN).extract(tokens_NW, visual_raw_NV)
    matching = StoryExtractor.load(bundle.folder / DUAL).extract(tokens_NW, visual_raw_NV)
    return ItemTable(
        np.concatenate([[0], story_ids_N]).astype(np.int64),
        np.concatenate([bundle.stories.vectors_ND[:1], textual_ND + visual_ND]).astype(np.float32),
        np.concatenate([bundle.stories.match_NM[:1], np.concatenate(matching, axis=1)]).astype(np.float32),
    )
