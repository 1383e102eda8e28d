"""Every method and ablation that an experiment compares, by name.

Paper: Sec. IV-A (methods of Table IV), IV-E (rows of Table VI), and ablations beyond it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from storyrec.models.aden import Aden
from storyrec.models.bst import BehaviorSequenceTransformer
from storyrec.models.click_model import BOTH_DOMAINS, Ranker
from storyrec.models.cmf import CollectiveMatrixFactorization
from storyrec.models.conet import CollaborativeCrossNetwork
from storyrec.models.cross_bst import CrossDomainTransformer
from storyrec.models.dien import DeepInterestEvolution
from storyrec.models.din import DeepInterestNetwork
from storyrec.models.extractors import BOTH_MODALITIES, Modality
from storyrec.models.mf import MatrixFactorization
from storyrec.models.ncf import NeuralCollaborativeFiltering
from storyrec.models.pi_net import ParallelInformationSharing
from storyrec.models.thacil import Thacil
from storyrec.models.youtubenet import YouTubeNet
from storyrec.schema import Domain


@dataclass(frozen=True)
class Sizes:
    """What rankers are built from.

    Attributes:
        width: d of the item features.
        num_heads: attention heads; divides `width`.
        num_time_blocks: blocks before everything counts as older.
        sequence_length: the most clicks of a sequence.
        head_widths: hidden layers of the common head.
        dropout: share that is dropped in training.
        num_users: users with training instances.
        num_categories: categories; rows 1 to `num_categories` of a table, 0 = none.
    """

    width: int
    num_heads: int
    num_time_blocks: int
    sequence_length: int
    head_widths: tuple[int, ...]
    dropout: float
    num_users: int
    num_categories: int


Settings = Mapping[str, Mapping[str, Any]]
"""Settings by section of the configuration."""


@dataclass(frozen=True)
class Method:
    """A row of a table.

    Attributes:
        name: in tables, files and settings; unique.
        group: the rows it stands among.
        build: makes its ranker, initialised from torch's present random state.
        pretraining: whose extractors it starts from, a key of `PRETRAININGS`; None: fresh ones.
        modalities: what item features are summed from.
        tuned_as: the method whose tuned learning rate, L2 and epochs it takes; its own where empty.
        settings: what it sets otherwise, by section of the configuration.
    """

    name: str
    group: str
    build: Callable[[Sizes], Ranker]
    pretraining: str | None = None
    modalities: frozenset[Modality] = BOTH_MODALITIES
    tuned_as: str = ""
    settings: Settings = field(default_factory=dict)


_PAPER: Settings = {"dual": {"contrast": "hinge", "adversary": True, "squared_distance": False}}

PRETRAININGS: Mapping[str, Settings] = {
    "DUAL": _PAPER,
    "DUAL without adversary": {"dual": {**_PAPER["dual"], "adversary": False}},
    "DUAL with InfoNCE": {"dual": {**_PAPER["dual"], "contrast": "infonce"}},
    "DUAL with InfoNCE without adversary": {"dual": {"contrast": "infonce", "adversary": False}},
    "DUAL with squared distance": {"dual": {**_PAPER["dual"], "squared_distance": True}},
    "DUAL without word positions": {**_PAPER, "model": {"word_positions": False}},
}
"""Ways of pre-training, and what each sets otherwise."""


def aden(*, reads: frozenset[Domain] = BOTH_DOMAINS, gated: bool = False) -> Callable[[Sizes], Ranker]:
    """ADEN on both domains or one, with or without a gate."""
    return lambda sizes: Aden(
        width=sizes.width,
        num_heads=sizes.num_heads,
        num_time_blocks=sizes.num_time_blocks,
        head_widths=sizes.head_widths,
        dropout=sizes.dropout,
        reads=reads,
        gated=gated,
    )


def din(*, normalized: bool) -> Callable[[Sizes], Ranker]:
    """DIN with its weights normalised or not."""
    return lambda sizes: DeepInterestNetwork(
        width=sizes.width,
        num_time_blocks=sizes.num_time_blocks,
        attention_widths=(80, 40),
        head_widths=sizes.head_widths,
        dropout=sizes.dropout,
        normalized=normalized,
    )


def dien(*, auxiliary: bool) -> Callable[[Sizes], Ranker]:
    """DIEN with its auxiliary loss or without."""
    return lambda sizes: DeepInterestEvolution(
        width=sizes.width,
        num_time_blocks=sizes.num_time_blocks,
        head_widths=sizes.head_widths,
        dropout=sizes.dropout,
        auxiliary=auxiliary,
    )


def bst(*, appended: bool) -> Callable[[Sizes], Ranker]:
    """BST with the target in the sequence or not."""
    return lambda sizes: BehaviorSequenceTransformer(
        width=sizes.width,
        num_heads=8,
        hidden_width=4 * sizes.width,
        num_time_blocks=sizes.num_time_blocks,
        head_widths=sizes.head_widths,
        dropout=sizes.dropout,
        appended=appended,
    )


ADAPT = Method("ADAPT", "cross-domain", aden(), pretraining="DUAL")
WITHOUT_DUAL = Method("ADAPT w/o DUAL", "cross-domain", aden())

TABLE_4: tuple[Method, ...] = (
    Method("MF", "single-domain", lambda s: MatrixFactorization(num_users=s.num_users, width=s.width)),
    Method(
        "NCF",
        "single-domain",
        lambda s: NeuralCollaborativeFiltering(
            num_users=s.num_users, width=s.width, head_widths=s.head_widths, dropout=s.dropout
        ),
    ),
    Method(
        "YouTubeNet",
        "single-domain",
        lambda s: YouTubeNet(
            width=s.width, num_time_blocks=s.num_time_blocks, head_widths=s.head_widths, dropout=s.dropout
        ),
    ),
    Method(
        "THACIL",
        "single-domain",
        lambda s: Thacil(
            width=s.width,
            num_heads=s.num_heads,
            block_length=5,
            num_categories=s.num_categories,
            num_time_blocks=s.num_time_blocks,
            head_widths=s.head_widths,
            dropout=s.dropout,
        ),
    ),
    Method("DIN", "single-domain", din(normalized=True)),
    Method("DIEN", "single-domain", dien(auxiliary=False)),
    Method("BST", "single-domain", bst(appended=False)),
    Method("CMF", "cross-domain", lambda s: CollectiveMatrixFactorization(num_users=s.num_users, width=s.width)),
    Method(
        "CoNet",
        "cross-domain",
        lambda s: CollaborativeCrossNetwork(
            num_users=s.num_users, width=s.width, tower_widths=s.head_widths, dropout=s.dropout
        ),
    ),
    Method(
        "Cross-BST",
        "cross-domain",
        lambda s: CrossDomainTransformer(
            width=s.width,
            num_heads=8,
            hidden_width=4 * s.width,
            num_time_blocks=s.num_time_blocks,
            head_widths=s.head_widths,
            dropout=s.dropout,
        ),
    ),
    Method(
        "pi-Net",
        "cross-domain",
        lambda s: ParallelInformationSharing(
            width=s.width, num_time_blocks=s.num_time_blocks, head_widths=s.head_widths, dropout=s.dropout
        ),
    ),
    ADAPT,
)
"""Sec. IV-D, in the paper's order."""

