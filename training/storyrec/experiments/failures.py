"""Where ADAPT is most wrong, and what each domain alone would have said.

Paper: Sec. IV-H, Table IX. Suffix: B = held-out impressions.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import numpy as np
import numpy.typing as npt

from storyrec.data.catalog import Catalog
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError
from storyrec.experiments.fit import SCORES, run_folder
from storyrec.experiments.methods import ADAPT, WITHOUT_DUAL
from storyrec.explain import Mounted, mounted_products
from storyrec.features.sequences import ClickLog
from storyrec.storage import write_file, write_folder

DATA, PAGE = "failures.json", "failures.html"
STORY_ONLY, PRODUCT_ONLY = "V+T (storytelling)", "V+T (product)"
METHODS = (STORY_ONLY, PRODUCT_ONLY, WITHOUT_DUAL.name, ADAPT.name)
ROWS = (
    ("ADAPT_s", STORY_ONLY, None),
    ("ADAPT_p", PRODUCT_ONLY, None),
    ("ADAPT", WITHOUT_DUAL.name, ADAPT.name),
)
"""Table IX: a row's name, and the methods of its columns without and with DUAL; None: no row of Table VI."""
NUM_LAST_CLICKS = 5

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Failure:
    """One impression far from its label.

    Attributes:
        impression: number among the held-out ones; `storyrec explain --impression` takes it.
        user_id, story_id, title, clicked: the impression.
        mounted: products of the story.
        scores: click probability by method.
        story_clicks, product_clicks: titles of the user's last clicks before, newest first.
    """

    impression: int
    user_id: int
    story_id: int
    title: str
    clicked: bool
    mounted: tuple[Mounted, ...]
    scores: Mapping[str, float]
    story_clicks: tuple[str, ...]
    product_clicks: tuple[str, ...]


@dataclass(frozen=True)
class Blame:
    """How often something else was nearer to the label than a cross-domain model, shares in [0, 1].

    Attributes:
        model: the cross-domain model.
        label: which impressions: "all", "clicked" or "not clicked".
        num_impressions: how many these are; without any the shares are None.
        story_nearer: the story domain alone was nearer (failure case 1).
        story_nearer_product_farther: and the product domain alone was farther: it pulled the model away.
        product_nearer: the product domain alone was nearer.
    """

    model: str
    label: str
    num_impressions: int
    story_nearer: float | None
    story_nearer_product_farther: float | None
    product_nearer: float | None


@dataclass(frozen=True)
class Failures:
    """The worst failures of ADAPT in one run.

    Attributes:
        seed: of the runs.
        num_impressions: held-out impressions looked at.
        dual_farther: share of them where ADAPT is farther from the label than ADAPT without DUAL (failure case 2).
        blame: over all impressions, by model and label.
        false_negatives: clicked, lowest click probability first.
        false_positives: not clicked, highest click probability first.
    """

    seed: int
    num_impressions: int
    dual_farther: float
    blame: tuple[Blame, ...]
    false_negatives: tuple[Failure, ...]
    false_positives: tuple[Failure, ...]


def write_failures(root: Path, *, data: Dataset, seed: int, out: Path, count: int = 10) -> Failures:
    """Find the worst failures and write failures.json and failures.html.

    Args:
        root: folder of the experiments, with the runs of Table VI.
        data: the dataset they ran on.
        seed: whose runs.
        out: folder to write, replaced whole.
        count: false negatives and as many false positives.

    Raises:
        DataError: a run is missing or of another dataset.
    """
    scores = {method: read_scores(root, method, seed=seed, data=data) for method in METHODS}
    clicked_B = data.holdout.clicked_B
    distances = {method: distance(scores_B, clicked_B) for method, scores_B in scores.items()}
    worst_B = np.argsort(-distances[ADAPT.name], kind="stable")
    failures = Failures(
        seed=seed,
        num_impressions=len(clicked_B),
        dual_farther=float((distances[ADAPT.name] > distances[WITHOUT_DUAL.name]).mean()),
        blame=tuple(
            assign_blame(distances, model=model, label=label, among_B=among_B)
            for model in (WITHOUT_DUAL.name, ADAPT.name)
            for label, among_B in (
                ("all", np.ones_like(clicked_B)),
                ("clicked", clicked_B),
                ("not clicked", ~clicked_B),
            )
        ),
        false_negatives=tuple(
            _failure(data, number, scores) for number in worst_B[clicked_B[worst_B]][:count].tolist()
        ),
        false_positives=tuple(
            _failure(data, number, scores) for number in worst_B[~clicked_B[worst_B]][:count].tolist()
        ),
    )
    with write_folder(out) as folder:
        write_file(folder / DATA, json.dumps(asdict(failures), indent=1, ensure_ascii=False).encode())
        write_file(folder / PAGE, render_page(failures).encode())
    return failures


