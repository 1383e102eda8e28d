"""One impression explained: the weights are Eq. 10's, and the page, picture and data tell the same."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storyrec.bundle import ADEN, Bundle
from storyrec.config import Config
from storyrec.data.dataset import Dataset
from storyrec.errors import DataError, ModelError
from storyrec.evaluate import score_instances
from storyrec.explain import (
    DATA,
    PAGE,
    PICTURE,
    Explanation,
    draw_impression,
    explain,
    explain_impression,
    find_impression,
    mounted_products,
)
from storyrec.explain_view import draw_picture, render_page
from storyrec.registry import push_bundle, switch_champion
from storyrec.schema import Domain
from storyrec.storage import FolderStorage
from storyrec.warmstart import load_weights
from trained import World


@pytest.fixture(scope="module")
def bundle(packed: Path) -> Bundle:
    return Bundle.load(packed)


@pytest.fixture(scope="module")
def data(world: World) -> Dataset:
    return world.data


@pytest.fixture(scope="module")
def explanation(bundle: Bundle, data: Dataset) -> Explanation:
    return explain_impression(bundle, data, draw_impression(data, seed=7))


@pytest.fixture
def empty(bundle: Bundle, data: Dataset) -> Explanation:
    """An impression of a user without any click."""
    numbers = np.zeros(len(data.holdout), np.int64)
    strangers = replace(data.holdout, user_ids_B=numbers + 987_654, story_start_B=numbers, story_stop_B=numbers)
    return explain_impression(bundle, replace(data, holdout=strangers), 0)


@pytest.mark.parametrize("domain", list(Domain))
def test_the_weights_are_equation_10(explanation: Explanation, bundle: Bundle, data: Dataset, domain: Domain) -> None:
    name = "story" if domain == Domain.STORY else "product"
    clicks = explanation.story_clicks if domain == Domain.STORY else explanation.product_clicks
    weights = {key: value.double() for key, value in load_weights(bundle.folder / ADEN).items()}
    block_hours = int(bundle.config.windows.block_hours)
    target_D = torch.tensor(bundle.stories.vectors_ND[bundle.stories.rows(explanation.story_id)]).double()
    heads, width = bundle.config.model.num_heads, bundle.config.model.width
    scores_LH = []
    for click in clicks:
        item_D = torch.tensor(bundle.table(domain).vectors_ND[bundle.table(domain).rows(click.item_id)]).double()
        block = min(math.ceil(click.hours_ago / block_hours - 1e-9), bundle.config.model.num_time_blocks + 1)
        timed_D = item_D + weights["ranker.time_blocks.weight"][block]
        layers = {part: f"ranker.{name}_attention.{part}" for part in ("query", "key")}
        query_D = weights[f"{layers['query']}.weight"] @ target_D + weights[f"{layers['query']}.bias"]
        key_D = weights[f"{layers['key']}.weight"] @ timed_D + weights[f"{layers['key']}.bias"]
        scores_LH.append((query_D * key_D).view(heads, -1).sum(dim=1) / math.sqrt(width // heads))
    expected_LH = torch.softmax(torch.stack(scores_LH), dim=0)
    found_LH = torch.tensor([click.head_weights for click in clicks]).double()
    torch.testing.assert_close(found_LH, expected_LH, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found_LH.sum(dim=0), torch.ones(heads).double(), atol=1e-5, rtol=0)
    assert [click.weight for click in clicks] == pytest.approx(expected_LH.mean(dim=1).tolist(), abs=1e-5)
    assert expected_LH.std(dim=0).max() > 0.01  # weights that are all the same would prove nothing


def test_what_is_drawn_was_clicked_and_has_long_sequences(explanation: Explanation, data: Dataset) -> None:
    holdout = data.holdout
    lengths_B = np.minimum(
        holdout.story_stop_B - holdout.story_start_B, holdout.product_stop_B - holdout.product_start_B
    )
    assert explanation.clicked
    assert min(len(explanation.story_clicks), len(explanation.product_clicks)) == lengths_B[holdout.clicked_B].max()
    assert draw_impression(data, seed=7) == explanation.impression
    zeros_B = np.zeros(len(holdout), np.int64)
    alike = replace(data, holdout=replace(holdout, story_start_B=zeros_B, story_stop_B=zeros_B))
    drawn = [draw_impression(alike, seed=seed) for seed in range(9)]
    assert len(set(drawn)) > 1
    assert holdout.clicked_B[drawn].all()
    nobody = replace(data, holdout=replace(holdout, clicked_B=np.zeros_like(holdout.clicked_B)))
    with pytest.raises(DataError, match="was clicked"):
        draw_impression(nobody, seed=7)


def test_the_impression_is_told_as_it_was(explanation: Explanation, bundle: Bundle, data: Dataset) -> None:
    holdout, number = data.holdout, explanation.impression
    assert explanation.user_id == holdout.user_ids_B[number]
    row = holdout.story_rows_B[number]
    assert (explanation.story_id, explanation.title) == (data.stories.item_ids_N[row], data.stories.titles[row])
    # story i mounts product i in the planted marketplace
    (mounted,) = explanation.mounted
    assert mounted.product_id - 500_000 == explanation.story_id - 1_000
    assert mounted.title == data.products.titles[int(data.products.rows(mounted.product_id))]
    score_B = score_instances(bundle, data, holdout.take(np.array([number])))
    assert explanation.click_probability == pytest.approx(score_B[0], abs=1e-6)
    own_C = np.flatnonzero(data.product_clicks.user_ids_C == explanation.user_id)
    before_C = own_C[data.product_clicks.clicked_us_C[own_C] < holdout.shown_us_B[number]][-20:]
    assert [click.item_id for click in explanation.product_clicks] == data.product_clicks.item_ids_C[before_C].tolist()
    newest = explanation.product_clicks[-1]
    hours = (holdout.shown_us_B[number] - data.product_clicks.clicked_us_C[before_C[-1]]) / 3.6e9
    assert newest.hours_ago == pytest.approx(hours, abs=0.006)
    assert newest.category_id == data.products.category_ids_N[data.products.rows(newest.item_id)]


def test_all_products_of_a_story_are_mounted(data: Dataset) -> None:
    pairs = {"pairs_M2": np.array([[2, 7], [4, 2], [4, 9]]), "holdout_pairs_M2": np.array([[4, 3]])}
    found = mounted_products(replace(data, **pairs), 4)
    assert [product.product_id for product in found] == data.products.item_ids_N[[2, 3, 9]].tolist()
    assert [product.category_id for product in found] == data.products.category_ids_N[[2, 3, 9]].tolist()


def test_a_user_without_clicks_is_said_to_have_none(empty: Explanation) -> None:
    assert empty.story_clicks == empty.product_clicks == ()
    page = render_page(empty)
    assert "The user clicked no story" in page
    assert "The user clicked no product" in page
    assert draw_picture(empty).startswith(b"\x89PNG")


def test_the_heaviest_box_is_the_darkest(explanation: Explanation) -> None:
    page = render_page(explanation)
    heaviest = max(explanation.product_clicks, key=lambda click: click.weight)
    box = page[page.index("Products that the user clicked") :]
    box = box[box.index("rgba(31, 78, 140, 1.000)") :]
    assert box[: box.index("</p>")].endswith(heaviest.title)
    assert "http" not in page


def test_titles_are_text_and_never_markup(explanation: Explanation) -> None:
    odd = replace(explanation, title="<script>alert(1)</script> $10 to $20")
    page = render_page(odd)
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    assert draw_picture(odd).startswith(b"\x89PNG")


def test_an_impression_is_found_by_user_and_story(explanation: Explanation, data: Dataset) -> None:
    number = find_impression(data, user_id=explanation.user_id, story_id=explanation.story_id)
    assert data.holdout.user_ids_B[number] == explanation.user_id
    assert data.stories.item_ids_N[data.holdout.story_rows_B[number]] == explanation.story_id
    with pytest.raises(DataError, match="user 1 did not see story 3"):
        find_impression(data, user_id=1, story_id=3)


@pytest.mark.parametrize("number", [-1, 10**9])
def test_a_number_without_an_impression_is_refused(bundle: Bundle, data: Dataset, number: int) -> None:
    with pytest.raises(DataError, match=f"no held-out impression {number}"):
        explain_impression(bundle, data, number)


def test_defaults_are_the_champion_and_its_day(world: World, packed: Path, tmp_path: Path) -> None:
    locations = world.config.locations.model_copy(update={"registry": str(tmp_path / "registry")})
    config = world.config.model_copy(update={"locations": locations})
    registry = FolderStorage(tmp_path / "registry")
    version = push_bundle(registry, packed)
    switch_champion(registry, version=version, day=world.data.day, expected_version=None)
    drawn = explain(config, dataset=None, bundle=None, out=tmp_path / "drawn")
    given = explain(config, dataset=world.dataset, bundle=packed, impression=drawn.impression, out=tmp_path / "given")
    assert drawn == given
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {DATA, PAGE, PICTURE}
    written = json.loads((tmp_path / "drawn" / DATA).read_text())
    assert written["model_version"] == version
    assert written["click_probability"] == drawn.click_probability
    assert written["story_clicks"][0]["title"] == drawn.story_clicks[0].title


def test_without_a_champion_nothing_is_written(world: World, tmp_path: Path) -> None:
    config = Config.model_validate({"locations": {"registry": str(tmp_path / "none")}})
    with pytest.raises(ModelError, match="no model is deployed yet"):
        explain(config, dataset=world.dataset, bundle=None, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("named", [{"user_id": 1}, {"story_id": 1}, {"user_id": 1, "story_id": 1, "impression": 0}])
def test_half_a_name_is_refused(world: World, packed: Path, tmp_path: Path, named: dict[str, int]) -> None:
    with pytest.raises(DataError, match="names no impression"):
        explain(world.config, dataset=world.dataset, bundle=packed, out=tmp_path / "out", **named)


def test_weights_of_another_shape_are_refused(packed: Path, data: Dataset, tmp_path: Path) -> None:
    shutil.copytree(packed, tmp_path / "bundle")
    settings = (tmp_path / "bundle" / "config.toml").read_text()
    (tmp_path / "bundle" / "config.toml").write_text(settings.replace("width = 16", "width = 8"))
    damaged = Bundle.open_unverified(tmp_path / "bundle", Bundle.load(packed).manifest)
    with pytest.raises(ModelError, match="do not fit"):
        explain_impression(damaged, data, 0)
