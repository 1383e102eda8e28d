"""What makes a click in the simulated marketplace: two truths of different structure.

Neither has a network's shape or knows any of a network's inputs: no click history, no cover, no word.
So the best possible per-user AUC, the oracle's, is known and out of reach.

Shapes: I = impressions, Z = 16, R = requests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import reduce
from operator import add
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.wants import Wants
from storyrec.logs.simulate.world import STORY_INTERESTS, Floats, Ints, World

ROWS_AT_A_TIME = 2_048  # whose interests stay in a processor's cache


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
        wants_I2: what the user wants at that time, in two slots, [I, 2] rows of `Wants`.
        shift_I: added to every logit or utility, [I].
    """

    user_I: Ints
    story_I: Ints
    request_I: Ints
    wants_I2: Ints
    shift_I: Floats

    def blocks(self) -> Iterator[tuple[slice, "Shown"]]:
        """Some impressions at a time, and where they are."""
        for start in range(0, len(self.user_I), ROWS_AT_A_TIME):
            rows = slice(start, start + ROWS_AT_A_TIME)
            yield rows, Shown(*(getattr(self, field.name)[rows] for field in fields(self)))


class ClickModel(Protocol):
    """How users decide what to click of what they are shown."""

    def probability(self, world: World, wants: Wants, shown: Shown, *, knobs: Knobs) -> Floats:
        """The truth of every impression, [I] float32 in (0, 1)."""

    def draw(self, probability_I: Floats, *, request_I: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Which impressions are clicked, [I]."""


class Independent:
    """Every impression is decided by itself.

    logit = interest log(.03 + sum_j w_j exp(-|z - m_j|^2 / 8)) + intent sum_slots strength exp(-|z - z_slot|^2 / 10)
    + taste tanh(taste . e) + source + user's taste for the source + quality + user bias; p = .02 + .96 sigmoid(logit).
    """

    def probability(self, world: World, wants: Wants, shown: Shown, *, knobs: Knobs) -> Floats:
        logit_I = np.empty(len(shown.user_I), np.float32)
        for rows, block in shown.blocks():
            logit_I[rows] = self._logit(world, wants, block, knobs=knobs)
        probability_I: Floats = (0.02 + 0.96 / (1 + np.exp(-logit_I))).astype(np.float32)
        return probability_I

    def _logit(self, world: World, wants: Wants, shown: Shown, *, knobs: Knobs) -> Floats:
        users, traits = world.users, world.traits
        user_I, story_I = shown.user_I, shown.story_I
        z_IZ = world.stories.latent_NZ[story_I]
        close_IJ = np.exp(-_squared_distances(z_IZ, users.latent_UJZ[user_I, STORY_INTERESTS]) / 8)
        close_IJ *= users.weight_UJ[user_I, STORY_INTERESTS]
        wanted_I2 = np.exp(-_squared_distances(z_IZ, wants.latent_WZ[shown.wants_I2]) / 10)
        wanted_I2 *= wants.strength_W[shown.wants_I2]
        liking_I = np.tanh(np.einsum("ie,ie->i", users.taste_UE[user_I], traits.style_NE[story_I]))
        logit_I: Floats = (
            (knobs.base + shown.shift_I)
            + knobs.interest * (np.log(0.03 + _sum(close_IJ)) + 2.0)  # + 2: about zero for a usual impression
            + knobs.intent * _sum(wanted_I2)
            + knobs.taste * liking_I
            + knobs.source * _source_logit(world, user_I, story_I)
            + knobs.quality * traits.quality_N[story_I]
            + knobs.user * users.bias_U[user_I]
        )
        return logit_I

    def draw(self, probability_I: Floats, *, request_I: Ints, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
        return rng.random(len(probability_I)) < probability_I


class Choice:
    """A user takes at most one of the stories shown together, or leaves: a multinomial logit over the list.

    What counts is the nearest of all interests and wants alone, by its distance, and the style by its distance to the
    user's taste: u = CHOICE_BASE + base - CHOICE_SCALE interest min |z - m| - taste |2 taste - e| / 2 + source
    + quality + user bias; p_i = exp(u_i) / (1 + sum over the list of exp(u)).
    """

    def probability(self, world: World, wants: Wants, shown: Shown, *, knobs: Knobs) -> Floats:
        utility_I = np.empty(len(shown.user_I), np.float32)
        for rows, block in shown.blocks():
            utility_I[rows] = self._utility(world, wants, block, knobs=knobs)
        weight_I = np.exp(utility_I.astype(np.float64))
        list_I = np.unique(shown.request_I, return_inverse=True)[1]
        probability_I: Floats = (weight_I / (1 + np.bincount(list_I, weights=weight_I))[list_I]).astype(np.float32)
        return probability_I

    def _utility(self, world: World, wants: Wants, shown: Shown, *, knobs: Knobs) -> Floats:
        users, traits = world.users, world.traits
        user_I, story_I = shown.user_I, shown.story_I
        z_IZ = world.stories.latent_NZ[story_I]
        distance_IJ = _squared_distances(z_IZ, users.latent_UJZ[user_I, STORY_INTERESTS])
        distance_IJ[users.weight_UJ[user_I, STORY_INTERESTS] == 0] = np.inf
        nearest_I = distance_IJ.min(axis=1)
        if knobs.intent > 0:
            # a weak want is a distant one
            distance_I2 = _squared_distances(z_IZ, wants.latent_WZ[shown.wants_I2]) / wants.strength_W[shown.wants_I2]
            nearest_I = np.minimum(nearest_I, distance_I2.min(axis=1))
        style_IE = 2 * users.taste_UE[user_I] - traits.style_NE[story_I]
        style_I = np.sqrt(np.einsum("ie,ie->i", style_IE, style_IE))
        utility_I: Floats = (
            (CHOICE_BASE + knobs.base + shown.shift_I)
            - CHOICE_SCALE * knobs.interest * np.sqrt(nearest_I)
            - knobs.taste * style_I / 2
            + knobs.source * _source_logit(world, user_I, story_I)
            + knobs.quality * traits.quality_N[story_I]
            + knobs.user * users.bias_U[user_I]
        )
        return utility_I

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
    return world.users.source_taste_UO[user_I, world.traits.source_N[story_I]]


def _squared_distances(z_IZ: Floats, others_IJZ: Floats) -> Floats:
    """Of each z to each of its others, [I, J]."""
    difference = (others_IJZ - z_IZ[:, None]).reshape(-1, z_IZ.shape[1])
    return np.einsum("iz,iz->i", difference, difference).reshape(len(z_IZ), -1)


def _sum(columns_IJ: Floats) -> Floats:
    """One column after the other: rounding in single precision depends on the order."""
    return reduce(add, columns_IJ.T)
