"""A day in the simulated marketplace: who comes, what is shown, what is clicked.

The recommender that showed the logged stories was mediocre: popular and fresh ones (54 %), a noisy
guess at the user's interests (40 %), what the user wanted lately (6 %). Product clicks come from
the same interests and wants. All draws of a day are arrays; nothing depends on an earlier click.

Shapes: U = users, R = requests, I = impressions, C = product clicks.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from storyrec.logs.simulate.exposures import Exposures, first_of, stable_order
from storyrec.logs.simulate.pools import Pools, draw_published
from storyrec.logs.simulate.presets import Preset
from storyrec.logs.simulate.truth import CLICK_MODELS, Knobs, Shown
from storyrec.logs.simulate.wants import (
    DAY_US,
    HOUR_US,
    NUM_SLOTS,
    Wants,
    blocks,
    choose_interests,
    product_weights,
)
from storyrec.logs.simulate.world import STORY_INTERESTS, Floats, Ints, World

EXPOSURE_SHARES = (0.54, 0.40, 0.06)  # popular and fresh, noisy interest, wanted
BROWSE_SHARES = (0.50, 0.40, 0.10)  # product clicks: wanted, interest, popular
FRESHNESS_DAYS = 2.0  # in which a story's exposure falls to 1/e
GUESS_NOISE = 0.3  # share of the interest guesses that miss
REQUEST_SIZES, REQUEST_SIZE_SHARES = (1, 2, 3, 4, 5, 6, 8), (0.18, 0.23, 0.24, 0.16, 0.11, 0.06, 0.02)
SESSION_US = 25 * 60_000_000
SECOND_US = 1_000_000
SLOWEST_SCROLL_US = 20 * SECOND_US
GLANCE_US = 90 * SECOND_US


@dataclass(frozen=True)
class Day:
    """A day's events, sorted by the time of the request or click.

    Attributes:
        user_I, story_I, shown_us_I, request_I, probability_I, clicked_I: impressions; users and
            stories are rows, a request is a number within the day.
        click_user_C, click_product_C, clicked_us_C: product clicks.
    """

    user_I: Ints
    story_I: Ints
    shown_us_I: Ints
    request_I: Ints
    probability_I: Floats
    clicked_I: npt.NDArray[np.bool_]
    click_user_C: Ints
    click_product_C: Ints
    clicked_us_C: Ints


def simulate_day(
    preset: Preset,
    world: World,
    wants: Wants,
    pools: Pools,
    *,
    day: int,
    first_us: int,
    exposures: Exposures,
    knobs: Knobs,
    rng: np.random.Generator,
) -> Day:
    """Draw the events of a day.

    Args:
        preset: how much users do, and when.
        world: items, and the users whose day it is.
        wants: of these users.
        pools: of this day.
        day: days since the first.
        exposures: of all earlier days; those of this day are added.
    """
    user_R, request_us_R, click_user_C, clicked_us_C = _draw_visits(
        preset, world, day=day, day_us=first_us + day * DAY_US, rng=rng
    )
    size_R = rng.choice(REQUEST_SIZES, len(user_R), p=REQUEST_SIZE_SHARES)
    request_I = np.repeat(np.arange(len(user_R)), size_R)
    user_I, shown_us_I = user_R[request_I], request_us_R[request_I]
    if preset.scroll_seconds:
        place_I = np.arange(len(user_I)) - np.repeat(np.cumsum(size_R) - size_R, size_R)
        pace_R = rng.exponential(preset.scroll_seconds * SECOND_US, len(user_R)).clip(max=SLOWEST_SCROLL_US)
        shown_us_I += (place_I * pace_R[request_I]).astype(np.int64)
    story_I = _draw_stories(world, wants, pools, user_I, shown_us_I, rng=rng)

    if preset.repeat_share:
        is_again_I = rng.random(len(user_I)) < preset.repeat_share
        story_I = _repeat_stories(user_I, story_I, is_again_I, rng=rng)
        kept_I = exposures.add(user_I, story_I) | is_again_I
        rows = np.flatnonzero(kept_I)
        kept_I[:] = False  # a list has a story once
        kept_I[rows[first_of(request_I[rows] * len(world.stories.topic_N) + story_I[rows])]] = True
    else:
        kept_I = exposures.add(user_I, story_I)
    user_I, story_I, shown_us_I, request_I = user_I[kept_I], story_I[kept_I], shown_us_I[kept_I], request_I[kept_I]

    model = CLICK_MODELS[knobs.click_model]
    shown = Shown(
        user_I=user_I,
        story_I=story_I,
        request_I=request_I,
        wants_I2=np.stack([wants.at(user_I, shown_us_I, slot=slot) for slot in range(NUM_SLOTS)], axis=1),
        shift_I=np.asarray(preset.hour_logit, np.float32)[(shown_us_I - first_us) // HOUR_US % 24],
    )
    probability_I = model.probability(world, wants, shown, knobs=knobs)
    product_C = _draw_products(world, wants, pools, click_user_C, clicked_us_C, rng=rng)
    return Day(
        user_I=user_I,
        story_I=story_I,
        shown_us_I=shown_us_I,
        request_I=request_I,
        probability_I=probability_I,
        clicked_I=model.draw(probability_I, request_I=request_I, rng=rng),
        click_user_C=click_user_C,
        click_product_C=product_C,
        clicked_us_C=clicked_us_C,
    )


def _draw_visits(
    preset: Preset, world: World, *, day: int, day_us: int, rng: np.random.Generator
) -> tuple[Ints, Ints, Ints, Ints]:
    """Requests (user, time) and product clicks (user, time) of a day, each sorted by time.

    A user comes one to four times. Products are looked at first: about twenty clicks come before
    the first stories, which is why nearly all product clicks of a sequence are of the last day.
    """
    users = world.users
    comes_U = (rng.random(len(users.activity_U)) < users.activity_U) & (users.joined_U < day)
    active_A = np.flatnonzero(comes_U | (users.joined_U == day))
    hour_weights = np.asarray(preset.hour_weights, float) / sum(preset.hour_weights)
    starts_A4 = np.sort(rng.choice(24, (len(active_A), 4), p=hour_weights) * HOUR_US, axis=1)
    starts_A4 += (rng.random(starts_A4.shape) * 0.5 * HOUR_US).astype(np.int64)
    num_sessions_A = rng.integers(1, 5, len(active_A))

    volume_A = users.volume_U[active_A] * np.exp(0.4 * rng.standard_normal(len(active_A)))
    num_requests_A = rng.poisson(preset.mean_requests * volume_A)
    num_first_A = rng.poisson(
        preset.first_product_clicks * users.browses_U[active_A] * np.exp(0.12 * rng.standard_normal(len(active_A)))
    )
    num_later_A = rng.poisson(preset.mean_glances * users.browses_U[active_A] * volume_A)

    def session_times(num_A: Ints) -> tuple[Ints, Ints]:
        visitor = np.repeat(np.arange(len(active_A)), num_A)
        session = (rng.random(len(visitor)) * num_sessions_A[visitor]).astype(np.int64)
        return visitor, starts_A4[visitor, session] + (rng.random(len(visitor)) * SESSION_US).astype(np.int64)

    request_visitor, request_us = session_times(num_requests_A)
    later_visitor, later_us = session_times(num_later_A)
    if preset.glance_clicks > 1:
        num_clicks = 1 + rng.poisson(preset.glance_clicks - 1, len(later_us))
        later_visitor, later_us = np.repeat(later_visitor, num_clicks), np.repeat(later_us, num_clicks)
        later_us += (rng.random(len(later_us)) * GLANCE_US).astype(np.int64)
    first_visitor = np.repeat(np.arange(len(active_A)), num_first_A)
    first_us = starts_A4[first_visitor, 0] - (rng.random(len(first_visitor)) * HOUR_US).astype(np.int64)

    by_time = stable_order(request_us)
    click_us = np.concatenate([first_us, later_us])
    click_visitor = np.concatenate([first_visitor, later_visitor])
    click_by_time = stable_order(click_us)
    return (
        active_A[request_visitor[by_time]],
        day_us + request_us[by_time],
        active_A[click_visitor[click_by_time]],
        day_us + click_us[click_by_time],
    )


def _draw_stories(
    world: World, wants: Wants, pools: Pools, user_I: Ints, shown_us_I: Ints, *, rng: np.random.Generator
) -> Ints:
    users = world.users
    num_topics = len(world.topics.category_T)
    way_I = rng.choice(3, len(user_I), p=EXPOSURE_SHARES)
    interest_I = choose_interests(users.weight_UJ[:, STORY_INTERESTS].astype(np.float64), user_I, rng=rng)
    missed_I = rng.random(len(user_I)) < GUESS_NOISE
    guess_I = np.where(
        missed_I, rng.choice(num_topics, len(user_I), p=world.topics.story_weight_T), users.topic_UJ[user_I, interest_I]
    )
    slot_I = rng.integers(0, NUM_SLOTS, len(user_I))
    topic_I = np.where(way_I == 1, guess_I, -1)
    for slot in range(NUM_SLOTS):
        rows = np.flatnonzero((way_I == 2) & (slot_I == slot))
        topic_I[rows] = wants.topic_W[wants.at(user_I[rows], shown_us_I[rows], slot=slot)]
    published_us_N = world.stories.published_us_N
    return draw_published(
        pools.stories, pools.older_stories, topic_I, shown_us_I, published_us_N=published_us_N, rng=rng
    )


def _repeat_stories(
    user_I: Ints, story_I: Ints, is_again_I: npt.NDArray[np.bool_], *, rng: np.random.Generator
) -> Ints:
    """The stories, some of them replaced by one that the user was to see earlier that day, if there was any."""
    order_I = stable_order(user_I)
    ordered_I = user_I[order_I]
    begin_I = np.searchsorted(ordered_I, ordered_I)  # where each user's begin
    earlier_I = begin_I + (rng.random(len(user_I)) * (np.arange(len(user_I)) - begin_I)).astype(np.int64)
    shown_I = np.empty_like(story_I)
    shown_I[order_I] = np.where(is_again_I[order_I], story_I[order_I[earlier_I]], story_I[order_I])
    return shown_I


def _draw_products(
    world: World, wants: Wants, pools: Pools, user_C: Ints, clicked_us_C: Ints, *, rng: np.random.Generator
) -> Ints:
    users, products = world.users, world.products
    way_C = rng.choice(3, len(user_C), p=BROWSE_SHARES)
    weight_UJ = product_weights(world)
    interest_C = choose_interests(weight_UJ, user_C, rng=rng)
    topic_C = np.where(way_C == 1, users.topic_UJ[user_C, interest_C], -1)
    slot_C = rng.integers(0, NUM_SLOTS, len(user_C))
    want_C = np.zeros(len(user_C), np.int64)
    for slot in range(NUM_SLOTS):
        rows = np.flatnonzero((way_C == 0) & (slot_C == slot))
        want_C[rows] = wants.at(user_C[rows], clicked_us_C[rows], slot=slot)
    wanting = np.flatnonzero(way_C == 0)
    topic_C[wanting] = wants.topic_W[want_C[wanting]]

    def draw() -> Ints:
        return draw_published(
            pools.products, pools.older_products, topic_C, clicked_us_C, published_us_N=products.published_us_N, rng=rng
        )

    product_C, other_C = draw(), draw()
    # who wants something clicks the nearer of two
    for block in blocks(len(wanting)):
        rows = wanting[block]
        wanted_CZ = wants.latent_WZ[want_C[rows]]
        distances = [((products.latent_NZ[some[rows]] - wanted_CZ) ** 2).sum(axis=1) for some in (product_C, other_C)]
        product_C[rows] = np.where(distances[1] < distances[0], other_C[rows], product_C[rows])
    return product_C
