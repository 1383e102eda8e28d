"""Online tests whose outcome is known, made from the true click probabilities of a simulated marketplace.

Of the stories of each of its requests the better half is shown: to the control a random half, to the treatment one by
the true click probability under noise. Both arms' choices are known for every user, and so is the effect of giving all
of them the treatment. The first half of the days comes before the test: everybody is shown a random half.

Shapes: U = users of the test, I = impressions of the marketplace.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from storyrec.ab.contract import CONTROL, EXPOSURES, OUTCOMES, TREATMENT
from storyrec.ab.effects import METRICS, Booleans, Floats, Integers, ratio
from storyrec.ab.logs import Observed
from storyrec.errors import DataError
from storyrec.features.sequences import DAY_US
from storyrec.logs.partitions import EPOCH, encode
from storyrec.storage import write_file

MEAN_SECONDS = 30.0
USER_SCATTER, CLICK_SCATTER = 0.5, 0.7  # standard deviations of the logarithm of a dwell time


@dataclass(frozen=True)
class World:
    """A marketplace whose requests were halved, for users that come during the test.

    Attributes:
        user_ids_U: ids, ascending, [U].
        seconds_U: each user's mean dwell time of a clicked story, [U].
        user_I, story_I, us_I: user row, story id and epoch microseconds of the request, [I], by user
            and time.
        probability_I: the true click probability, [I].
        is_control_I, is_treatment_I: which impressions the arms show; the same before the test, [I].
        start_day, last_day: of the test, days since 1970.
    """

    user_ids_U: Integers
    seconds_U: Floats
    user_I: Integers
    story_I: Integers
    us_I: Integers
    probability_I: Floats
    is_control_I: Booleans
    is_treatment_I: Booleans
    start_day: int
    last_day: int

    @property
    def lifts(self) -> dict[str, float]:
        """By metric, what all users would do in the treatment over what they would do in the control, less one."""
        in_test_I = self.us_I // DAY_US >= self.start_day
        lifts = {}
        for metric in METRICS:
            control, treatment = (
                ratio(self._expected(shown_I & in_test_I), metric)
                for shown_I in (self.is_control_I, self.is_treatment_I)
            )
            lifts[metric.name] = treatment / control - 1
        return lifts

    def _expected(self, rows_I: Booleans) -> Floats:
        p, seconds = self.probability_I[rows_I], self.seconds_U[self.user_I[rows_I]]
        sums = [
            np.bincount(self.user_I[rows_I], some, len(self.user_ids_U)) for some in (np.ones(len(p)), p, p * seconds)
        ]
        return np.stack(sums, axis=1)


@dataclass(frozen=True)
class Draw:
    """One course of a test.

    Attributes:
        is_treatment_U: each user's arm, [U].
        rows: the impressions that were shown, places in the world's.
        clicked, seconds: of each of these; NaN seconds where not clicked.
    """

    is_treatment_U: Booleans
    rows: Integers
    clicked: Booleans
    seconds: Floats


def make_world(truth: Path, *, sharpness: float, seed: int) -> World:
    """Halve the requests of a marketplace.

    Args:
        truth: folder that holds the table `impressions` of the truth.
        sharpness: weight of the true log odds in the treatment's choice, beside standard normal noise; 0: the arms
            are alike.
        seed: of the choices.

    Raises:
        DataError: there is no truth, or of less than two days.
    """
    files = sorted(truth.glob("impressions/*/*.parquet"))
    if not files:
        raise _no_truth(truth, "there are no true click probabilities")
    with duckdb.connect() as connection:
        found: dict[str, Any] = connection.execute(
            "SELECT user_id, story_id, probability, min(epoch_us(shown_at)) OVER (PARTITION BY request_id) AS us, "
            "dense_rank() OVER (ORDER BY user_id, request_id) AS request "
            "FROM read_parquet($files) ORDER BY user_id, us, story_id",
            {"files": [str(file) for file in files]},
        ).fetchnumpy()
    first_day, last_day = (int(edge // DAY_US) for edge in (found["us"].min(), found["us"].max()))
    if first_day == last_day:
        raise _no_truth(truth, "there is one day of true click probabilities")
    start_day = (first_day + last_day + 1) // 2
    in_test = found["us"] // DAY_US >= start_day
    found = {name: column[np.isin(found["user_id"], found["user_id"][in_test])] for name, column in found.items()}
    user_ids_U, user_I = np.unique(found["user_id"], return_inverse=True)
    rng = np.random.default_rng(seed)
    p_I = found["probability"].astype(np.float64)
    noise_I = rng.standard_normal(len(p_I))
    score_I = sharpness * np.log(p_I / (1 - p_I)) + rng.standard_normal(len(p_I)) if sharpness else noise_I
    is_control_I = _better_half(found["request"], noise_I)
    in_test_I = found["us"] // DAY_US >= start_day
    return World(
        user_ids_U=user_ids_U,
        seconds_U=MEAN_SECONDS * np.exp(USER_SCATTER * rng.standard_normal(len(user_ids_U)) - USER_SCATTER**2 / 2),
        user_I=user_I,
        story_I=found["story_id"],
        us_I=found["us"],
        probability_I=p_I,
        is_control_I=is_control_I,
        is_treatment_I=np.where(in_test_I, _better_half(found["request"], score_I), is_control_I),
        start_day=start_day,
        last_day=last_day,
    )


def draw_test(world: World, *, rng: np.random.Generator, treatment_share: float = 0.5) -> Draw:
    """Draw arms, clicks and dwell times."""
    is_treatment_U = rng.random(len(world.user_ids_U)) < treatment_share
    shown_I = np.where(is_treatment_U[world.user_I], world.is_treatment_I, world.is_control_I)
    rows = np.flatnonzero(shown_I)
    clicked = rng.random(len(rows)) < world.probability_I[rows]
    seconds = np.full(len(rows), np.nan)
    scatter = np.exp(CLICK_SCATTER * rng.standard_normal(clicked.sum()) - CLICK_SCATTER**2 / 2)
    seconds[clicked] = world.seconds_U[world.user_I[rows[clicked]]] * scatter
    return Draw(is_treatment_U, rows, clicked, seconds)


def observe(world: World, draw: Draw) -> Observed:
    """What `read_test` reads from the logs of this draw, but for the counts."""
    num_days = world.last_day - world.start_day + 1
    user, day = world.user_I[draw.rows], world.us_I[draw.rows] // DAY_US - world.start_day
    sums_DUK = np.zeros((num_days + 1, len(world.user_ids_U), 3))  # the last one: before the test
    place = np.where(day < 0, num_days, day) * len(world.user_ids_U) + user
    for column, some in enumerate((np.ones(len(user)), draw.clicked, np.nan_to_num(draw.seconds))):
        sums_DUK[..., column] = np.bincount(place, some, sums_DUK[..., 0].size).reshape(sums_DUK.shape[:2])
    entry_U = (sums_DUK[:num_days, :, 0] > 0).argmax(axis=0)
    return Observed(
        days=tuple(EPOCH + timedelta(days=world.start_day + number) for number in range(num_days)),
        is_treatment_U=draw.is_treatment_U,
        entry_U=entry_U,
        sums_UDK=sums_DUK[:num_days].transpose(1, 0, 2),
        before_UK=sums_DUK[num_days],
        has_dwell=True,
        counts=(),
        share_in_both=0.0,
    )


def write_test(world: World, draw: Draw, out: Path) -> None:
    """Write exposures.parquet, outcomes.parquet, before.parquet and, last, the true lifts, truth.json."""
    user, us = world.user_I[draw.rows], world.us_I[draw.rows]
    in_test = us // DAY_US >= world.start_day
    _, first = np.unique(user[in_test], return_index=True)
    arms = np.where(draw.is_treatment_U, TREATMENT, CONTROL)
    exposures = {"user_id": world.user_ids_U, "arm": arms, "exposed_at": us[in_test][first]}
    events: Mapping[str, Any] = {
        "user_id": world.user_ids_U[user],
        "story_id": world.story_I[draw.rows],
        "shown_at": us,
        "clicked": draw.clicked,
        "dwell_seconds": pa.array(draw.seconds, from_pandas=True),
    }
    outcomes = pa.table(_typed(events, OUTCOMES))
    write_file(out / "exposures.parquet", encode(pa.table(_typed(exposures, EXPOSURES))))
    write_file(out / "outcomes.parquet", encode(outcomes.filter(pa.array(in_test))))
    write_file(out / "before.parquet", encode(outcomes.filter(pa.array(~in_test))))
    write_file(out / "truth.json", json.dumps({"lifts": world.lifts}, indent=1).encode())


def _typed(columns: Mapping[str, Any], schema: pa.Schema) -> dict[str, pa.Array]:
    return {field.name: pa.array(columns[field.name]).cast(field.type) for field in schema}


def _better_half(request_I: Integers, score_I: Floats) -> Booleans:
    """Of each request the half with the highest scores, rounded up, [I]."""
    order = np.lexsort((-score_I, request_I))
    _, start, size = np.unique(request_I[order], return_index=True, return_counts=True)
    is_shown = np.empty(len(order), bool)
    is_shown[order] = np.arange(len(order)) - np.repeat(start, size) < np.repeat((size + 1) // 2, size)
    return is_shown


def _no_truth(truth: Path, found: str) -> DataError:
    return DataError(
        found,
        expected="impressions/dt=YYYY-MM-DD/*.parquet of two days at least",
        where=str(truth),
        remedy="name the place that locations.truth of `storyrec simulate` named",
    )
