"""Short-term intent in the simulated marketplace: what every user wants right now.

Shapes: U = users, J = interests, K = wants of a slot, I = moments that are asked about.
"""

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.world import ITEM_SPREAD, NUM_SHARED, NUM_STORY_ONLY, Floats, Ints, World

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
NUM_SLOTS = 2  # wants a user holds at a time
MEAN_WANT_HOURS = 11.0


class Wants:
    """The short-term intent of every user: in each slot one want after another, exponential in time."""

    def __init__(self, world: World, *, first_us: int, num_days: int, rng: np.random.Generator) -> None:
        users = world.users
        num_users = len(users.topic_UJ)
        expected = num_days * 24 / MEAN_WANT_HOURS
        num_wants = int(expected + 6 * np.sqrt(expected) + 6)
        shape = (num_users, NUM_SLOTS, num_wants)
        starts = np.cumsum(rng.exponential(MEAN_WANT_HOURS * HOUR_US, shape), axis=2).astype(np.int64)
        self._span = np.int64(num_days * DAY_US * 4)
        starts = np.minimum(starts, self._span - 1)
        row = np.arange(num_users * NUM_SLOTS, dtype=np.int64).reshape(num_users, NUM_SLOTS, 1)
        self._keys = (row * self._span + starts).reshape(-1)
        self._first_us, self._num_wants = first_us, num_wants
        # a want comes from an interest in products: a shared one more often than not
        weight_UJ = product_weights(world)
        interest = choose_interests(weight_UJ, np.repeat(np.arange(num_users), NUM_SLOTS * num_wants), rng=rng)
        user = np.repeat(np.arange(num_users), NUM_SLOTS * num_wants)
        self._topic = users.topic_UJ[user, interest]
        self._latent = users.latent_UJZ[user, interest] + ITEM_SPREAD * rng.standard_normal(
            (len(user), users.latent_UJZ.shape[2]), dtype=np.float32
        )
        self._strength = rng.uniform(0.5, 1.5, len(user)).astype(np.float32)

    def at(self, user_I: Ints, time_us_I: Ints, *, slot: int) -> tuple[Ints, Floats, Floats]:
        """Topic [I], z [I, 16] and strength [I] of what each user wants at a time."""
        row_I = user_I * NUM_SLOTS + slot
        key_I = row_I * self._span + (time_us_I - self._first_us)
        index_I = np.searchsorted(self._keys, key_I, side="right")
        # the first want of a slot reaches back to the start
        index_I = np.clip(index_I, row_I * self._num_wants, row_I * self._num_wants + self._num_wants - 1)
        return self._topic[index_I], self._latent[index_I], self._strength[index_I]


def product_weights(world: World) -> npt.NDArray[np.float64]:
    """How much each interest counts for products, [U, J]: zero for those of stories only."""
    weight_UJ = world.users.weight_UJ.astype(np.float64)
    weight_UJ[:, NUM_SHARED : NUM_SHARED + NUM_STORY_ONLY] = 0
    return weight_UJ


def choose_interests(weight_UJ: npt.NDArray[np.float64], user_I: Ints, *, rng: np.random.Generator) -> Ints:
    """For each user an interest, a column drawn in proportion to the user's row, [I]."""
    sums_UJ = np.cumsum(weight_UJ, axis=1)
    place_I = rng.random(len(user_I)) * sums_UJ[user_I, -1]
    chosen: Ints = (sums_UJ[user_I] <= place_I[:, None]).sum(axis=1)
    last = weight_UJ.shape[1] - 1
    chosen[chosen > last] = last
    return chosen
