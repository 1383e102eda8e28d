"""Evaluation: the same impressions for both models, scored as they would be served; and its report."""

import json
import shutil
from base64 import b64encode
from collections import Counter
from datetime import timedelta
from html import unescape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import storyrec.evaluate as evaluate_module
from storyrec.bundle import Bundle
from storyrec.config import Config
from storyrec.evaluate import evaluate_model, score_instances, unknown_word_warnings
from storyrec.features.sequences import midnight_us
from storyrec.features.titles import UnknownWords, Vocabulary
from storyrec.logs.partitions import encode
from storyrec.manifest import seal_folder
from storyrec.metrics import per_user_auc
from storyrec.report import render_report
from storyrec.schema import SOURCES, TRUTH, Domain
from storyrec.slices import SLICES
from storyrec.storage import FolderStorage
from trained import World, make_bundle


@pytest.fixture(scope="module")
def champion(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(world, tmp_path_factory.mktemp("champion"), seed=2)


@pytest.fixture(scope="module")
def with_truth(world: World, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Settings with a truth that gives clicked impressions the higher probability, one impression left out."""
    root = tmp_path_factory.mktemp("truth")
    data = world.data
    holdout = data.holdout
    rows = pa.table(
        {
            "user_id": holdout.user_ids_B,
            "story_id": data.stories.item_ids_N[holdout.story_rows_B],
            "request_id": pa.nulls(len(holdout), pa.string()),
            "shown_at": pa.array(holdout.shown_us_B).cast(pa.timestamp("us", tz="UTC")),
            "probability": np.where(holdout.clicked_B, 0.8, 0.1).astype(np.float32),
        },
        schema=TRUTH,
    )
    for back in range(data.windows.holdout_days):
        part = rows.slice(1) if back == 0 else rows.slice(0, 0)
        FolderStorage(root).write(f"impressions/dt={data.day - timedelta(days=back)}/part-0.parquet", encode(part))
    locations = world.config.locations.model_copy(update={"truth": str(root)})
    return world.config.model_copy(update={"locations": locations})


@pytest.fixture(scope="module")
def evaluation(
    world: World, packed: Path, champion: Path, with_truth: Config, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("evaluation") / "out"
    evaluate_model(with_truth, dataset=world.dataset, bundle=packed, champion=champion, out=out)
    return out


def test_both_models_are_judged_on_all_held_out_impressions(
    world: World, packed: Path, champion: Path, evaluation: Path
) -> None:
    read = json.loads((evaluation / "evaluation.json").read_text())
    holdout = world.data.holdout
    for name, folder in (("challenger", packed), ("champion", champion)):
        bundle = Bundle.load(folder)
        expected = per_user_auc(holdout.user_ids_B, holdout.clicked_B, score_instances(bundle, world.data, holdout))
        assert read[name]["version"] == bundle.version
        assert read[name]["metrics"]["per_user_auc"] == pytest.approx(expected.mean)
        assert read[name]["metrics"]["num_impressions"] == len(holdout)
        scores = np.load(evaluation / "scores.npz")
        held = per_user_auc(scores["user_ids"], scores["clicked"], scores[name])
        assert held.values_U == pytest.approx(expected.values_U)
        assert held.users_U.tolist() == expected.users_U.tolist()
    assert read["challenger"]["version"] != read["champion"]["version"]


def test_the_oracle_knows_the_truth_and_counts_what_it_does_not_know(evaluation: Path) -> None:
    oracle = json.loads((evaluation / "evaluation.json").read_text())["oracle"]["metrics"]
    assert oracle["per_user_auc"] == 1.0
    assert oracle["num_unknown"] == 1


def test_without_a_truth_there_is_no_oracle(world: World, packed: Path, tmp_path: Path) -> None:
    evaluate_model(world.config, dataset=world.dataset, bundle=packed, champion=None, out=tmp_path / "out")
    read = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert read["oracle"] is None
    assert read["champion"] is None
    assert "champion" not in np.load(tmp_path / "out" / "scores.npz")


def test_popularity_is_the_training_clicks_of_the_story(world: World, evaluation: Path) -> None:
    data = world.data
    clicks: dict[int, int] = {}
    for row, clicked in zip(data.train.story_rows_B, data.train.clicked_B, strict=True):
        clicks[int(row)] = clicks.get(int(row), 0) + int(clicked)
    scores_B = np.array([clicks.get(int(row), 0) for row in data.holdout.story_rows_B], np.float64)
    expected = per_user_auc(data.holdout.user_ids_B, data.holdout.clicked_B, scores_B).mean
    read = json.loads((evaluation / "evaluation.json").read_text())
    assert read["popularity"]["metrics"]["per_user_auc"] == pytest.approx(expected)


def test_items_that_the_bundle_does_not_know_are_embedded_by_its_extractors(
    world: World, packed: Path, tmp_path: Path
) -> None:
    """A champion of the day before meets stories that its table does not hold."""
    data, bundle = world.data, Bundle.load(packed)
    new_ids = np.unique(data.stories.item_ids_N[data.holdout.story_rows_B])[:5]
    old = tmp_path / "bundle"
    shutil.copytree(packed, old)
    keep_N = ~np.isin(bundle.stories.ids_N, new_ids)
    for name in ("ids", "vectors", "match_vectors"):
        file = old / "items" / f"story_{name}.npy"
        np.save(file, np.load(file)[keep_N])
    forgetful = Bundle.open_unverified(old, bundle.manifest)
    assert (forgetful.stories.rows(new_ids) == 0).all()
    assert forgetful.vectors(data.stories, domain=Domain.STORY) == pytest.approx(
        bundle.vectors(data.stories, domain=Domain.STORY), abs=1e-6
    )


@pytest.mark.parametrize("largest", [0.05, 0.9])
def test_what_a_champion_of_few_words_does_not_know_is_counted_and_warned_of(
    world: World, packed: Path, tmp_path: Path, largest: float
) -> None:
    data, champion = world.data, tmp_path / "champion"
    shutil.copytree(packed, champion)
    Vocabulary(data.vocabulary.words[:12]).save(champion / "tokenizer.json")
    seal_folder(champion, day=data.day)
    settings = world.config.evaluation.model_copy(update={"max_unknown_words": largest})
    config = world.config.model_copy(update={"evaluation": settings})
    evaluate_model(config, dataset=world.dataset, bundle=packed, champion=champion, out=tmp_path / "out")
    read = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    page = (tmp_path / "out" / "report.html").read_text()
    start_us = midnight_us(data.windows.holdout_start(data.day))
    warnings = []
    for model, known in (("challenger", data.vocabulary.words), ("champion", data.vocabulary.words[:12])):
        for items, catalog in (("stories", data.stories), ("products", data.products)):
            is_new = catalog.published_us_N >= start_us
            titles = [title.split() for title, new in zip(catalog.titles, is_new, strict=True) if new]
            counts = {
                "num_titles": len(titles),
                "num_words": sum(map(len, titles)),
                "num_unknown": sum(word not in known for title in titles for word in title),
            }
            assert read[model]["unknown_words"][items] == counts
            share = counts["num_unknown"] / counts["num_words"]
            assert f">{share:.1%}</td>" in page
            if share > largest:
                warnings.append(
                    f"{share:.1%} of the words in the titles of {len(titles)} new {items} are unknown to the {model}, "
                    f"more than {largest:.1%}"
                )
    assert read["warnings"] == warnings
    assert [warning in page for warning in warnings] == [True] * len(warnings)
    assert any("champion" in warning for warning in warnings) == (largest < 0.5)


def test_the_slices_are_what_their_names_say(world: World, evaluation: Path) -> None:
    data, holdout = world.data, world.data.holdout
    with np.load(evaluation / "scores.npz") as scores:
        parts = dict(zip(SLICES, scores["slices"], strict=True))
    shown = Counter(holdout.user_ids_B.tolist())
    few, many = np.quantile(list(shown.values()), [0.25, 0.75])
    start_us = midnight_us(data.windows.holdout_start(data.day))
    for row in range(len(holdout)):
        clicks = int(holdout.story_stop_B[row] - holdout.story_start_B[row])
        story = holdout.story_rows_B[row]
        num_shown = shown[int(holdout.user_ids_B[row])]
        expected = {
            "new stories": data.stories.published_us_N[story] >= start_us,
            "users without story clicks": clicks == 0,
            "short story sequences": 1 <= clicks <= 4,
            "full story sequences": clicks == data.sequence_length,
            "light users": num_shown <= few,
            "heavy users": num_shown >= many,
        } | {f"source {name}": data.stories.sources_N[story] == number for number, name in enumerate(SOURCES)}
        assert {name: bool(parts[name][row]) for name in SLICES} == {k: bool(v) for k, v in expected.items()}
    read = {part["name"]: part for part in json.loads((evaluation / "evaluation.json").read_text())["slices"]}
    assert list(read) == list(SLICES)
    assert sum(read[f"source {name}"]["num_impressions"] for name in SOURCES) == len(holdout)


def test_the_bundle_was_rehearsed_and_weighed(packed: Path, evaluation: Path) -> None:
    read = json.loads((evaluation / "evaluation.json").read_text())
    assert read["rehearsal"]["error"] is None
    assert read["rehearsal"]["version"] == Bundle.load(packed).version
    assert read["challenger"]["num_bytes"] == sum(f.stat().st_size for f in packed.rglob("*") if f.is_file())
    assert read["changed_settings"] == []


def test_the_stories_shown_for_products_are_the_nearest_ones(world: World, packed: Path, evaluation: Path) -> None:
    data, bundle = world.data, Bundle.load(packed)
    read = json.loads((evaluation / "evaluation.json").read_text())
    page = unescape((evaluation / "report.html").read_text())
    titles = {
        name: dict(zip(catalog.item_ids_N.tolist(), catalog.titles, strict=True))
        for name, catalog in (("stories", data.stories), ("products", data.products))
    }
    last = [example["product_clicks"][0] for example in read["examples"] if example["product_clicks"]]
    assert {match["title"] for match in read["matches"]} == set(last)
    for match in read["matches"]:
        own_M = bundle.products.match_NM[bundle.products.rows(match["product_id"])]
        distances_N = np.linalg.norm(bundle.stories.match_NM[1:] - own_M, axis=1)
        found = [(story["story_id"], story["distance"]) for story in match["stories"]]
        assert [distance for _, distance in found] == pytest.approx(np.sort(distances_N)[:5])
        for story_id, distance in found:
            assert distance == pytest.approx(distances_N[bundle.stories.rows(story_id) - 1])
        assert titles["products"][match["product_id"]] == match["title"]
        assert all(titles["stories"][story["story_id"]] == story["title"] for story in match["stories"])
        assert all(story["title"] in page and f"{story['distance']:.3f}" in page for story in match["stories"])


def test_the_examples_are_of_those_with_the_longest_sequences_who_clicked(world: World, evaluation: Path) -> None:
    holdout = world.data.holdout
    length_B = (holdout.story_stop_B - holdout.story_start_B) + (holdout.product_stop_B - holdout.product_start_B)
    longest = {
        int(user): length_B[holdout.user_ids_B == user].max()
        for user in np.unique(holdout.user_ids_B[holdout.clicked_B])
    }
    shown = [example["user_id"] for example in json.loads((evaluation / "evaluation.json").read_text())["examples"]]
    assert len(set(shown)) == 3
    assert [longest[user] for user in shown] == sorted(longest.values(), reverse=True)[:3]


def test_the_report_holds_the_picture_of_what_was_attended_to(evaluation: Path) -> None:
    picture = (evaluation / "attention.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert f'src="data:image/png;base64,{b64encode(picture).decode()}"' in render_report(evaluation)


def gain_rule(name: str, *, passed: bool, lower: float, upper: float = 0.006) -> dict[str, object]:
    figures = {"estimate": 0.001, "lower": lower, "upper": upper, "detectable": 0.007, "confidence": 0.95}
    rest = {"num_users": 321, "champion": 0.6, "judged": True}
    return {"name": name, "passed": passed, "figures": figures | rest, "threshold": -0.01, "reason": name}


def test_the_report_is_one_page_that_names_the_figures_and_the_verdict(evaluation: Path) -> None:
    verdict = {
        "blessed": False,
        "rules": [
            {"name": "floor", "passed": False, "figures": {}, "reason": "per-user AUC <b>0.1</b> is too low"},
            gain_rule("per_user_auc_against_champion", passed=True, lower=-0.004),
            gain_rule(f"slice: {SLICES[0]}", passed=False, lower=-0.05),
            {"name": f"slice: {SLICES[1]}", "passed": True, "figures": {"judged": False}, "reason": "too few"},
        ],
    }
    validation = {"tables": {"stories": {"rows": 1234, "valid": 1230, "quarantined": {"title_not_blank": 4}}}}
    page = render_report(evaluation, verdict=verdict, validation=validation)
    read = json.loads((evaluation / "evaluation.json").read_text())
    assert f"{read['challenger']['metrics']['per_user_auc']:.4f}" in page
    assert "Not blessed" in page
    assert "&lt;b&gt;0.1&lt;/b&gt;" in page  # what comes from data is text, never markup
    assert "4 × title_not_blank" in page
    assert page.count("<svg") == 5
    assert "As good, as far as this day can tell" in page
    assert "0.10 percentage points more often" in page
    assert "a true difference of 0.70 points" in page
    assert "too few users" in page
    assert "The settings are the same" in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    ).replace("https://matplotlib.org", "")


@pytest.mark.parametrize("blessed", [True, False])
def test_the_report_says_what_else_is_surely_better_or_worse(evaluation: Path, blessed: bool) -> None:
    rules = [
        gain_rule("per_user_auc_against_champion", passed=True, lower=-0.001),
        gain_rule("ndcg_against_champion", passed=True, lower=0.001),
        gain_rule("log_loss_against_champion", passed=blessed, lower=-0.002, upper=-0.001),
        gain_rule("calibration_against_champion", passed=True, lower=-0.002, upper=0.001),
    ]
    page = " ".join(render_report(evaluation, verdict={"blessed": blessed, "rules": rules}).split())
    assert "It is surely better in putting the clicked story near the top (NDCG)." in page
    allowed = ", but by less than the gate allows" if blessed else ""
    assert f"It is surely worse in the click probabilities it gives (log loss){allowed}. </p>" in page
    unjudged = {"name": "ndcg_against_champion", "passed": False, "figures": {}, "reason": "no champion's scores"}
    assert "surely" not in render_report(evaluation, verdict={"blessed": False, "rules": [rules[0], unjudged]})


def test_nothing_but_the_simulator_and_the_oracle_line_knows_where_the_truth_is() -> None:
    """The true click probabilities must never reach a model."""
    package = Path(evaluate_module.__file__).parent
    readers = {file.name for file in package.rglob("*.py") if "locations.truth" in file.read_text(encoding="utf-8")}
    assert readers == {"evaluate.py", "run.py", "cli.py", "simulate.py"}


def test_titles_at_the_bound_and_days_without_new_titles_give_no_warning() -> None:
    counts = {"stories": UnknownWords(5, 20, 2), "products": UnknownWords(0, 0, 0)}
    assert unknown_word_warnings({"challenger": counts}, largest=0.1) == []
    assert unknown_word_warnings({"challenger": counts}, largest=0.09) == [
        "10.0% of the words in the titles of 5 new stories are unknown to the challenger, more than 9.0%"
    ]
