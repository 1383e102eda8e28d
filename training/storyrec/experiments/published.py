"""The figures that the paper published, to stand beside ours; the methods' names are those of `methods`.

Paper: Tables IV, V, VI and VII, and Sec. IV-D for the times. SRD-1 and SRD-2 are its datasets. They are
figures of other data than ours: orders and distances can be compared, heights cannot.
"""

from collections.abc import Mapping

Figures = Mapping[str, Mapping[str, float]]
"""By method, then by metric."""

DATASETS = ("SRD-1", "SRD-2")


def _by_dataset(names: tuple[str, str, str], rows: Mapping[str, tuple[float, ...]]) -> Mapping[str, Figures]:
    """From rows as they are printed, three figures of SRD-1 and three of SRD-2."""
    return {
        dataset: {method: dict(zip(names, row[start : start + 3], strict=True)) for method, row in rows.items()}
        for dataset, start in zip(DATASETS, (0, 3), strict=True)
    }


RANKING = ("per_user_auc", "hr_at_5", "ndcg_at_5")

TABLE_4: Mapping[str, Figures] = _by_dataset(
    RANKING,
    {
        "MF": (0.5738, 0.4486, 0.2778, 0.5756, 0.4395, 0.2719),
        "NCF": (0.5856, 0.4646, 0.2877, 0.5926, 0.4605, 0.2853),
        "YouTubeNet": (0.6045, 0.4895, 0.3049, 0.6216, 0.5022, 0.3131),
        "THACIL": (0.6105, 0.5018, 0.3130, 0.6256, 0.5063, 0.3165),
        "DIN": (0.6131, 0.5023, 0.3133, 0.6296, 0.5141, 0.3213),
        "DIEN": (0.6152, 0.5049, 0.3153, 0.6319, 0.5172, 0.3235),
        "BST": (0.6180, 0.5095, 0.3189, 0.6370, 0.5245, 0.3281),
        "CMF": (0.5762, 0.4535, 0.2797, 0.5801, 0.4436, 0.2747),
        "CoNet": (0.5827, 0.4616, 0.2866, 0.5895, 0.4570, 0.2831),
        "Cross-BST": (0.6329, 0.5309, 0.3327, 0.6605, 0.5580, 0.3519),
        "pi-Net": (0.6426, 0.5478, 0.3432, 0.6665, 0.5696, 0.3597),
        "ADAPT": (0.6499, 0.5573, 0.3506, 0.6742, 0.5815, 0.3684),
    },
)
"""Methods, by dataset."""

TABLE_6: Mapping[str, Figures] = _by_dataset(
    RANKING,
    {
        "V (storytelling)": (0.6139, 0.5034, 0.3144, 0.6328, 0.5180, 0.3242),
        "T (storytelling)": (0.6131, 0.5025, 0.3133, 0.6330, 0.5191, 0.3247),
        "V+T (storytelling)": (0.6197, 0.5120, 0.3198, 0.6373, 0.5244, 0.3288),
        "V (product)": (0.6003, 0.4864, 0.3026, 0.6241, 0.5036, 0.3149),
        "T (product)": (0.5984, 0.4818, 0.2992, 0.6227, 0.5040, 0.3148),
        "V+T (product)": (0.6069, 0.4932, 0.3072, 0.6306, 0.5128, 0.3206),
        "V w/o DUAL": (0.6295, 0.5261, 0.3290, 0.6555, 0.5510, 0.3469),
        "V w. DUAL": (0.6391, 0.5413, 0.3394, 0.6608, 0.5599, 0.3535),
        "T w/o DUAL": (0.6265, 0.5247, 0.3282, 0.6523, 0.5465, 0.3442),
        "T w. DUAL": (0.6429, 0.5473, 0.3434, 0.6677, 0.5708, 0.3607),
        "ADAPT w/o DUAL": (0.6360, 0.5365, 0.3359, 0.6642, 0.5678, 0.3587),
        "ADAPT": (0.6499, 0.5573, 0.3506, 0.6742, 0.5815, 0.3684),
    },
)
"""Ablations, by dataset."""

TABLE_7: Mapping[str, Figures] = _by_dataset(
    ("auc_top_500", "recall_at_5", "ndcg_at_5"),
    {
        "w/o DUAL": (0.9055, 0.2020, 0.2698, 0.9127, 0.2637, 0.2939),
        "w. DUAL": (0.9196, 0.3294, 0.3221, 0.9249, 0.3730, 0.3405),
    },
)
"""Stories recommended to products, by dataset. The paper's "HR@5" is below its NDCG@5, so it is a recall."""

TABLE_5: Figures = {
    "ADAPT": {
        "training_all": 69.07,
        "training_sequence": 2.08,
        "inference_all": 38.97,
        "inference_sequence": 0.73,
    },
    "pi-Net": {
        "training_all": 80.53,
        "training_sequence": 14.44,
        "inference_all": 41.78,
        "inference_sequence": 4.22,
    },
}
"""Millions of floating-point operations; "sequence" is the sequence encoder alone."""

TRAINING_DAYS: Mapping[str, float] = {"ADAPT": 1.8, "pi-Net": 5.8}
"""What training on SRD-2 took on one GTX 1080 Ti."""

EXPERIMENTS: Mapping[str, Mapping[str, Figures]] = {
    "table4": TABLE_4,
    "table6": TABLE_6,
    "table5": {"the authors": TABLE_5},
}
"""What stands beside an experiment's rows, by the experiment's name and the data."""
