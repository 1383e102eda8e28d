"""What makes a click in the simulated marketplace: two truths of different structure.

Neither has a network's shape or knows any of a network's inputs: no click history, no cover, no word.
So the best possible per-user AUC, the oracle's, is known and out of reach.

Shapes: I = impressions, Z = 16, R = requests.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.world import STORY_INTERESTS, Floats, Ints, World

SOURCE_LOGIT = (0.20, -0.05, 0.15, 0.05, -0.15, -0.30)  # invented, as the exposure of a source


@dataclass(frozen=True)
class Knobs:
    """Strengths of the click truth and of the gap between the domains.

    Frozen after calibration on the click rate, the oracle and plain popularity alone; a placebo
    sets one to zero.
    """

    click_model: Literal["independent", "choice"] = "independent"
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


@dataclass(frozen=True)
class Shown:
    """Impressions before anybody clicks.

    Attributes:
        user_I, story_I: rows of the world, [I].
        request_I: which impressions were shown together, [I] ascending.
        intent_latent_I2Z, intent_strength_I2: what the user wants at that time, in two slots.
    """

    user_I: Ints
    story_I: Ints
    request_I: Ints
    intent_latent_I2Z: Floats
    intent_strength_I2: Floats


class ClickModel(Protocol):
    """How users decide what to click of what they are shown."""

    def probability(self, world: World, shown: Shown, *, knobs: Knobs) -> Floats:
        """The truth of every impression, [I] float32 in (0, 1)."""

    def draw(self, probability_I: Floats, *, request_I: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Which impressions are clicked, [I]."""


class Independent:
    """Every impression is decided by itself.

    logit = interest log(.03 + sum_j w_j exp(-|z - m_j|^2 / 8)) + intent sum_slots strength exp(-|z - z_slot|^2 / 10)
    + taste tanh(taste . e) + source + user's taste for the source + quality + user bias; p = .02 + .96 sigmoid(logit).
    """

    def probability(self, world: World, shown: Shown, *, knobs: Knobs) -> Floats:
        users, traits = world.users, world.traits
        user_I, story_I = shown.user_I, shown.story_I
        z_IZ = world.stories.latent_NZ[story_I]
        affinity_I = np.zeros(len(story_I), np.float32)
        for j in range(STORY_INTERESTS.stop):
            closeness_I = np.exp(-_squared_distance(z_IZ, users.latent_UJZ[user_I, j]) / 8)
            affinity_I += users.weight_UJ[user_I, j] * closeness_I
        wanted_I = np.zeros(len(story_I), np.float32)
        for slot in range(shown.intent_latent_I2Z.shape[1]):
            closeness_I = np.exp(-_squared_distance(z_IZ, shown.intent_latent_I2Z[:, slot]) / 10)
            wanted_I += shown.intent_strength_I2[:, slot] * closeness_I
        liking_I = np.tanh(np.einsum("ie,ie->i", users.taste_UE[user_I], traits.style_NE[story_I]))
        logit_I = (
            knobs.base
            + knobs.interest * (np.log(0.03 + affinity_I) + 2.0)  # + 2: about zero for a usual impression
            + knobs.intent * wanted_I
            + knobs.taste * liking_I
            + knobs.source * _source_logit(world, user_I, story_I)
            + knobs.quality * traits.quality_N[story_I]
            + knobs.user * users.bias_U[user_I]
        )
        probability_I: Floats = 0.02 + 0.96 / (1 + np.exp(-logit_I))
        return probability_I.astype(np.float32)

    def draw(self, probability_I: Floats, *, request_I: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        return rng.random(len(probability_I)) < probability_I


class Choice:
    """A user takes at most one of the stories shown together, or leaves: a multinomial logit over the list.

    What counts is the nearest of all interests and wants alone, by its distance, and the style by its distance to the
    user's taste: u = CHOICE_BASE + base - CHOICE_SCALE interest min |z - m| - taste |2 taste - e| / 2 + source
    + quality + user bias; p_i = exp(u_i) / (1 + sum over the list of exp(u)).
    """

    def probability(self, world: World, shown: Shown, *, knobs: Knobs) -> Floats:
        users, traits = world.users, world.traits
        user_I, story_I = shown.user_I, shown.story_I
        z_IZ = world.stories.latent_NZ[story_I]
        nearest_I = np.full(len(story_I), np.inf, np.float32)
        for j in range(STORY_INTERESTS.stop):
            there_I = users.weight_UJ[user_I, j] > 0
            distance_I = _squared_distance(z_IZ, users.latent_UJZ[user_I, j])
            np.minimum(nearest_I, distance_I, out=nearest_I, where=there_I)
        for slot in range(shown.intent_latent_I2Z.shape[1]):
            # a weak want is a distant one
            distance_I = _squared_distance(z_IZ, shown.intent_latent_I2Z[:, slot]) / shown.intent_strength_I2[:, slot]
            np.minimum(nearest_I, distance_I, out=nearest_I, where=np.full(len(story_I), knobs.intent > 0))
        style_I = np.sqrt(_squared_distance(2 * users.taste_UE[user_I], traits.style_NE[story_I]))
        utility_I = (
            CHOICE_BASE
            + knobs.base
            - CHOICE_SCALE * knobs.interest * np.sqrt(nearest_I)
            - knobs.taste * style_I / 2
            + knobs.source * _source_logit(world, user_I, story_I)
            + knobs.quality * traits.quality_N[story_I]
            + knobs.user * users.bias_U[user_I]
        )
        weight_I = np.exp(utility_I.astype(np.float64))
        list_I = np.unique(shown.request_I, return_inverse=True)[1]
        probability_I: Floats = (weight_I / (1 + np.bincount(list_I, weights=weight_I))[list_I]).astype(np.float32)
        return probability_I

    def draw(self, probability_I: Floats, *, request_I: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        requests, first_R, list_I = np.unique(request_I, return_index=True, return_inverse=True)
        stop_I = np.cumsum(probability_I, dtype=np.float64)
        start_I = stop_I - probability_I
        place_I = start_I[first_R][list_I] + rng.random(len(requests))[list_I]
        return (start_I <= place_I) & (place_I < stop_I)


CHOICE_BASE, CHOICE_SCALE = 2.8, 0.27  # for a click rate and an oracle near those of the other model

CLICK_MODELS: Mapping[str, ClickModel] = MappingProxyType({"independent": Independent(), "choice": Choice()})
"""By the name that `Knobs.click_model` takes."""


def _source_logit(world: World, user_I: Ints, story_I: Ints) -> Floats:
    source_I = world.traits.source_N[story_I]
    logit_I: Floats = np.asarray(SOURCE_LOGIT, np.float32)[source_I] + world.users.source_taste_UO[user_I, source_I]
    return logit_I


def _squared_distance(a_IZ: Floats, b_IZ: Floats) -> Floats:
    difference_IZ = a_IZ - b_IZ
    squared: Floats = np.einsum("iz,iz->i", difference_IZ, difference_IZ)
    return squared
