"""What makes a click in the simulated marketplace.

The truth has no network's shape and knows none of a network's inputs: no click history, no cover,
no word. So its best possible per-user AUC, the oracle's, is known and out of reach.

Shapes: I = impressions, Z = 16.
"""

from dataclasses import dataclass

import numpy as np

from storyrec.logs.simulate.world import STORY_INTERESTS, Floats, Ints, World

SOURCE_LOGIT = (0.20, -0.05, 0.15, 0.05, -0.15, -0.30)  # invented, as above


@dataclass(frozen=True)
class Knobs:
    """Strengths of the click truth and of the gap between the domains.

    Frozen after calibration on the click rate, the oracle and plain popularity alone; a placebo
    sets one to zero.
    """

    interest: float = 1.25
    intent: float = 2.0
    taste: float = 0.65
    source: float = 1.0
    quality: float = 0.3
    user: float = 0.45
    base: float = -1.5
    gap: float = 0.6  # radians between the cover matrices of the two domains
    shared_interests: bool = True  # False: products say nothing about stories
    shared_words: bool = False  # True: stories use the products' keywords


def click_probability(
    world: World, *, user_I: Ints, story_I: Ints, intent_latent_I2Z: Floats, intent_strength_I2: Floats, knobs: Knobs
) -> Floats:
    """The truth of every impression, [I] float32 in (0.02, 0.98).

    logit = interest log(.03 + sum_j w_j exp(-|z - m_j|^2 / 8)) + intent sum_slots strength exp(-|z - z_slot|^2 / 10)
    + taste tanh(taste . e) + source + user's taste for the source + quality + user bias; p = .02 + .96 sigmoid(logit).
    """
    users, traits = world.users, world.traits
    z_IZ = world.stories.latent_NZ[story_I]
    affinity_I = np.zeros(len(story_I), np.float32)
    for j in range(STORY_INTERESTS.stop):
        closeness_I = np.exp(-_squared_distance(z_IZ, users.latent_UJZ[user_I, j]) / 8)
        affinity_I += users.weight_UJ[user_I, j] * closeness_I
    wanted_I = np.zeros(len(story_I), np.float32)
    for slot in range(intent_latent_I2Z.shape[1]):
        closeness_I = np.exp(-_squared_distance(z_IZ, intent_latent_I2Z[:, slot]) / 10)
        wanted_I += intent_strength_I2[:, slot] * closeness_I
    liking_I = np.tanh(np.einsum("ie,ie->i", users.taste_UE[user_I], traits.style_NE[story_I]))
    source_I = traits.source_N[story_I]
    source_logit_I = np.asarray(SOURCE_LOGIT, np.float32)[source_I] + users.source_taste_UO[user_I, source_I]
    logit_I = (
        knobs.base
        + knobs.interest * (np.log(0.03 + affinity_I) + 2.0)  # + 2: about zero for a usual impression
        + knobs.intent * wanted_I
        + knobs.taste * liking_I
        + knobs.source * source_logit_I
        + knobs.quality * traits.quality_N[story_I]
        + knobs.user * users.bias_U[user_I]
    )
    probability_I: Floats = 0.02 + 0.96 / (1 + np.exp(-logit_I))
    return probability_I.astype(np.float32)


def _squared_distance(a_IZ: Floats, b_IZ: Floats) -> Floats:
    difference_IZ = a_IZ - b_IZ
    squared: Floats = np.einsum("iz,iz->i", difference_IZ, difference_IZ)
    return squared