ORIGINALS: tuple[Method, ...] = (
    Method("DIN (original)", "as in the original papers", din(normalized=False), tuned_as="DIN"),
    Method("DIEN (original)", "as in the original papers", dien(auxiliary=True), tuned_as="DIEN"),
    Method("BST (original)", "as in the original papers", bst(appended=True), tuned_as="BST"),
)
"""Methods of Table IV as their own papers have them, where the table's versions differ."""

_SINGLE = {"storytelling": frozenset({Domain.STORY}), "product": frozenset({Domain.PRODUCT})}
_MODALITIES = {
    "V": frozenset({Modality.VISUAL}),
    "T": frozenset({Modality.TEXTUAL}),
    "V+T": BOTH_MODALITIES,
}
TABLE_6: tuple[Method, ...] = (
    *(
        Method(
            f"{letters} ({name})",
            f"{name} domain",
            aden(reads=reads),
            modalities=modalities,
            tuned_as=WITHOUT_DUAL.name,
        )
        for name, reads in _SINGLE.items()
        for letters, modalities in _MODALITIES.items()
    ),
    *(
        Method(
            f"{letters} {'w.' if pretraining else 'w/o'} DUAL",
            "cross-domain",
            aden(),
            pretraining=pretraining,
            modalities=_MODALITIES[letters],
            tuned_as=ADAPT.name if pretraining else WITHOUT_DUAL.name,
        )
        for letters in ("V", "T")
        for pretraining in (None, "DUAL")
    ),
    WITHOUT_DUAL,
    ADAPT,
)
"""Sec. IV-E, in the paper's order."""

BEYOND: tuple[Method, ...] = (
    ADAPT,
    Method("domain gating", "beyond the paper", aden(gated=True), pretraining="DUAL", tuned_as=ADAPT.name),
    *(
        Method(name, "beyond the paper", aden(), pretraining=name, tuned_as=ADAPT.name, settings=settings)
        for name, settings in PRETRAININGS.items()
        if name != "DUAL"
    ),
    Method(
        "frozen extractors",
        "beyond the paper",
        aden(),
        pretraining="DUAL",
        tuned_as=ADAPT.name,
        settings={"aden": {"freeze_extractors": True}},
    ),
)
"""Switches of ADAPT itself."""

METHODS: Mapping[str, Method] = {method.name: method for method in (*TABLE_4, *ORIGINALS, *TABLE_6, *BEYOND)}
"""All of them, by name."""