def read_scores(root: Path, method: str, *, seed: int, data: Dataset) -> Floats:
    """A run's click probabilities of the held-out impressions, [B].

    Raises:
        DataError: the run is missing or of another dataset.
    """
    path = run_folder(root, method, seed=seed) / SCORES
    try:
        scores_B = np.load(path, allow_pickle=False).astype(np.float64)
    except (OSError, ValueError) as error:
        raise DataError(
            f"there is no run of '{method}' with seed {seed}",
            expected="finished runs of Table VI",
            where=str(path),
            remedy="run `storyrec experiment table6 DATA` first, into the same folder and with enough seeds",
        ) from error
    if scores_B.shape != (len(data.holdout),) or not len(scores_B) or not np.isfinite(scores_B).all():
        raise DataError(
            f"the scores of '{method}' are not those of this dataset's held-out impressions",
            expected=f"{len(data.holdout)} finite click probabilities, at least one",
            where=str(path),
            remedy="run `storyrec experiment table6 DATA` into a new folder",
        )
    return scores_B


def distance(scores_B: Floats, clicked_B: Bools) -> Floats:
    """How far click probabilities are from the labels, [B] in [0, 1]."""
    return np.abs(scores_B - clicked_B)


def assign_blame(distances: Mapping[str, Floats], *, model: str, label: str, among_B: Bools) -> Blame:
    """How often one domain alone was nearer to the label than a model that reads both.

    Args:
        distances: from the label, by method, [B].
        model: the method that reads both domains.
        label: names the impressions.
        among_B: which impressions count, [B].
    """
    both_B, story_B, product_B = (distances[method][among_B] for method in (model, STORY_ONLY, PRODUCT_ONLY))

    def share(is_so_B: Bools) -> float | None:
        return float(is_so_B.mean()) if len(is_so_B) else None

    return Blame(
        model=model,
        label=label,
        num_impressions=len(both_B),
        story_nearer=share(story_B < both_B),
        story_nearer_product_farther=share((story_B < both_B) & (product_B > both_B)),
        product_nearer=share(product_B < both_B),
    )


def render_page(failures: Failures) -> str:
    """One self-contained HTML page."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("storyrec") / "templates" / "failures.html.j2").read_text("utf-8"))
    return template.render(failures=failures, rows=ROWS)


def _failure(data: Dataset, number: int, scores: Mapping[str, Floats]) -> Failure:
    holdout = data.holdout
    row = int(holdout.story_rows_B[number])
    return Failure(
        impression=number,
        user_id=int(holdout.user_ids_B[number]),
        story_id=int(data.stories.item_ids_N[row]),
        title=data.stories.titles[row],
        clicked=bool(holdout.clicked_B[number]),
        mounted=mounted_products(data, row),
        scores={method: float(scores_B[number]) for method, scores_B in scores.items()},
        story_clicks=_last_titles(
            data.story_clicks,
            data.stories,
            start=int(holdout.story_start_B[number]),
            stop=int(holdout.story_stop_B[number]),
        ),
        product_clicks=_last_titles(
            data.product_clicks,
            data.products,
            start=int(holdout.product_start_B[number]),
            stop=int(holdout.product_stop_B[number]),
        ),
    )


def _last_titles(clicks: ClickLog, catalog: Catalog, *, start: int, stop: int) -> tuple[str, ...]:
    item_ids = clicks.item_ids_C[max(start, stop - NUM_LAST_CLICKS) : stop][::-1]
    rows = catalog.rows(item_ids)
    return tuple(catalog.titles[row] or f"id {item}" for row, item in zip(rows, item_ids, strict=True))
