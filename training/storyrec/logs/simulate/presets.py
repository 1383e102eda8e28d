"""What a simulated marketplace is calibrated to, by name. Paper: Tables I and II."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

CALIBRATED_USERS = 12_000
"""What the Taobao-like presets were calibrated with."""

BySource = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Preset:
    """Proportions of a marketplace.

    Attributes:
        says: what it is like, in a sentence.
        num_users: users of the whole marketplace; about four in ten come on a day.
        format: raised whenever the same settings give other logs.
        old_products_per_user: products that are there from the start.
        new_products_per_user: products that are new each day.
        base_new_stories, new_stories_per_user: stories that are new each day, and on each of the seven days before.
        title_shares: title similarity of a story and its first mounted product, in five bins. Paper: Table II. Pairs
            with a second or third mounted product, whose words were not copied, are nearly all in the lower bins, so
            the first ones are drawn from a little above the table.
        has_drawn_lengths: whether the lengths of titles are drawn: of products near a limit with a tail of short ones,
            of stories log-normal; otherwise a product has nine keywords and a story's words are counted by its kind.
        clickbait_share: stories whose title is bait. Paper: Table IX, case 2.
        new_word_share: titles with a brand or model that nobody wrote before its day, a quarter as many words.
        missing_cover_share: items without a cover.
        changed_share: stories, and products that a story mounts, that get another title and cover on a later day: so
            many of all earlier ones each day.
        category_spread: how much categories differ in popularity: standard deviation of its logarithm.
        category_agreement: correlation of that popularity between the domains. Paper: Fig. 4.
        mean_requests: lists of stories that a usual user asks for on an active day.
        scroll_seconds: between a list's stories, on average; 0: all are shown at once.
        repeat_share: impressions of a story that the user saw earlier that day.
        first_product_clicks: before a day's first list; some 20 keep a sequence within a day. Paper: Fig. 3.
        mean_glances, glance_clicks: how often a usual user looks at products beside the stories, and clicks at a time.
        productless_share: users who never click a product.
        hour_weights: how many visits begin in each hour; none before 1 h, so that what precedes it is of the same day.
        hour_logit: added to every logit of an hour.
        size_logit: added to every logit for each time that the users doubled since CALIBRATED_USERS: among more stories
            a list finds more of what its user likes.
        source_supply: new stories by source, in the order of `SOURCES`; invented, as are the next two, for the paper's
            Fig. 1 has no numbers.
        source_exposure: how often a source's story is shown, relative to others.
        source_logit: how readily stories of each source are clicked, by source.
        language: "zh": words are two Chinese characters each, without spaces.
        latin_share: brands and sizes that stay as they are in Chinese titles; new words and fashion then do too.
    """

    says: str
    num_users: int
    format: int = 1
    old_products_per_user: float = 9.0
    new_products_per_user: float = 0.2
    base_new_stories: int = 300
    new_stories_per_user: float = 0.24
    title_shares: tuple[float, float, float, float, float] = (0.388, 0.1735, 0.109, 0.124, 0.2055)
    has_drawn_lengths: bool = False
    clickbait_share: float = 0.05
    new_word_share: float = 0.0
    missing_cover_share: float = 0.01
    changed_share: float = 0.0
    category_spread: float = 0.7
    category_agreement: float = 0.6
    mean_requests: float = 20.0
    scroll_seconds: float = 0.0
    repeat_share: float = 0.0
    first_product_clicks: float = 24.0
    mean_glances: float = 22.0
    glance_clicks: float = 1.0
    productless_share: float = 0.0
    hour_weights: tuple[int, ...] = (0, 0, 0, 0, 0, 0, 1, 2, 3, 3, 3, 3, 4, 4, 3, 3, 3, 4, 5, 6, 7, 7, 5, 0)
    hour_logit: tuple[float, ...] = (0.0,) * 24
    size_logit: float = 0.0
    source_supply: BySource = (0.14, 0.10, 0.04, 0.46, 0.20, 0.06)
    source_exposure: BySource = (1.6, 1.1, 1.3, 0.8, 0.9, 0.4)
    source_logit: BySource = (0.20, -0.05, 0.15, 0.05, -0.15, -0.30)
    language: Literal["en", "zh"] = "en"
    latin_share: float = 0.0

    def at(self, num_users: int) -> "Preset":
        """The preset as it is for so many users."""
        shift = self.size_logit * math.log2(num_users / CALIBRATED_USERS)
        return replace(self, hour_logit=tuple(logit + shift for logit in self.hour_logit))

    def num_old_products(self, num_users: int) -> int:
        """Products from the start, for so many users."""
        return max(900, int(self.old_products_per_user * num_users + 1e-6))

    def num_new_products(self, num_users: int) -> int:
        """New products of a day."""
        return max(20, int(self.new_products_per_user * num_users + 1e-6))

    def num_new_stories(self, num_users: int) -> int:
        """New stories of a day."""
        return self.base_new_stories + int(self.new_stories_per_user * num_users + 1e-6)


# by hour, UTC as all logs: few in the night, most in the evening, who are also the readiest to click
_VISITS = (0, 8, 4, 2, 2, 2, 5, 10, 14, 17, 20, 22, 28, 27, 25, 26, 30, 36, 48, 72, 110, 140, 150, 110)
_READINESS = tuple(round(0.015 + 0.22 * math.cos((hour - 21) / 12 * math.pi), 2) for hour in range(24))

_LIKE_TAOBAO: dict[str, Any] = {
    "format": 3,
    "base_new_stories": 1_000,
    "has_drawn_lengths": True,
    "clickbait_share": 0.04,
    "new_word_share": 0.08,
    "missing_cover_share": 0.015,
    "changed_share": 0.003,
    "category_spread": 0.42,
    "category_agreement": 0.0,
    "mean_requests": 18.4,
    "scroll_seconds": 4.0,
    "repeat_share": 0.03,
    "first_product_clicks": 24.0,
    "mean_glances": 6.5,
    "glance_clicks": 3.6,
    "productless_share": 0.004,
    "hour_weights": _VISITS,
    "hour_logit": _READINESS,
    "size_logit": -0.026,
    "source_supply": (0.20, 0.12, 0.05, 0.34, 0.23, 0.06),
    "source_exposure": (1.8, 1.2, 1.6, 0.6, 0.7, 0.3),
    "source_logit": (0.30, -0.10, 0.25, 0.05, -0.35, -0.50),
    "language": "zh",
    "latin_share": 0.3,
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "laptop": Preset(
            "like SRD-1, with more stories a user than SRD-1 has, so that few users still see many", 5_000
        ),
        "srd-1": Preset(
            "SRD-1 at its size",
            690_000,
            old_products_per_user=12.0,
            new_stories_per_user=0.055,
            title_shares=(0.3555, 0.1845, 0.1115, 0.1215, 0.227),
            **_LIKE_TAOBAO,
        ),
        "srd-2": Preset(
            "SRD-2 at its size",
            3_150_000,
            old_products_per_user=4.5,
            new_products_per_user=0.1,
            new_stories_per_user=0.016,
            title_shares=(0.2287, 0.1745, 0.123, 0.1615, 0.3123),
            **_LIKE_TAOBAO,
        ),
    }
)
"""By name; "laptop" is the one whose marketplaces the docs report."""
