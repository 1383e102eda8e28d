"""New words of the simulated marketplace: brands and models that nobody has written before.

Shapes: N = titles.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SYLLABLES = [consonant + vowel for consonant in "bdfghjklmnprstvz" for vowel in "aeiou"]
WORDS_A_USE = 0.25  # new words for every title of the day that has one
NEWEST_SHARE = 0.5  # of the titles with such a word: one of this very day


@dataclass(frozen=True)
class Coined:
    """The new words that titles of a day may have, as numbers.

    Attributes:
        share: of the titles that have one.
        num_earlier: words of the days before, numbered from 0.
        num_new: words of the day, numbered after these.
    """

    share: float
    num_earlier: int
    num_new: int

    @classmethod
    def of_day(cls, share: float, *, num_titles_by_day: list[int], day: int) -> "Coined":
        """The words of a day, where so many titles are new each day."""
        counts = [1 + int(WORDS_A_USE * share * num) for num in num_titles_by_day]
        return cls(share, sum(counts[:day]), counts[day])

    def draw(self, num: int, *, rng: np.random.Generator) -> npt.NDArray[np.int32]:
        """A word for some of so many titles, [N]; -1 = none. Of the earlier words, late ones more often."""
        is_newest_N = (rng.random(num) < NEWEST_SHARE) | (self.num_earlier == 0)
        place_N = rng.random(num)
        newest_N = self.num_earlier + (place_N * self.num_new).astype(np.int32)
        earlier_N = (np.sqrt(place_N) * self.num_earlier).astype(np.int32)
        number_N = np.where(is_newest_N, newest_N, earlier_N)
        return np.where(rng.random(num) < self.share, number_N, -1).astype(np.int32)


def coin(number: int) -> str:
    """The word of a number, another one for each: two syllables and three digits, such as "kova512"."""
    place = number * 7_919 % (1_000 * len(SYLLABLES) ** 2)  # neighbours look different
    place, model = divmod(place, 1_000)
    first, second = divmod(place, len(SYLLABLES))
    return f"{SYLLABLES[first]}{SYLLABLES[second]}{model:03}"
