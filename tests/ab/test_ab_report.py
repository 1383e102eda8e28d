"""What an analysis says and writes, for tests that went well and for those that did not."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_days import draw_days, observed_of
from rich.console import Console

from full_disk import full_disk
from storyrec.ab.analyze import judge
from storyrec.ab.logs import Observed
from storyrec.ab.report import JSON, MARKDOWN, PAGE, markdown_analysis, print_analysis, render_analysis, write_analysis
from storyrec.ab.verdict import Outcome, conclude
from storyrec.errors import StorageError


def draw_observed(*, lift: float = 0.0, num_users: int = 1_500, num_days: int = 7) -> Observed:
    rng = np.random.default_rng(3)
    sums_UDK = draw_days(rng, num_users=num_users, num_days=num_days + 3)
    is_treatment_U = np.arange(num_users) % 2 == 0
    more = np.where(is_treatment_U[:, None], rng.binomial(sums_UDK[:, 3:, 1].astype(int), abs(lift)), 0)
    sums_UDK[:, 3:, 1] += np.sign(lift) * more
    sums_UDK[..., 2] = 20 * sums_UDK[..., 1]
    return replace(observed_of(sums_UDK[:, 3:], is_treatment_U), before_UK=sums_UDK[:, :3].sum(axis=1), has_dwell=True)


def test_a_large_lift_is_deployed_whenever_one_looks(tmp_path: Path) -> None:
    analysis = judge(draw_observed(lift=0.5))
    assert (analysis.verdict.outcome, analysis.verdict.is_final) == (Outcome.BETTER, True)
    assert analysis.verdict.changed == ("click_rate", "stories_viewed", "dwell_seconds")
    assert analysis.verdict.recommendation.startswith("Deploy the treatment")
    assert "may end today" in analysis.verdict.recommendation
    assert analysis.warnings == ()
    write_analysis(analysis, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted((JSON, PAGE, MARKDOWN))
    page, document = (tmp_path / "out" / PAGE).read_text(), json.loads((tmp_path / "out" / JSON).read_text())
    assert page.count("<svg") == 1 + 3 + 1 + 3
    assert "src=" not in page
    assert "<h1>The treatment is better</h1>" in page
    clicks = document["metrics"][0]
    assert clicks["adjusted"]["lift"]["low"] > 0.3
    assert f"{clicks['adjusted']['lift']['estimate']:+.1%}" in page
    assert page.count('<td class="n">better</td>') == 3
    assert f"{clicks['treatment']:.2%}" in (tmp_path / "out" / MARKDOWN).read_text()
    assert clicks["looks"][0]["day"] == "2026-03-01"
    assert 700 < sum(clicks["distribution"]["control"]) <= 750  # a few were shown nothing


def test_a_small_lift_holds_only_where_the_test_was_to_end() -> None:
    analysis = judge(draw_observed(lift=0.1))
    assert (analysis.verdict.outcome, analysis.verdict.is_final) == (Outcome.BETTER, False)
    assert "if the test was planned to end today" in analysis.verdict.recommendation


@pytest.mark.parametrize(("p_value", "outcome"), [(0.016, Outcome.BETTER), (0.018, Outcome.OPEN)])
def test_three_metrics_are_three_chances_to_be_wrong(p_value: float, outcome: Outcome) -> None:
    clicks, *others = judge(draw_observed(lift=0.1)).metrics
    assert clicks.effect is not None
    clicks = replace(clicks, effect=replace(clicks.effect, p_value=p_value), adjusted=None, looks=())
    dull = [replace(other, effect=replace(clicks.effect, p_value=0.9), adjusted=None, looks=()) for other in others]
    verdict = conclude([clicks, *dull], is_mismatch=False)
    assert (verdict.outcome, verdict.is_final) == (outcome, False)
    analysis = replace(judge(draw_observed(lift=0.1)), metrics=(clicks, *dull), verdict=verdict)
    said = io.StringIO()
    print_analysis(analysis, console=Console(file=said, width=500))
    assert said.getvalue().count("No difference is shown") == (outcome == Outcome.OPEN)
    says = "better" if outcome == Outcome.BETTER else "a hint, no proof: of several metrics one looks so by chance"
    page = render_analysis(analysis)
    assert page.count(f'<td class="n">{says}</td>') == 1
    assert page.count('<td class="n">no difference shown</td>') == 2


def test_a_loss_keeps_the_control() -> None:
    verdict = judge(draw_observed(lift=-0.5)).verdict
    assert verdict.outcome == Outcome.WORSE
    assert verdict.recommendation.startswith("Keep the control")


def test_no_lift_is_open() -> None:
    verdict = judge(draw_observed()).verdict
    assert (verdict.outcome, verdict.changed) == (Outcome.OPEN, ())


def test_better_and_worse_at_once_is_mixed() -> None:
    observed = draw_observed(lift=0.5)
    sums_UDK = observed.sums_UDK.copy()
    sums_UDK[observed.is_treatment_U, :, 2] *= 0.3
    verdict = judge(replace(observed, sums_UDK=sums_UDK)).verdict
    assert verdict.outcome == Outcome.MIXED
    assert verdict.changed == ("click_rate", "stories_viewed", "dwell_seconds")


def test_a_sample_ratio_mismatch_comes_first_and_decides() -> None:
    observed = draw_observed(lift=0.5)
    analysis = judge(observed, treatment_share=0.6)
    assert analysis.sample_ratio.p_value < 1e-10
    assert analysis.verdict.outcome == Outcome.INVALID
    assert analysis.warnings[0].startswith("Sample-ratio mismatch: 750 users in the control and 750 in the treatment")
    page = render_analysis(analysis)
    assert page.index("Sample-ratio mismatch") < page.index("<h1>This test cannot be trusted") < page.index("<table>")
    assert page.count('<td class="n">nothing can be said</td>') == 3
    assert "distrusted" in page[page.index("<h1>") :]
    assert not judge(observed, treatment_share=0.5).sample_ratio.is_mismatch
    fewer = replace(observed, is_treatment_U=np.arange(1_500) < 400)
    assert not judge(fewer, treatment_share=0.27).sample_ratio.is_mismatch


def test_the_chi_square_is_that_of_the_textbook() -> None:
    observed = replace(draw_observed(), is_treatment_U=np.arange(1_500) < 800)
    ratio = judge(observed).sample_ratio
    assert (ratio.num_control, ratio.num_treatment, ratio.met_treatment[-1]) == (700, 800, 800)
    assert ratio.p_value == pytest.approx(0.009823, rel=1e-3)  # chi-square 100^2 / 1500 = 6.667, one degree
    assert not ratio.is_mismatch  # one test in a hundred is so by chance
    farther = judge(replace(observed, is_treatment_U=np.arange(1_500) < 820)).sample_ratio
    assert farther.is_mismatch  # chi-square 140^2 / 1500 = 13.07, three in ten thousand


def test_arms_that_differed_before_are_warned_of() -> None:
    observed = draw_observed()
    assert observed.before_UK is not None
    before_UK = observed.before_UK * np.where(observed.is_treatment_U, 2, 1)[:, None]
    assert any(
        "before the test already" in warning for warning in judge(replace(observed, before_UK=before_UK)).warnings
    )


def test_what_cannot_be_compared_is_a_row_of_its_own() -> None:
    observed = draw_observed(num_users=60, num_days=2)
    sums_UDK = observed.sums_UDK * [1, 1, 0]
    analysis = judge(replace(observed, sums_UDK=sums_UDK, before_UK=None))
    assert len(analysis.metrics) == 3
    assert (analysis.metrics[2].effect, analysis.metrics[2].looks) == (None, ())
    assert [warning.split()[0] for warning in analysis.warnings] == ["An", "The", "Nothing"]
    page = render_analysis(analysis)
    assert "No day could be looked at" in page
    assert page.index("<h1>") < page.index("An arm has fewer than")  # what is no reason to distrust it comes after
    assert "| dwell time per user | 0.0 s | 0.0 s | – |" in markdown_analysis(analysis)
    console = Console(width=220, file=io.StringIO(), record=True)
    print_analysis(analysis, console=console)
    assert "Warning: Nothing can be said of dwell time per user" in console.export_text()


def test_without_dwell_times_there_are_two_metrics() -> None:
    assert [m.metric.name for m in judge(replace(draw_observed(), has_dwell=False)).metrics] == [
        "click_rate",
        "stories_viewed",
    ]


def test_a_full_disk_leaves_the_page_of_before(tmp_path: Path) -> None:
    analysis = judge(draw_observed())
    write_analysis(analysis, tmp_path)
    old = (tmp_path / PAGE).read_bytes()
    with full_disk(20_000), pytest.raises(StorageError, match="cannot write"):
        write_analysis(judge(draw_observed(lift=0.5)), tmp_path)
    assert (tmp_path / PAGE).read_bytes() == old
    assert {path.name for path in tmp_path.iterdir()} == {JSON, PAGE, MARKDOWN}
