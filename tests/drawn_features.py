"""Features of impressions with sequences of every length, drawn at random.

from drawn_features import WIDTH, NUM_BLOCKS, NUM_USERS, NUM_CATEGORIES, drawn_features, take
"""

from dataclasses import fields, replace

import torch

from storyrec.models.click_model import Features

WIDTH, LENGTH, NUM_BLOCKS, NUM_USERS, NUM_CATEGORIES = 16, 15, 6, 5, 3
NUM_STORY_CLICKS = (15, 1, 0, 3, 0, 7)
NUM_PRODUCT_CLICKS = (2, 15, 4, 0, 0, 6)


def drawn_features(seed: int = 0) -> Features:
    """Six impressions; one has no story click, one no product click, one neither."""
    generator = torch.Generator().manual_seed(seed)
    num_rows = len(NUM_STORY_CLICKS)

    def sequence(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        blocks_BL = torch.randint(1, NUM_BLOCKS + 2, (num_rows, LENGTH), generator=generator)
        blocks_BL = blocks_BL.sort(dim=1, descending=True).values  # the older, the larger
        blocks_BL[torch.arange(LENGTH) >= torch.tensor(lengths).unsqueeze(1)] = 0
        return torch.randn(num_rows, LENGTH, WIDTH, generator=generator), blocks_BL

    story_BSD, story_blocks_BS = sequence(NUM_STORY_CLICKS)
    product_BPD, product_blocks_BP = sequence(NUM_PRODUCT_CLICKS)
    categories_BS = torch.randint(0, NUM_CATEGORIES + 1, (num_rows, LENGTH), generator=generator)
    return Features(
        target_BD=torch.randn(num_rows, WIDTH, generator=generator),
        story_BSD=story_BSD,
        story_blocks_BS=story_blocks_BS,
        product_BPD=product_BPD,
        product_blocks_BP=product_blocks_BP,
        user_rows_B=torch.tensor([1, 2, 3, 4, 5, 0]),
        target_categories_B=torch.tensor([1, 0, 2, 3, 1, 2]),
        story_categories_BS=torch.where(story_blocks_BS > 0, categories_BS, 0),
    )


def take(features: Features, rows: torch.Tensor | list[int]) -> Features:
    """Some of the impressions, in this order."""
    parts = [part.name for part in fields(Features) if part.name != "first_B"]
    return replace(features, first_B=None, **{name: getattr(features, name)[rows] for name in parts})
