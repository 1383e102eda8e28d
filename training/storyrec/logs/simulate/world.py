"""The latent world of the simulated marketplace: topics, items and users.

Every item has a latent z in R^16 (category > subtopic > item); stories also have a style in R^8
and a quality. Users hold interests, some shared by both domains.

Shapes: T = subtopics, N = items, U = users, J = interests of a user, Z = 16.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from storyrec.arrays import load_record, save_record
from storyrec.logs.simulate.lexicon import NUM_CATEGORIES, SUBTOPICS_PER_CATEGORY
from storyrec.logs.simulate.presets import BySource, Preset
from storyrec.schema import SOURCES

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]

LATENT_WIDTH = 16
STYLE_WIDTH = 8
CATEGORY_SPREAD, SUBTOPIC_SPREAD, ITEM_SPREAD, MOUNT_SPREAD = 1.6, 0.8, 0.35, 0.15
DAYS_OF_OLDER_STORIES = 7  # the catalog at the start is as old as the longest history
NEW_USER_SHARE = 0.4  # users who come for the first time within the simulated days
LAUNCHED_SHARE = 0.2  # of the new items, where a category is new


@dataclass(frozen=True)
class Topics:
    """Subtopics: centres [T, 16], category of each [T], and how popular each is by domain [T]."""

    centres_TZ: Floats
    category_T: Ints
    story_weight_T: npt.NDArray[np.float64]
    product_weight_T: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Items:
    """One domain's items for all days; an item's id is its row + 1.

    Attributes:
        topic_N: subtopic, [N].
        latent_NZ: z, [N, 16].
        born_N: day index of publication, [N]; below zero: there from the start.
        published_us_N: [N] int64; of items from the start, before the first midnight.
        weight_N: exposure weight before freshness, [N].
    """

    topic_N: Ints
    latent_NZ: Floats
    born_N: Ints
    published_us_N: Ints
    weight_N: npt.NDArray[np.float64]


@dataclass(frozen=True)
class StoryTraits:
    """What only stories have: style [N, 8], quality [N], source index [N], mounted product rows, -1 = none, [N, 3]."""

    style_NE: Floats
    quality_N: Floats
    source_N: Ints
    mounts_N3: Ints


@dataclass(frozen=True)
class Users:
    """Interests of every user, [U, J, ...]: first those of both domains, then of stories, then of products.

    Attributes:
        topic_UJ, latent_UJZ, weight_UJ: subtopic, centre and weight (sums to 1 within a domain) of an interest.
        taste_UE: taste for style, [U, 8].
        source_taste_UO: added to a click's logit by the story's source, [U, sources].
        bias_U: how readily a user clicks, [U].
        activity_U: chance to be active on a day, [U].
        volume_U: relative number of requests on an active day, [U].
        browses_U: whether a user ever clicks a product, [U].
        joined_U: day index of the first visit, [U]; below zero: a user from before the first day.
    """

    topic_UJ: Ints
    latent_UJZ: Floats
    weight_UJ: Floats
    taste_UE: Floats
    source_taste_UO: Floats
    bias_U: Floats
    activity_U: npt.NDArray[np.float64]
    volume_U: npt.NDArray[np.float64]
    joined_U: Ints
    browses_U: npt.NDArray[np.bool_]


NUM_SHARED, NUM_STORY_ONLY, NUM_PRODUCT_ONLY = 5, 3, 4
STORY_INTERESTS = slice(0, NUM_SHARED + NUM_STORY_ONLY)


@dataclass(frozen=True)
class Catalogs:
    """The items of all days."""

    topics: Topics
    products: Items
    stories: Items
    traits: StoryTraits

    def save(self, folder: Path) -> None:
        """Write every array, so that other processes can map it."""
        folder.mkdir(parents=True)
        for name in ("topics", "products", "stories", "traits"):
            save_record(getattr(self, name), folder, name=name)

    @classmethod
    def load(cls, folder: Path) -> "Catalogs":
        """The inverse of `save`; arrays are memory-mapped."""
        return cls(
            load_record(Topics, folder, name="topics"),
            load_record(Items, folder, name="products"),
            load_record(Items, folder, name="stories"),
            load_record(StoryTraits, folder, name="traits"),
        )


@dataclass(frozen=True)
class World(Catalogs):
    """Items of all days, and some of the users."""

    users: Users


def draw_catalogs(
    preset: Preset, *, num_users: int, num_days: int, first_us: int, late_category: bool, seed: int
) -> Catalogs:
    """Draw the items of a world.

    Args:
        preset: how many items there are for so many users.
        num_users: of the whole marketplace.
        first_us: the first midnight.
        late_category: whether the last category is new on the last day.
    """
    topics = _draw_topics(preset, np.random.default_rng([seed, 1]))
    late_from = num_days - 1 if late_category else None
    products = _draw_products(
        topics,
        num_old=preset.num_old_products(num_users),
        num_new=preset.num_new_products(num_users),
        num_days=num_days,
        first_us=first_us,
        late_from=late_from,
        rng=np.random.default_rng([seed, 2]),
    )
    stories, traits = _draw_stories(
        topics,
        products,
        num_new=preset.num_new_stories(num_users),
        source_supply=preset.source_supply,
        source_exposure=preset.source_exposure,
        num_days=num_days,
        first_us=first_us,
        late_from=late_from,
        rng=np.random.default_rng([seed, 3]),
    )
    return Catalogs(topics, products, stories, traits)


def draw_users(
    preset: Preset, topics: Topics, *, num_users: int, num_days: int, shared: bool, rng: np.random.Generator
) -> Users:
    """Draw some users.

    Args:
        shared: False: what users like among products says nothing about stories (a placebo).
    """
    both_T = np.sqrt(topics.story_weight_T * topics.product_weight_T)
    parts = [
        (NUM_SHARED, both_T / both_T.sum()),
        (NUM_STORY_ONLY, topics.story_weight_T),
        (NUM_PRODUCT_ONLY, topics.product_weight_T),
    ]
    num_topics = len(topics.category_T)
    topic_UJ = np.concatenate([rng.choice(num_topics, (num_users, n), p=p) for n, p in parts], axis=1)
    latent_UJZ = topics.centres_TZ[topic_UJ] + 0.2 * _normal(rng, *topic_UJ.shape, LATENT_WIDTH)
    weight_UJ = rng.gamma(1.5, size=topic_UJ.shape).astype(np.float32)
    if not shared:
        weight_UJ[:, :NUM_SHARED] = 0  # what stays is of one domain only
    of_story = weight_UJ[:, STORY_INTERESTS].sum(axis=1, keepdims=True)
    new_U = rng.random(num_users) < NEW_USER_SHARE
    return Users(
        topic_UJ=topic_UJ,
        latent_UJZ=latent_UJZ,
        weight_UJ=weight_UJ / of_story,
        taste_UE=_normal(rng, num_users, STYLE_WIDTH) / np.float32(2),
        source_taste_UO=np.asarray(preset.source_logit, np.float32) + 0.3 * _normal(rng, num_users, len(SOURCES)),
        bias_U=_normal(rng, num_users),
        activity_U=rng.beta(1.3, 2.3, num_users),
        volume_U=np.exp(0.6 * rng.standard_normal(num_users)),
        joined_U=np.where(new_U, rng.integers(0, num_days, num_users), -1),
        browses_U=rng.random(num_users) >= preset.productless_share,
    )


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape, dtype=np.float32)


def _draw_topics(preset: Preset, rng: np.random.Generator) -> Topics:
    num_topics = NUM_CATEGORIES * SUBTOPICS_PER_CATEGORY
    category_T = np.repeat(np.arange(NUM_CATEGORIES), SUBTOPICS_PER_CATEGORY)
    centres_TZ = CATEGORY_SPREAD * _normal(rng, NUM_CATEGORIES, LATENT_WIDTH)[category_T]
    centres_TZ += SUBTOPIC_SPREAD * _normal(rng, num_topics, LATENT_WIDTH)
    # the domains agree on what is popular only in part. Paper: Sec. II-C, Fig. 4 (its values are not in the text)
    common_C = rng.standard_normal(NUM_CATEGORIES)
    agreement, weights = preset.category_agreement, []
    for _ in range(2):
        own_C = rng.standard_normal(NUM_CATEGORIES)
        popularity_C = agreement * common_C + np.sqrt(1 - agreement**2) * own_C
        log_weight_T = preset.category_spread * popularity_C[category_T] + 0.5 * rng.standard_normal(num_topics)
        weights.append(np.exp(log_weight_T) / np.exp(log_weight_T).sum())
    return Topics(centres_TZ, category_T, weights[0], weights[1])


def _draw_products(
    topics: Topics,
    *,
    num_old: int,
    num_new: int,
    num_days: int,
    first_us: int,
    late_from: int | None,
    rng: np.random.Generator,
) -> Items:
    older_N = rng.integers(-90, -DAYS_OF_OLDER_STORIES, num_old)
    born_N = np.concatenate([np.sort(older_N), np.repeat(np.arange(num_days), num_new)])
    topic_N = _draw_topics_of_items(topics, born_N, weight_T=topics.product_weight_T, late_from=late_from, rng=rng)
    latent_NZ = topics.centres_TZ[topic_N] + ITEM_SPREAD * _normal(rng, len(born_N), LATENT_WIDTH)
    weight_N = np.exp(0.9 * rng.standard_normal(len(born_N)))
    return Items(topic_N, latent_NZ, born_N, _publication(born_N, first_us=first_us, rng=rng), weight_N)


def _draw_stories(
    topics: Topics,
    products: Items,
    *,
    num_new: int,
    source_supply: BySource,
    source_exposure: BySource,
    num_days: int,
    first_us: int,
    late_from: int | None,
    rng: np.random.Generator,
) -> tuple[Items, StoryTraits]:
    """Stories tell about a product that was there the day before; z is the product's plus a little."""
    born_N = np.repeat(np.arange(-DAYS_OF_OLDER_STORIES, num_days), num_new)
    num_stories = len(born_N)
    wish_N = _draw_topics_of_items(topics, born_N, weight_T=topics.story_weight_T, late_from=late_from, rng=rng)
    mounts_N3 = np.full((num_stories, 3), -1)
    num_mounts_N = rng.choice(4, num_stories, p=[0.12, 0.77, 0.08, 0.03])
    by_topic = np.argsort(products.topic_N, kind="stable")  # rows stay ordered by age within a topic
    starts_T = np.searchsorted(products.topic_N[by_topic], np.arange(len(topics.category_T)))
    for day in range(-DAYS_OF_OLDER_STORIES, num_days):
        older = products.born_N < day
        num_older_T = np.bincount(products.topic_N[older], minlength=len(topics.category_T))
        rows = np.flatnonzero(born_N == day)
        choice = starts_T[wish_N[rows], None] + (rng.random((len(rows), 3)) * num_older_T[wish_N[rows], None]).astype(
            np.int64
        )
        allowed = (num_older_T[wish_N[rows], None] > 0) & (np.arange(3) < num_mounts_N[rows, None])
        mounts_N3[rows] = np.where(allowed, by_topic[np.minimum(choice, len(by_topic) - 1)], -1)
    repeated = mounts_N3[:, 1:] == mounts_N3[:, :-1]
    mounts_N3[:, 1:][repeated | (mounts_N3[:, 2:] == mounts_N3[:, :1]) & np.array([False, True])] = -1

    mounted_N = mounts_N3[:, 0] >= 0
    latent_NZ = topics.centres_TZ[wish_N] + ITEM_SPREAD * _normal(rng, num_stories, LATENT_WIDTH)
    latent_NZ[mounted_N] = products.latent_NZ[mounts_N3[mounted_N, 0]]
    latent_NZ += np.where(mounted_N, MOUNT_SPREAD, 0.0)[:, None].astype(np.float32) * _normal(
        rng, num_stories, LATENT_WIDTH
    )
    source_N = rng.choice(len(SOURCES), num_stories, p=source_supply)
    quality_N = _normal(rng, num_stories)
    weight_N = np.exp(0.9 * rng.standard_normal(num_stories) + 0.2 * quality_N) * np.asarray(source_exposure)[source_N]
    published_us_N = _publication(born_N, first_us=first_us, rng=rng)
    traits = StoryTraits(_normal(rng, num_stories, STYLE_WIDTH), quality_N, source_N, mounts_N3)
    return Items(wish_N, latent_NZ, born_N, published_us_N, weight_N), traits


