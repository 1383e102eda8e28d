"""Why a story got its click probability: how much the target attends to each past click.

Paper: Sec. IV-H, Fig. 6. Suffixes: B batch (one impression), L sequence, H heads, D width, N items.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from storyrec.bundle import ADEN, Bundle
from storyrec.config import Config
from storyrec.data.batches import HOUR_US, Batch, make_batch
from storyrec.data.build import build_dataset
from storyrec.data.catalog import Catalog
from storyrec.data.dataset import Dataset
from storyrec.data.instances import Instances
from storyrec.errors import DataError, ModelError
from storyrec.examples import deployed_bundle
from storyrec.features.sequences import ClickLog
from storyrec.finetune import build_aden
from storyrec.models.aden import Aden
from storyrec.models.click_model import Features
from storyrec.schema import Domain
from storyrec.storage import write_file, write_folder
from storyrec.warmstart import load_weights

DATA, PAGE, PICTURE = "explanation.json", "explanation.html", "explanation.png"

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PastClick:
    """One item of a sequence.

    Attributes:
        number: place in the sequence, 1 = oldest.
        item_id: story or product id.
        title: empty where the catalog has none, or does not know the item.
        category_id: of a product; of a story the one of its first mounted product; 0 = none.
        hours_ago: back from the impression.
        weight: mean over the heads; sums to 1 over a sequence.
        head_weights: of each head; likewise.
    """

    number: int
    item_id: int
    title: str
    category_id: int
    hours_ago: float
    weight: float
    head_weights: tuple[float, ...]


@dataclass(frozen=True)
class Mounted:
    """A product that a story mounts."""

    product_id: int
    title: str
    category_id: int


@dataclass(frozen=True)
class Explanation:
    """One impression as the model saw it.

    Attributes:
        model_version, model_day: of the bundle.
        impression: its number among the held-out impressions of the dataset.
        user_id, story_id, title, shown_at, clicked: the impression; `shown_at` is ISO 8601.
        click_probability: what the bundle serves, in [0, 1].
        mounted: products of the target.
        story_clicks, product_clicks: oldest first; empty where the user has no clicks in that domain.
    """

    model_version: str
    model_day: str
    impression: int
    user_id: int
    story_id: int
    title: str
    shown_at: str
    clicked: bool
    click_probability: float
    mounted: tuple[Mounted, ...]
    story_clicks: tuple[PastClick, ...]
    product_clicks: tuple[PastClick, ...]


def explain(
    config: Config,
    *,
    dataset: Path | None,
    bundle: Path | None,
    user_id: int | None = None,
    story_id: int | None = None,
    impression: int | None = None,
    out: Path,
) -> Explanation:
    """Explain one held-out impression as data, page and picture.

    Args:
        config: `locations` and `evaluation.seed`.
        dataset: folder that `build_dataset` wrote; None: the one of the bundle's day, made again from the
            validated logs.
        bundle: bundle folder; None: the deployed champion.
        user_id, story_id: name the impression.
        impression: names it by its number among the held-out ones. Without any name one with long
            sequences is drawn among the clicked ones.
        out: folder to write, replaced whole.

    Raises:
        DataError: there is no such impression, or it is named by half or twice.
        ModelError: nothing is deployed, or the bundle is damaged.
    """
    from storyrec.explain_view import draw_picture, render_page

    if (user_id is None) != (story_id is None) or (user_id is not None and impression is not None):
        raise DataError(
            "this names no impression",
            expected="a user and a story, or the number of an impression, or none of them",
            remedy="give --user together with --story, or --impression alone",
        )
    model = Bundle.load(bundle) if bundle else deployed_bundle(config)
    with _opened(config, dataset, model) as data:
        if user_id is not None and story_id is not None:
            impression = find_impression(data, user_id=user_id, story_id=story_id)
        elif impression is None:
            impression = draw_impression(data, seed=config.evaluation.seed)
        explanation = explain_impression(model, data, impression)
    with write_folder(out) as folder:
        write_file(folder / DATA, json.dumps(asdict(explanation), indent=1, ensure_ascii=False).encode())
        write_file(folder / PAGE, render_page(explanation).encode())
        write_file(folder / PICTURE, draw_picture(explanation))
    return explanation


def find_impression(data: Dataset, *, user_id: int, story_id: int) -> int:
    """The number of the first held-out impression of a story to a user.

    Raises:
        DataError: the user did not see the story in the held-out days.
    """
    holdout = data.holdout
    seen_B = holdout.user_ids_B == user_id
    (found,) = np.nonzero(seen_B & (data.stories.item_ids_N[holdout.story_rows_B] == story_id))
    if not len(found):
        raise DataError(
            f"user {user_id} did not see story {story_id} in the held-out days",
            expected=f"one of the user's {int(seen_B.sum())} held-out impressions",
            where=f"the {len(holdout)} held-out impressions up to {data.day}",
            remedy="name another user and story, or none to have an impression drawn",
        )
    return int(found[0])


def draw_impression(data: Dataset, *, seed: int) -> int:
    """A clicked held-out impression, drawn among those whose shorter sequence is longest.

    Raises:
        DataError: no held-out impression was clicked.
    """
    holdout = data.holdout
    (clicked,) = np.nonzero(holdout.clicked_B)
    if not len(clicked):
        raise DataError(
            f"none of the {len(holdout)} held-out impressions was clicked",
            where=f"the held-out impressions up to {data.day}",
            remedy="name one with --impression",
        )
    lengths_B = np.minimum(
        holdout.story_stop_B - holdout.story_start_B, holdout.product_stop_B - holdout.product_start_B
    )[clicked]
    return int(np.random.default_rng(seed).choice(clicked[lengths_B == lengths_B.max()]))


def explain_impression(bundle: Bundle, data: Dataset, impression: int) -> Explanation:
    """What the model saw in one held-out impression, and what it attended to.

    Args:
        bundle: the model; its own windows bound the sequences.
        data: whose held-out impressions are meant.
        impression: number among them.

    Raises:
        DataError: there is no impression of that number.
    """
    if not 0 <= impression < len(data.holdout):
        raise DataError(
            f"there is no held-out impression {impression}",
            expected=f"a number from 0 to {len(data.holdout) - 1}",
            where=f"the held-out impressions up to {data.day}",
            remedy="name another one with --impression",
        )
    windows = bundle.config.windows
    instance = data.instances_for(data.holdout.take(np.array([impression])), history_days=int(windows.history_days))
    batch = make_batch(
        data,
        instance,
        np.array([0]),
        sequence_length=bundle.config.features.sequence_length,
        block_hours=int(windows.block_hours),
        num_time_blocks=bundle.config.model.num_time_blocks,
    )
    features = read_features(bundle, data, batch)
    with torch.no_grad():
        weights = load_ranker(bundle).attention_weights(features)
    row = int(instance.story_rows_B[0])
    return Explanation(
        model_version=bundle.version,
        model_day=bundle.day.isoformat(),
        impression=impression,
        user_id=int(instance.user_ids_B[0]),
        story_id=int(data.stories.item_ids_N[row]),
        title=data.stories.titles[row],
        shown_at=datetime.fromtimestamp(int(instance.shown_us_B[0]) / 1e6, UTC).isoformat(timespec="seconds"),
        clicked=bool(instance.clicked_B[0]),
        click_probability=float(
            bundle.run_ranker(
                target_BD=features.target_BD.numpy(),
                story_BSD=features.story_BSD.numpy(),
                story_blocks_BS=batch.story_blocks_BS,
                product_BPD=features.product_BPD.numpy(),
                product_blocks_BP=batch.product_blocks_BP,
            )[0]
        ),
        mounted=mounted_products(data, row),
        story_clicks=_past_clicks(
            instance,
            stop=int(instance.story_stop_B[0]),
            clicks=data.story_clicks,
            catalog=data.stories,
            weights_HL=weights[Domain.STORY][0].numpy(),
            mask_L=batch.story_blocks_BS[0] > 0,
        ),
        product_clicks=_past_clicks(
            instance,
            stop=int(instance.product_stop_B[0]),
            clicks=data.product_clicks,
            catalog=data.products,
            weights_HL=weights[Domain.PRODUCT][0].numpy(),
            mask_L=batch.product_blocks_BP[0] > 0,
        ),
    )


def read_features(bundle: Bundle, data: Dataset, batch: Batch) -> Features:
    """What the bundle's ranker reads of a single impression."""

    def embed(catalog: Catalog, rows_N: Int64s, domain: Domain) -> torch.Tensor:
        return torch.from_numpy(bundle.embed(catalog, domain=domain, rows_N=rows_N))

    stories_ND = embed(data.stories, np.concatenate([batch.story_rows_B, batch.story_slots_BS[0]]), Domain.STORY)
    nothing_B = torch.zeros(1, dtype=torch.int64)  # ADEN knows neither users nor categories
    return Features(
        target_BD=stories_ND[:1],
        story_BSD=stories_ND[1:].unsqueeze(0),
        story_blocks_BS=torch.from_numpy(batch.story_blocks_BS),
        product_BPD=embed(data.products, batch.product_slots_BP[0], Domain.PRODUCT).unsqueeze(0),
        product_blocks_BP=torch.from_numpy(batch.product_blocks_BP),
        user_rows_B=nothing_B,
        target_categories_B=nothing_B,
        story_categories_BS=torch.zeros(batch.story_blocks_BS.shape, dtype=torch.int64),
    )


