"""The extractors at several points of their training: the rows of Table VII, and what the table says of them.

Before training, after DUAL in one of its forms, after the click model was fine-tuned with them. Paper: Sec. IV-G.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ttest_rel

from storyrec.config import Config, update_config
from storyrec.errors import ModelError
from storyrec.experiments.fit import RESULT, WEIGHTS, pretrained_folder, run_folder
from storyrec.experiments.methods import ADAPT, PRETRAININGS, WITHOUT_DUAL
from storyrec.experiments.results import Run
from storyrec.export import load_trained_extractors
from storyrec.models.extractors import Extractors
from storyrec.pretrain import DUAL_WEIGHTS, TRAINING_REPORT, build_extractors

DECIDING = "unseen_hit_at_5"
"""What the conclusion goes by: training saw neither these stories nor any other story of their products."""
SIGNIFICANCE = 0.01

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """A row of the table.

    Attributes:
        name: in the table and in files.
        group: the rows it stands among.
        origin: fresh extractors; those of a pre-training; those of a method's run, fine-tuned on clicks.
        source: the key of `PRETRAININGS`, or the method's name.
        command: the experiment that leaves its weights behind.
    """

    name: str
    group: str
    origin: Literal["untrained", "pretrained", "fine-tuned"]
    source: str = ""
    command: str = ""

    def weights(self, root: Path, *, seed: int) -> Path | None:
        """The file of its weights; None where nothing was trained."""
        if self.origin == "pretrained":
            return pretrained_folder(root, self.source, seed=seed) / DUAL_WEIGHTS
        return run_folder(root, self.source, seed=seed) / WEIGHTS if self.origin == "fine-tuned" else None

    def report(self, root: Path, *, seed: int) -> Path | None:
        """The file that says how it was trained; None where nothing was trained."""
        if self.origin == "pretrained":
            return pretrained_folder(root, self.source, seed=seed) / TRAINING_REPORT
        return run_folder(root, self.source, seed=seed) / RESULT if self.origin == "fine-tuned" else None

    def extractors(self, root: Path, *, config: Config, num_words: int, seed: int) -> Extractors:
        """These extractors, in evaluation mode.

        Args:
            root: folder of the experiments.
            config: their settings; sections `model` and `features`.
            num_words: of the vocabulary.
            seed: whose.

        Raises:
            ModelError: the weights are missing, damaged or do not fit.
        """
        settings = update_config(config, PRETRAININGS[self.source] if self.origin == "pretrained" else {})
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            extractors = build_extractors(settings, num_words=num_words).eval()
        path = self.weights(root, seed=seed)
        if path is None:
            return extractors
        if not path.exists():
            raise ModelError(
                f"the extractors of '{self.name}', seed {seed}, are missing",
                expected=f"the weights of '{self.source}' in the same folder of experiments",
                where=str(path),
                remedy=f"run `storyrec experiment {self.command} DATA` with the same --out and --seeds first",
            )
        return load_trained_extractors(extractors, path)


FINE_TUNED = Snapshot("w. DUAL, fine-tuned", "fine-tuned on clicks", "fine-tuned", ADAPT.name, "table6")
PRETRAINED = Snapshot("w. DUAL, as pre-trained", "as pre-trained", "pretrained", "DUAL", "table6")
WITHOUT_ADVERSARY, WITH_INFONCE, WITH_INFONCE_ALONE, WITH_SQUARES = (
    Snapshot(name, "as pre-trained", "pretrained", name, "beyond")
    for name in (
        "DUAL without adversary",
        "DUAL with InfoNCE",
        "DUAL with InfoNCE without adversary",
        "DUAL with squared distance",
    )
)

TABLE_7: tuple[Snapshot, ...] = (
    Snapshot("untrained", "untrained", "untrained"),
    Snapshot("w/o DUAL", "fine-tuned on clicks", "fine-tuned", WITHOUT_DUAL.name, "table6"),
    FINE_TUNED,
    PRETRAINED,
    WITHOUT_ADVERSARY,
    WITH_INFONCE,
    WITH_INFONCE_ALONE,
    WITH_SQUARES,
)
"""The paper's rows are the two fine-tuned ones."""


def conclude(runs: Sequence[Run]) -> list[str]:
    """What the table says, in plain words: which snapshot matches best, what fine-tuning and the adversary do.

    Tests are paired over the seeds.
    """
    values = {row: np.array([run.metrics[DECIDING] for run in runs if run.method == row.name]) for row in TABLE_7}
    values = {row: found for row, found in values.items() if len(found) and np.isfinite(found).all()}
    if len(values) < 2:
        return ["No new story mounts a product that no earlier story mounts: no snapshot can be called best."]
    best, second = sorted(values, key=lambda row: -float(values[row].mean()))[:2]
    lines = [
        f"Of products whose stories are all new, so that training saw none of them, '{best.name}' finds a story in "
        f"the nearest 5 most often: {values[best].mean():.4f}. Second is '{second.name}' with "
        f"{values[second].mean():.4f}; {_test(values[best], values[second])}."
    ]
    for cause, without, with_it in (
        ("Fine-tuning on clicks", PRETRAINED, FINE_TUNED),
        ("The adversary of DUAL", WITHOUT_ADVERSARY, PRETRAINED),
    ):
        if without in values and with_it in values:
            before, after = values[without], values[with_it]
            change = float(after.mean() - before.mean())
            verb = "raises" if change > 0 else "lowers" if change < 0 else "does not change"
            lines.append(
                f"{cause} {verb} that share: {before.mean():.4f} without, {after.mean():.4f} with; "
                f"{_test(before, after)}."
            )
    return lines


def _test(one: Floats, other: Floats) -> str:
    """What a t-test paired over the seeds says."""
    differences = one - other
    if len(differences) < 2:
        return "one seed, so no test"
    if np.ptp(differences) == 0:  # the test divides by their spread
        return f"the same difference with each of {len(differences)} seeds"
    p = float(ttest_rel(one, other).pvalue)
    verdict = "more than chance" if p < SIGNIFICANCE else "chance cannot be ruled out"
    return f"{verdict} (p = {p:.2g}, t-test paired over {len(differences)} seeds)"
