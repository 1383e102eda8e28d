"""Short-term intent in the simulated marketplace: what every user wants right now.

Shapes: U = users, J = interests, W = wants of all users, I = moments that are asked about.
"""

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.world import ITEM_SPREAD, NUM_SHARED, NUM_STORY_ONLY, Ints, World

DAY_US = 86_400_000_000
HOUR_US = 3_600_000_000
NUM_SLOTS = 2  # wants a user holds at a time
MEAN_WANT_HOURS = 11.0
ROWS_AT_A_TIME = 1 << 14  # that stay in a processor's cache


class Wants:
    """The short-term intent of every user: in each slot one want after another, exponential in time.

    Attributes:
        topic_W, latent_WZ, strength_W: what is wanted, and how much.
    """

    def __init__(self, world: World, *, first_us: int, num_days: int, rng: np.random.Generator) -> None:
        users = world.users
        num_users = len(users.topic_UJ)
        expected = num_days * 24 / MEAN_WANT_HOURS
        num_wants = int(expected + 6 * np.sqrt(expected) + 6)
        shape = (num_users * NUM_SLOTS, num_wants)
        ends = np.cumsum(rng.exponential(MEAN_WANT_HOURS * HOUR_US, shape), axis=1).astype(np.int64)
        ends[:, -1] = np.iinfo(np.int64).max  # the last want stays
        self._ends_W, self._first_us, self._num_wants = ends.reshape(-1), first_us, num_wants
        self._num_ended = _count_by_hour(ends, num_hours=num_days * 24)
        # a want comes from an interest in products: a shared one more often than not
        user_W = np.repeat(np.arange(num_users, dtype=np.int32), NUM_SLOTS * num_wants)
        interest_W = choose_interests(product_weights(world), user_W, rng=rng)
        self.topic_W = users.topic_UJ[user_W, interest_W]
        self.latent_WZ = rng.standard_normal((len(user_W), users.latent_UJZ.shape[2]), dtype=np.float32)
        self.latent_WZ *= np.float32(ITEM_SPREAD)
        for block in blocks(len(user_W)):
            self.latent_WZ[block] += users.latent_UJZ[user_W[block], interest_W[block]]
        self.strength_W = rng.uniform(0.5, 1.5, len(user_W)).astype(np.float32)

    def at(self, user_I: Ints, time_us_I: Ints, *, slot: int) -> Ints:
        """Which want each user has at a time within the simulated days, [I]."""
        row_I = user_I * NUM_SLOTS + slot
        since_us_I = time_us_I - self._first_us
        want_I: Ints = row_I * self._num_wants + self._num_ended[row_I, since_us_I // HOUR_US]
        over_I = np.flatnonzero(self._ends_W[want_I] <= since_us_I)
        while len(over_I):
            want_I[over_I] += 1
            over_I = over_I[self._ends_W[want_I[over_I]] <= since_us_I[over_I]]
        return want_I


def product_weights(world: World) -> npt.NDArray[np.float64]:
    """How much each interest counts for products, [U, J]: zero for those of stories only."""
    weight_UJ = world.users.weight_UJ.astype(np.float64)
    weight_UJ[:, NUM_SHARED : NUM_SHARED + NUM_STORY_ONLY] = 0
    return weight_UJ


def choose_interests(
    weight_UJ: npt.NDArray[np.float64], user_I: npt.NDArray[np.integer], *, rng: np.random.Generator
) -> npt.NDArray[np.int8]:
    """For each user an interest, a column drawn in proportion to the user's row, [I]."""
    sums_UJ = np.cumsum(weight_UJ, axis=1)
    place_I = rng.random(len(user_I))
    chosen_I = np.empty(len(user_I), np.int8)
    for block in blocks(len(user_I)):
        sums_IJ = sums_UJ[user_I[block]]
        place_I[block] *= sums_IJ[:, -1]
        chosen_I[block] = np.count_nonzero(sums_IJ <= place_I[block, None], axis=1)
    return np.minimum(chosen_I, weight_UJ.shape[1] - 1, out=chosen_I)


def blocks(num_rows: int) -> list[slice]:
    """All rows, a cacheful at a time."""
    return [slice(start, start + ROWS_AT_A_TIME) for start in range(0, num_rows, ROWS_AT_A_TIME)]


def _count_by_hour(ends: Ints, *, num_hours: int) -> npt.NDArray[np.uint16]:
    """How many of a row's wants had ended when each hour began, [rows, hours + 1]."""
    counts = np.zeros((len(ends), num_hours + 1), np.uint16)
    for block in blocks(len(ends)):
        hour = np.minimum(ends[block] // HOUR_US + 1, num_hours)
        place = np.arange(len(hour))[:, None] * (num_hours + 1) + hour
        ended = np.bincount(place.reshape(-1), minlength=len(hour) * (num_hours + 1)).reshape(len(hour), -1)
        counts[block] = np.cumsum(ended, axis=1)
    return counts