def _draw_topics_of_items(
    topics: Topics,
    born_N: Ints,
    *,
    weight_T: npt.NDArray[np.float64],
    late_from: int | None,
    rng: np.random.Generator,
) -> Ints:
    """A subtopic for every item; the last category's only from a day on, where one is named."""
    topic_N: Ints = rng.choice(len(weight_T), len(born_N), p=weight_T)
    if late_from is not None:
        early_N = (topics.category_T[topic_N] == NUM_CATEGORIES - 1) & (born_N < late_from)
        others_T = np.where(topics.category_T == NUM_CATEGORIES - 1, 0.0, weight_T)
        topic_N[early_N] = rng.choice(len(weight_T), early_N.sum(), p=others_T / others_T.sum())
        launched_N = (born_N >= late_from) & (rng.random(len(born_N)) < LAUNCHED_SHARE)
        late_T = weight_T - others_T
        topic_N[launched_N] = rng.choice(len(weight_T), launched_N.sum(), p=late_T / late_T.sum())
    return topic_N


def _publication(born_N: Ints, *, first_us: int, rng: np.random.Generator) -> Ints:
    """Most new items come in the night and the morning."""
    within_day_N = (rng.beta(1.2, 3.0, len(born_N)) * 86_400_000_000).astype(np.int64)
    return first_us + born_N * 86_400_000_000 + within_day_N
