"""Chinese without spaces: runs of Han characters cut into word pieces, always the longest that fits.

A run is what stands between two other characters. From its left end on, the longest piece that goes on
there is cut off; a character that no piece begins with is a token by itself. Many runs are cut at
once, as numbers instead of texts; tests hold this to the `tokenizers` library's own cuts.

Suffixes: R = runs, H = characters of all runs, a space after each run, T = tokens.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Int64s = npt.NDArray[np.int64]

LONGEST_PIECE = 3
"""Characters. Chinese words have two or three; longer pieces are phrases, and phrases share no words."""
_NO_PIECE = 1  # a digit that no piece has


@dataclass(frozen=True)
class CutRuns:
    """Runs as tokens, one run after the other.

    Attributes:
        places_T: where each token stands among the pieces, [T]; -1 for a character that is no piece.
        lengths_R: tokens a run, [R].
    """

    places_T: Int64s
    lengths_R: Int64s


@dataclass(frozen=True)
class Pieces:
    """The pieces that runs are cut into.

    Attributes:
        words: distinct, of so few Han characters that (different characters + 2) ** length is below 2 ** 63.
    """

    words: Sequence[str]

    def cut(self, runs: Sequence[str]) -> CutRuns:
        """Cut runs, from the left, the longest piece first.

        Args:
            runs: R texts of one Han character at least.
        """
        codes_H = code_points(runs)
        lengths_R = np.fromiter(map(len, runs), np.int64, len(runs))
        digits_H, is_end_H = self._digits[codes_H], codes_H == ord(" ")
        steps_H, places_H = np.ones(len(codes_H), np.int64), self._find(digits_H)
        keys_H = digits_H.copy()
        for length in range(2, max(map(len, self.words), default=0) + 1):
            keys_H = keys_H[:-1] * self._base + digits_H[length - 1 :]
            found_H = self._find(keys_H)
            (hits,) = np.nonzero(found_H >= 0)
            places_H[hits], steps_H[hits] = found_H[hits], length
        is_cut_H = np.zeros(len(codes_H), bool)
        starts_R = np.cumsum(lengths_R + 1) - lengths_R - 1
        ahead = starts_R
        while len(ahead):
            is_cut_H[ahead] = True
            ahead = ahead + steps_H[ahead]
            ahead = ahead[~is_end_H[ahead]]
        cuts_R = np.add.reduceat(is_cut_H, starts_R, dtype=np.int64) if len(runs) else np.empty(0, np.int64)
        return CutRuns(places_H[is_cut_H], cuts_R)

    @cached_property
    def _digits(self) -> Int64s:
        """The digit of each code point: a piece is a number whose digits are its characters."""
        digits = np.full(sys.maxunicode + 1, _NO_PIECE)
        digits[[ord(character) for character in self._characters]] = np.arange(_NO_PIECE + 1, self._base)
        return digits

    @cached_property
    def _characters(self) -> list[str]:
        return sorted(set("".join(self.words)))

    @property
    def _base(self) -> int:
        return len(self._characters) + _NO_PIECE + 1

    def _find(self, keys_H: Int64s) -> Int64s:
        """Where the piece of each number stands; -1 where there is none."""
        # Arrow and not a pandas index: that one builds its table at its first use, and threads meet in it.
        places = pc.index_in(pa.array(keys_H), self._keys).fill_null(-1)
        return places.to_numpy().astype(np.int64)

    @cached_property
    def _keys(self) -> pa.Int64Array:
        """The number of each piece; none has the digit 0, so different lengths never meet."""
        keys = np.zeros(len(self.words), np.int64)
        for number, word in enumerate(self.words):
            for digit in self._digits[code_points([word])[:-1]]:
                keys[number] = keys[number] * self._base + digit
        return pa.array(keys)


def code_points(runs: Sequence[str]) -> npt.NDArray[np.uint32]:
    """The characters of all runs, a space after each run."""
    return np.frombuffer("".join(f"{run} " for run in runs).encode("utf-32-le"), np.uint32)
