"""What a simulated marketplace is calibrated to, by name. Paper: Tables I and II."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

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
        missing_cover_share: items without a cover.
        source_logit: how readily stories of each source are clicked, in the order of `SOURCES`; invented.
        language: "zh": words are two Chinese characters each, without spaces.
    """

    says: str
    num_users: int
    format: int = 1
    old_products_per_user: float = 9.0
    new_products_per_user: float = 0.2
    base_new_stories: int = 300
    new_stories_per_user: float = 0.24
    title_shares: tuple[float, float, float, float, float] = (0.388, 0.1735, 0.109, 0.124, 0.2055)
    missing_cover_share: float = 0.01
    source_logit: BySource = (0.20, -0.05, 0.15, 0.05, -0.15, -0.30)
    language: Literal["en", "zh"] = "en"

    def num_old_products(self, num_users: int) -> int:
        """Products from the start, for so many users."""
        return max(900, int(self.old_products_per_user * num_users + 1e-6))

    def num_new_products(self, num_users: int) -> int:
        """New products of a day."""
        return max(20, int(self.new_products_per_user * num_users + 1e-6))

    def num_new_stories(self, num_users: int) -> int:
        """New stories of a day."""
        return self.base_new_stories + int(self.new_stories_per_user * num_users + 1e-6)


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "laptop": Preset(
            "like SRD-1, with more stories a user than SRD-1 has, so that few users still see many", 5_000
        ),
        "srd-1": Preset("SRD-1 at its size", 690_000, new_stories_per_user=0.09, language="zh"),
        "srd-2": Preset(
            "SRD-2 at its size",
            3_150_000,
            old_products_per_user=4.5,
            new_products_per_user=0.1,
            new_stories_per_user=0.03,
            title_shares=(0.2713, 0.1706, 0.1242, 0.1595, 0.2744),
            language="zh",
        ),
    }
)
"""By name; "laptop" is the one whose marketplaces the docs report."""
