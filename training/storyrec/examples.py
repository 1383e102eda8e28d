"""What the deployed model recommends: a ranking for one user, stories for one product.

Everything is read as a client of the system would read it: the bundle from the registry, the
sequences from the feature store, the titles from the validated logs.
"""

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from storyrec.bundle import Bundle
from storyrec.config import Config
from storyrec.errors import DataError, ModelError
from storyrec.features.store import open_feature_store
from storyrec.logs.partitions import VALIDATED, list_days, read_days, read_titles
from storyrec.match import nearest_stories
from storyrec.registry import fetch_bundle, open_registry, read_champion
from storyrec.serving.ranking import Clicks, rank
from storyrec.storage import Storage, open_storage

MIN_CANDIDATES = 200
NUM_RECENT_CLICKS = 5


@dataclass(frozen=True)
class Recommendation:
    """One recommended story; `value` is a click probability or a distance."""

    story_id: int
    title: str
    value: float


@dataclass(frozen=True)
class Ranking:
    """The newest stories ranked for a user, and what the user clicked last (titles, newest first)."""

    user_id: int
    model_version: str
    num_candidates: int
    story_clicks: tuple[str, ...]
    product_clicks: tuple[str, ...]
    stories: tuple[Recommendation, ...]


@dataclass(frozen=True)
class Matches:
    """The stories nearest to a product, nearest first."""

    product_id: int
    title: str
    model_version: str
    stories: tuple[Recommendation, ...]


def rank_for_user(config: Config, *, user_id: int, top: int) -> Ranking:
    """Rank the newest stories for a user, as of the end of the champion's day.

    Raises:
        ModelError: nothing is deployed, or the bundle is damaged.
    """
    bundle = deployed_bundle(config)
    sequences = open_feature_store(config.locations.work, profile=config.profile).online_sequences([user_id])[0]
    candidates = _newest_stories(config, bundle)
    now = datetime.combine(bundle.day + timedelta(days=1), time(), UTC)
    scores = rank(
        bundle,
        story_clicks=Clicks(sequences.story_ids, sequences.story_clicked_us),
        product_clicks=Clicks(sequences.product_ids, sequences.product_clicked_us),
        now_us=int(now.timestamp()) * 1_000_000,
        candidate_ids=candidates,
    )
    best = np.argsort(-scores, kind="stable")[:top]
    work = _work(config)
    titles = read_titles(work, "stories", {*candidates[best].tolist(), *sequences.story_ids.tolist()})
    product_titles = read_titles(work, "products", set(sequences.product_ids.tolist()))
    return Ranking(
        user_id=user_id,
        model_version=bundle.version,
        num_candidates=len(candidates),
        story_clicks=tuple(titles.get(i, f"story {i}") for i in sequences.story_ids[::-1][:NUM_RECENT_CLICKS].tolist()),
        product_clicks=tuple(
            product_titles.get(i, f"product {i}") for i in sequences.product_ids[::-1][:NUM_RECENT_CLICKS].tolist()
        ),
        stories=tuple(
            Recommendation(int(candidates[row]), titles.get(int(candidates[row]), ""), float(scores[row]))
            for row in best
        ),
    )


def match_product(config: Config, *, product_id: int, top: int) -> Matches:
    """The stories nearest to a product by the champion's matching vectors. Paper: Sec. IV-G.

    Raises:
        ModelError: nothing is deployed, or the bundle is damaged.
        DataError: the deployed model does not know the product.
    """
    bundle = deployed_bundle(config)
    row = int(bundle.products.rows(product_id))
    if row == 0:
        raise DataError(
            f"the deployed model {bundle.version} does not know product {product_id}",
            expected=f"a product published up to {bundle.day}",
            remedy="name another product id",
        )
    rows, distances = nearest_stories(bundle.products.match_NM[row : row + 1], bundle.stories.match_NM[1:], top_k=top)
    story_ids = bundle.stories.ids_N[rows[0] + 1]
    work = _work(config)
    titles = read_titles(work, "stories", set(story_ids.tolist()))
    product = read_titles(work, "products", {product_id})
    return Matches(
        product_id=product_id,
        title=product.get(product_id, ""),
        model_version=bundle.version,
        stories=tuple(
            Recommendation(int(i), titles.get(int(i), ""), float(d))
            for i, d in zip(story_ids, distances[0], strict=True)
        ),
    )


