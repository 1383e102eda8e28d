"""Covers of the simulated marketplace: what a picture network would make of an item's cover.

cover = unit norm of relu(W_domain z' + nuisance + noise - threshold). The two domains' matrices
are rotated apart by `gap`, and a story's style shows in its cover.

Shapes: N = items, V = 512.
"""

import numpy as np

from storyrec.logs.simulate.world import LATENT_WIDTH, STYLE_WIDTH, Floats, Ints
from storyrec.schema import COVER_WIDTH, Domain

NUISANCE_WIDTH = 12
NUISANCE, NOISE, STYLE = 0.5, 0.5, 0.4
THRESHOLD = 1.1
LEVELS = 2_048
"""Values are multiples of 1/2048: exact in float16, and few enough for the files to stay small."""


class Covers:
    """Draws covers from latents, [N, V] float32 of unit norm within 0.001."""

    def __init__(self, *, gap: float) -> None:
        rng = np.random.default_rng(21)
        story, other, style = (
            rng.standard_normal((n, COVER_WIDTH)).astype(np.float32) for n in (LATENT_WIDTH, LATENT_WIDTH, STYLE_WIDTH)
        )
        # 1.8: about the spread of z over the whole catalog
        product = np.float32(np.cos(gap)) * story + np.float32(np.sin(gap)) * other
        self._of_latent = {
            Domain.STORY: story / np.float32(1.8 * np.sqrt(LATENT_WIDTH)),
            Domain.PRODUCT: product / np.float32(1.8 * np.sqrt(LATENT_WIDTH)),
        }
        self._of_style = style * np.float32(STYLE / np.sqrt(STYLE_WIDTH))
        self._of_nuisance = rng.standard_normal((NUISANCE_WIDTH, COVER_WIDTH)).astype(np.float32) * np.float32(
            NUISANCE / np.sqrt(NUISANCE_WIDTH)
        )

    def draw(self, latent_NZ: Floats, *, style_NE: Floats | None, domain: Domain, rng: np.random.Generator) -> Floats:
        """Covers of items of one domain; products have no style."""
        raw_NV = rng.standard_normal((len(latent_NZ), COVER_WIDTH), dtype=np.float32)
        raw_NV *= np.float32(NOISE)
        raw_NV += latent_NZ @ self._of_latent[domain]
        raw_NV += rng.standard_normal((len(latent_NZ), NUISANCE_WIDTH), dtype=np.float32) @ self._of_nuisance
        if style_NE is not None:
            raw_NV += style_NE @ self._of_style
        raw_NV -= np.float32(THRESHOLD)
        np.maximum(raw_NV, 0, out=raw_NV)
        raw_NV /= np.sqrt(np.einsum("nv,nv->n", raw_NV, raw_NV))[:, None] + np.float32(1e-12)
        np.rint(raw_NV * np.float32(LEVELS), out=raw_NV)
        raw_NV /= np.float32(LEVELS)
        return raw_NV


def missing_covers(num_items: int, *, share: float, rng: np.random.Generator) -> Ints:
    """Rows of items whose cover is not there."""
    return np.flatnonzero(rng.random(num_items) < share)
