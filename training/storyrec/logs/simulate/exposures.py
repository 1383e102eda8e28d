"""Which stories were shown to which users: nobody is shown a story for the first time twice.

Shapes: I = impressions.
"""

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.world import Ints


class Exposures:
    """All pairs of a user and a story so far, as sorted numbers."""

    def __init__(self, num_stories: int) -> None:
        self._num_stories = num_stories
        self._known = np.zeros(0, np.int64)

    def add(self, user_I: Ints, story_I: Ints) -> npt.NDArray[np.bool_]:
        """Note impressions; returns which of them are the first of their user and story, [I]."""
        key_I = user_I * self._num_stories + story_I
        first = first_of(key_I)
        keys = key_I[first]
        place = np.searchsorted(self._known, keys)
        is_known = np.append(self._known, -1)[place] == keys
        self._known = np.sort(np.concatenate([self._known, keys[~is_known]]), kind="stable")  # merges
        is_new_I = np.zeros(len(key_I), bool)
        is_new_I[first[~is_known]] = True
        return is_new_I


def first_of(key_I: Ints) -> Ints:
    """Where each distinct key comes first, by ascending key."""
    order_I = stable_order(key_I)
    sorted_I = key_I[order_I]
    return order_I[np.append(True, sorted_I[1:] != sorted_I[:-1])] if len(key_I) else order_I


def stable_order(key_I: Ints) -> Ints:
    """The stable order of keys, 0 to 2^43 - 1, of at most 2^20 rows, and slower of any others.

    A key and its row in one number sort several times as fast as an index does.
    """
    num_bits = len(key_I).bit_length()
    if len(key_I) == 0 or int(key_I.max()).bit_length() + num_bits > 63:
        return np.argsort(key_I, kind="stable")
    packed_I = (key_I << num_bits) | np.arange(len(key_I))
    packed_I.sort()
    return packed_I & ((1 << num_bits) - 1)