def load_ranker(bundle: Bundle) -> Aden:
    """The bundle's ADEN in evaluation mode.

    Raises:
        ModelError: its weights do not fit its settings.
    """
    path = bundle.folder / ADEN
    model = build_aden(bundle.config, num_words=bundle.vocabulary.size)
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError as error:
        raise ModelError(
            f"the weights do not fit: {error}",
            expected="a bundle that this version of storyrec packed",
            where=str(path),
            remedy="pack the bundle again",
        ) from error
    assert isinstance(model.ranker, Aden)
    return model.ranker.eval()


def mounted_products(data: Dataset, story_row: int) -> tuple[Mounted, ...]:
    """The products that a story of the catalog mounts."""
    pairs_M2 = np.concatenate([data.pairs_M2, data.holdout_pairs_M2])
    rows = np.unique(pairs_M2[pairs_M2[:, 0] == story_row, 1])
    products = data.products
    return tuple(
        Mounted(int(products.item_ids_N[row]), products.titles[row], int(products.category_ids_N[row])) for row in rows
    )


def _past_clicks(
    instance: Instances,
    *,
    stop: int,
    clicks: ClickLog,
    catalog: Catalog,
    weights_HL: Floats,
    mask_L: npt.NDArray[np.bool_],
) -> tuple[PastClick, ...]:
    length = int(mask_L.sum())  # padding is on the right
    item_ids_L = clicks.item_ids_C[stop - length : stop]
    hours_L = (instance.shown_us_B[0] - clicks.clicked_us_C[stop - length : stop]) / HOUR_US
    rows_L = catalog.rows(item_ids_L)
    return tuple(
        PastClick(
            number=place + 1,
            item_id=int(item_ids_L[place]),
            title=catalog.titles[rows_L[place]],
            category_id=int(catalog.category_ids_N[rows_L[place]]),
            hours_ago=round(float(hours_L[place]), 2),
            weight=float(weights_HL[:, place].mean()),
            head_weights=tuple(float(weight) for weight in weights_HL[:, place]),
        )
        for place in range(length)
    )


@contextmanager
def _opened(config: Config, dataset: Path | None, bundle: Bundle) -> Iterator[Dataset]:
    """The dataset of that folder; without one that of the bundle's day, with the bundle's windows."""
    if dataset is not None:
        yield Dataset.load(dataset)
        return
    own = {name: getattr(bundle.config, name) for name in ("windows", "features", "model")}
    with tempfile.TemporaryDirectory(prefix="storyrec-") as folder:
        yield build_dataset(config.model_copy(update=own), day=bundle.day, out=Path(folder) / "dataset")
