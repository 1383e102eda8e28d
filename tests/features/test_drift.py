"""Drift of sequence lengths and embedding norms, against the trailing days."""

import io
import json
from datetime import timedelta

import numpy as np
import pytest
from feature_world import World, at, day_of
from item_world import deploy
from rich.console import Console

from storyrec.config import Config, Rules
from storyrec.errors import DataError, MissingPartition
from storyrec.features.build import build_features
from storyrec.features.drift import Distribution, measure_drift, print_drift, require_stable, stability_index
from storyrec.features.publish import publish_features
from storyrec.terminal import table_console

TRAILING = 3


@pytest.fixture
def config(world: World) -> Config:
    """Three trailing days, all of which must be there."""
    return world.config.model_copy(update={"rules": Rules(trailing_days=TRAILING, min_trailing_days=TRAILING)})


def by_name(config: Config, number: int) -> dict[str, Distribution]:
    return {found.name: found for found in measure_drift(config, day=day_of(number)).distributions}


def lengths_after_clicks(world: World, domain: str, number: int) -> list[int]:
    """The length of a user's sequence right after each moment of a day with a click of that user."""
    moments = {(user, when) for user, _, when in world.clicks(domain) if at(number) <= when < at(number + 1)}
    after = timedelta(microseconds=1)
    return [len(world.sequence(domain, user=user, before=when + after)) for user, when in moments]


def test_the_index_is_that_of_its_formula() -> None:
    random = np.random.default_rng(0)
    values, trailing = random.normal(0.5, 1, size=300), random.normal(size=1_000)
    edges = np.array([-1.0, 0.0, 1.0])
    expected = 0.0
    for low, high in ((-np.inf, -1), (-1, 0), (0, 1), (1, np.inf)):
        p = (sum(low < value <= high for value in values) + 0.5) / (300 + 4 * 0.5)
        q = (sum(low < value <= high for value in trailing) + 0.5) / (1_000 + 4 * 0.5)
        expected += (p - q) * np.log(p / q)
    assert stability_index(values, trailing, edges=edges) == pytest.approx(expected, rel=1e-12)
    assert stability_index(trailing, trailing, edges=edges) == 0
    assert stability_index(values, trailing, edges=edges) < stability_index(values + 1, trailing, edges=edges)


def test_the_lengths_are_those_of_the_days_clicks(world: World, config: Config) -> None:
    build_features(config, day=day_of(4))
    for domain in ("story", "product"):
        found = by_name(config, 4)[f"user_{domain}_sequence: clicks"]
        today = lengths_after_clicks(world, domain, 4)
        before = [length for number in (1, 2, 3) for length in lengths_after_clicks(world, domain, number)]
        edges = np.arange(1.0, max(today + before))
        assert (found.num_values, found.num_trailing) == (len(today), len(before))
        assert (found.median, found.trailing_median) == (np.median(today), np.median(before))
        assert found.stability_index == pytest.approx(stability_index(np.array(today), np.array(before), edges=edges))


def test_a_day_of_newcomers_drifts(world: World, config: Config) -> None:
    world.product_clicks[4] = [(1_000 + number, 8, at(4, second=number)) for number in range(200)]
    world.write(4)
    build_features(config, day=day_of(4))
    report = measure_drift(config, day=day_of(4))
    verdicts = {found.name: found.verdict for found in report.distributions}
    assert verdicts["user_product_sequence: clicks"] == "drifted"
    assert verdicts["user_story_sequence: clicks"] != "drifted"
    with pytest.raises(DataError, match="user_product_sequence: clicks") as caught:
        require_stable(report)
    assert "user_story_sequence" not in str(caught.value)


def test_a_model_of_other_norms_drifts_and_the_same_model_does_not(world: World, config: Config) -> None:
    build_features(config, day=day_of(4))
    deploy(world, day=day_of(0), seed=1)
    for number in (0, 1, 2, 3):
        publish_features(config, day=day_of(number))
    assert by_name(config, 4)["story_embedding: norm"].verdict == "not judged"  # the day is not published
    publish_features(config, day=day_of(4))
    same = by_name(config, 4)["story_embedding: norm"]
    assert (same.verdict, same.num_values, same.num_trailing) == ("stable", 30, 3 * 30)
    assert same.median == same.trailing_median

    deploy(world, day=day_of(4), seed=2, scale=2.0)
    publish_features(config, day=day_of(4))
    other = by_name(config, 4)["story_embedding: norm"]
    assert other.verdict == "drifted"
    assert other.median == pytest.approx(2 * other.trailing_median, rel=0.1)


def test_too_few_trailing_days_are_not_judged(world: World, config: Config) -> None:
    world.product_clicks[4] = [(1_000 + number, 8, at(4, second=number)) for number in range(200)]
    world.product_clicks[2] = []
    for number in (2, 4):
        world.write(number)
    build_features(config, day=day_of(4))
    found = by_name(config, 4)["user_product_sequence: clicks"]
    assert found.verdict == "not judged"
    assert found.stability_index is not None
    assert found.stability_index > 0.25
    require_stable(measure_drift(config, day=day_of(4)))


def test_the_report_is_json_without_nan_and_is_shown_uncut(
    world: World, config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    build_features(config, day=day_of(4))
    report = measure_drift(config, day=day_of(4))
    text = (world.folder / f"work/features/drift/dt={day_of(4)}.json").read_text()

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(text, parse_constant=refuse)
    assert (read["day"], read["trailing_days"]) == (str(day_of(4)), TRAILING)
    assert [found["name"] for found in read["distributions"]] == [found.name for found in report.distributions]
    assert read["distributions"][-1]["median"] is None  # nothing is published

    screen = io.StringIO()
    print_drift(report, console=Console(file=screen, width=80))
    assert [found.name for found in report.distributions if f" {found.name} " not in screen.getvalue()] == []
    print_drift(report, console=table_console())
    logged = capsys.readouterr().out
    assert ("…" in logged, "stability index" in logged) == (False, True)


def test_a_day_that_is_not_built_is_refused(world: World, config: Config) -> None:
    build_features(config, day=day_of(2))
    with pytest.raises(MissingPartition, match="not built"):
        measure_drift(config, day=day_of(3))
    assert not (world.folder / "work/features/drift").exists()
