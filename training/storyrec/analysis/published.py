"""What the paper says of its data in Section II, to stand beside ours.

Paper: Tables I, II and III; the pictures of Figs. 1, 3 and 4 have no numbers in the text. SRD-1 is of
27 and 28 November 2019, SRD-2 of 30 and 31 December 2019. The test users are a sample, about a quarter of
the training users.
"""

from collections.abc import Mapping

TABLE_1: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "SRD-1": {
        "training": {
            "instances": 5_083_833,
            "users": 266_666,
            "sequences": 3_796_955,
            "stories": 495_280,
            "products": 6_496_553,
        },
        "test": {
            "instances": 4_776_319,
            "users": 73_535,
            "sequences": 1_218_539,
            "stories": 375_164,
            "products": 2_894_920,
        },
    },
    "SRD-2": {
        "training": {
            "instances": 23_321_211,
            "users": 1_230_454,
            "sequences": 17_088_337,
            "stories": 805_436,
            "products": 15_285_378,
        },
        "test": {
            "instances": 19_174_368,
            "users": 292_131,
            "sequences": 4_750_474,
            "stories": 504_594,
            "products": 6_626_009,
        },
    },
}
"""Distinct things, by dataset and split."""

TABLE_2: Mapping[str, tuple[int, ...]] = {
    "SRD-1": (435_997, 191_482, 114_298, 114_403, 185_693),
    "SRD-2": (368_106, 227_038, 157_221, 178_617, 298_509),
}
"""Pairs in each bin of title similarity, by dataset."""

TABLE_3: Mapping[str, Mapping[str, float]] = {
    "SRD-1": {
        "story_length": 16.10,
        "product_length": 19.88,
        "story_categories": 8.17,
        "product_categories": 6.83,
        "overlap": 2.76,
    },
    "SRD-2": {
        "story_length": 16.16,
        "product_length": 19.90,
        "story_categories": 8.31,
        "product_categories": 7.03,
        "overlap": 2.77,
    },
}
"""Means over the sequences, by dataset."""

FIGURE_3: Mapping[str, str] = {
    "story": "the last 20 “can cover the recent seven days”",
    "product": "the last 20 “almost all occurred in the last one day”",
}
"""What the text says of the time gaps, by domain."""
