"""Runs of Han characters: the longest piece first, many runs at once as one at a time."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from threading import Barrier

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storyrec.features.pieces import Pieces, code_points

HAN = "红色茶杯连衣裙𠮷々"
RUNS = st.lists(st.text(alphabet=HAN, min_size=1, max_size=9), max_size=6)
WORDS = st.lists(st.text(alphabet=HAN[:-1], min_size=1, max_size=4), max_size=12, unique=True)


def cut_one(run: str, words: list[str]) -> list[int]:
    """From the left, the longest piece that goes on there; -1 for a character without one."""
    places = []
    while run:
        fitting = [word for word in words if run.startswith(word)]
        longest = max(fitting, key=len, default=run[0])
        places.append(words.index(longest) if fitting else -1)
        run = run[len(longest) :]
    return places


@settings(deadline=None)
@given(runs=RUNS, words=WORDS)
def test_many_runs_are_cut_as_each_alone(runs: list[str], words: list[str]) -> None:
    cut = Pieces(words).cut(runs)
    expected = [cut_one(run, words) for run in runs]
    assert cut.places_T.tolist() == [place for places in expected for place in places]
    assert cut.lengths_R.tolist() == [len(places) for places in expected]


def test_pieces_do_not_reach_into_the_next_run() -> None:
    cut = Pieces(["连衣裙", "衣", "裙"]).cut(["连衣", "裙", "连衣裙"])
    assert cut.places_T.tolist() == [-1, 1, 2, 0]
    assert cut.lengths_R.tolist() == [2, 1, 1]


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns so often that they meet."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_may_share_pieces_from_their_first_use() -> None:
    words = [left + right for left, right in product((chr(0x4E00 + number) for number in range(60)), repeat=2)]
    runs = ["".join(words[start::97]) for start in range(20)]
    expected = Pieces(words).cut(runs).places_T.tolist()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            pieces, start = Pieces(words), Barrier(4)
            cuts = [pool.submit(lambda: (start.wait(), pieces.cut(runs))[1]) for _ in range(4)]  # noqa: B023
            assert all(cut.result().places_T.tolist() == expected for cut in cuts)


def test_code_points_are_those_of_the_runs_with_a_space_after_each() -> None:
    codes = code_points(["红𠮷", "茶"])
    assert codes.dtype == np.uint32
    assert "".join(map(chr, codes)) == "红𠮷 茶 "