def example_ids(config: Config) -> tuple[int, int]:
    """A user with long sequences in both domains and a product that this user clicked last.

    Raises:
        DataError: the newest validated day has no clicks.
    """
    work = _work(config)
    newest = list_days(work, "impressions", prefix=VALIDATED)[-1:]
    clicks = read_days(work, "product_clicks", newest, prefix=VALIDATED).table
    shown = read_days(work, "impressions", newest, prefix=VALIDATED, columns=["user_id", "clicked"]).table
    users, counts = np.unique(clicks["user_id"].to_numpy(), return_counts=True)
    story_users = np.unique(shown["user_id"].to_numpy()[shown["clicked"].to_numpy()])
    both = np.isin(users, story_users)
    if not both.any():
        both = np.ones(len(users), bool)
    if not len(users):
        raise DataError("no product was clicked", where=f"{work.url}/validated", remedy="name a user with --user")
    user = int(users[both][np.argmax(counts[both])])
    own = clicks["product_id"].to_numpy()[clicks["user_id"].to_numpy() == user]
    return user, int(own[-1])


def print_ranking(ranking: Ranking, *, console: Console) -> None:
    """Show a ranking to a person."""
    console.print(f"User {ranking.user_id} clicked the stories [i]{'; '.join(ranking.story_clicks) or 'none'}[/]")
    console.print(f"and the products [i]{'; '.join(ranking.product_clicks) or 'none'}[/]")
    title = f"Best of {ranking.num_candidates} new stories, model {ranking.model_version}"
    console.print(_table(title, "click probability", ranking.stories))


def print_matches(matches: Matches, *, console: Console) -> None:
    """Show the stories of a product to a person."""
    title = f"Stories for product {matches.product_id}, {matches.title}, model {matches.model_version}"
    console.print(_table(title, "distance", matches.stories))


def deployed_bundle(config: Config) -> Bundle:
    """The champion of the settings' registry, copied to this machine once per version.

    Raises:
        ModelError: nothing is deployed, or the bundle is damaged.
    """
    registry = open_registry(config.locations)
    pointer = read_champion(registry)
    if pointer is None:
        raise ModelError(
            "no model is deployed yet", where=registry.url, remedy="run a day first: storyrec run, or make run"
        )
    cache = Path(tempfile.gettempdir()) / "storyrec-bundles" / pointer.champion.version
    if not (cache / "manifest.json").is_file():
        fetch_bundle(registry, pointer.champion.version, cache)
    return Bundle.load(cache)


def _table(title: str, value: str, stories: tuple[Recommendation, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("story", justify="right")
    table.add_column("title")
    table.add_column(value, justify="right")
    for story in stories:
        table.add_row(str(story.story_id), story.title, f"{story.value:.3f}")
    return table


def _newest_stories(config: Config, bundle: Bundle) -> np.ndarray:
    """Ids of the stories of the newest days that the bundle knows, at least MIN_CANDIDATES if there are."""
    work = _work(config)
    found: set[int] = set()
    for day in reversed(list_days(work, "stories", prefix=VALIDATED)):
        table = read_days(work, "stories", [day], prefix=VALIDATED, columns=["story_id"]).table
        ids = table["story_id"].to_numpy()
        found.update(ids[bundle.stories.rows(ids) > 0].tolist())
        if len(found) >= MIN_CANDIDATES:
            break
    return np.array(sorted(found), np.int64)


def _work(config: Config) -> Storage:
    return open_storage(config.locations.work, s3_endpoint=config.locations.s3_endpoint)
