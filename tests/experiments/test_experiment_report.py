"""The report of an experiment: what a reader sees in the page and in the Markdown table."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest

from storyrec.errors import DataError
from storyrec.experiments.report import markdown_table, remake_report, render_experiment, write_report
from storyrec.experiments.results import Results, Run

COUNTS = {"num_impressions": 152_340, "num_users": 10_342, "num_users_left_out": 1_203, "num_clicks_left_out": 312}


def figures(auc: float) -> dict[str, float]:
    """Figures that all follow from one; the lower the log loss, the higher the rest."""
    named = {"per_user_auc": auc, "hr_at_5": auc - 0.1, "ndcg_at_5": auc - 0.3, "log_loss": 1 - auc}
    return named | {"global_auc": auc + 0.02} | COUNTS


def runs(method: str, values: Sequence[float], *, group: str = "cross-domain") -> tuple[Run, ...]:
    return tuple(
        Run(method, group, seed, figures(auc), 100.0 * (seed + 1), 1_234_567, 4, {"learning_rate": 0.003})
        for seed, auc in enumerate(values)
    )


def make_results(experiment: str = "table4", **methods: Sequence[float]) -> Results:
    """Results in which ADAPT is significantly better than BST, and DIN the last, unless methods are given."""
    if not methods:
        return Results(
            experiment,
            {"name": "a marketplace", "day": "2026-03-28", "counts": {"stories": 20_000}},
            (
                *runs("DIN", [0.60, 0.61, 0.59], group="single-domain"),
                *runs("BST", [0.640, 0.641, 0.639], group="single-domain"),
                *runs("ADAPT", [0.660, 0.661, 0.6592]),
            ),
            {"oracle": figures(0.7), "popularity": figures(0.55)},
            ("knobs were frozen",),
        )
    found = [run for method, values in methods.items() for run in runs(method.replace("_", " "), values)]
    return Results(experiment, {}, tuple(found), {}, ())


def row(page: str, method: str) -> list[str]:
    """The cells of the first table row of a method, as HTML without classes and blanks."""
    found = re.search(rf"<tr><td>{re.escape(method)}</td>(.*?)</tr>", page, re.DOTALL)
    assert found, f"no row of {method}"
    cells = re.findall(r'<td class="([^"]*)">(.*?)</td>', found[1], re.DOTALL)
    return [
        ("best " if "best" in names.split() else "") + re.sub(r"</?(span|small)[^>]*>", " ", c) for names, c in cells
    ]


def words(page: str) -> str:
    """The text of a page, one blank between words."""
    body = re.sub(r"<(style|svg).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", "", body)).split())


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|\n").split("|")]


def test_best_is_bold_and_starred_second_underlined_the_rest_plain() -> None:
    page = render_experiment(make_results())
    adapt, bst, din = (row(page, method)[0].split() for method in ("ADAPT", "BST", "DIN"))
    assert adapt == ["best", "0.6601", "*", "±", "0.0009"]
    assert bst == ["<u>0.6400</u>", "±", "0.0010"]
    assert din == ["0.6000", "±", "0.0100"]


def test_markdown_marks_the_same() -> None:
    lines = {cells(line)[1]: cells(line) for line in markdown_table(make_results()).splitlines()[:8] if "|" in line}
    assert lines["ADAPT"][2] == r"**0.6601 ± 0.0009**\*"
    assert lines["BST"][2] == "<u>0.6400 ± 0.0010</u>"
    assert lines["DIN"][2] == "0.6000 ± 0.0100"


def test_no_star_where_it_may_be_chance() -> None:
    results = make_results(ADAPT=[0.66, 0.60, 0.65], BST=[0.60, 0.65, 0.61])
    page = render_experiment(results)
    assert row(page, "ADAPT")[0].split() == ["best", "0.6367", "±", "0.0321"]
    assert "it may be chance" in words(page)
    assert r"\* |" not in markdown_table(results)


def test_one_common_seed_gives_no_star_but_a_note() -> None:
    results = make_results(ADAPT=[0.66], BST=[0.60, 0.61, 0.60])
    text = words(render_experiment(results))
    assert "ADAPT: 1 of 3 seeds" in text
    assert "per-user AUC: no star can be given, ADAPT and BST have fewer than two seeds in common" in text


def test_published_figures_stand_beside_ours() -> None:
    assert row(render_experiment(make_results()), "BST")[4:] == [
        "0.6180", "0.5095", "0.3189", "0.6370", "0.5245", "0.3281",
    ]  # fmt: skip
    head, _, *lines = markdown_table(make_results()).splitlines()
    by_name = dict(zip(cells(head), cells(lines[1]), strict=True))
    assert by_name["Method"] == "BST"
    assert by_name["SRD-1 per-user AUC"] == "0.6180"
    assert by_name["SRD-2 NDCG@5"] == "0.3281"


def test_ablations_stand_beside_the_paper_s_ablations() -> None:
    page = render_experiment(make_results("table6", **{"V w/o DUAL": [0.6, 0.61], "ADAPT": [0.66, 0.65]}))
    assert row(page, "V w/o DUAL")[3:5] == ["0.6295", "0.5261"]


@pytest.mark.parametrize("experiment", ["beyond", "amazon", "placebo", "something else"])
def test_no_published_column_where_the_paper_has_none(experiment: str) -> None:
    results = replace(make_results(), experiment=experiment)
    page, table = render_experiment(results), markdown_table(results)
    assert "published" not in words(page).lower()
    assert "SRD" not in page + table
    assert len(row(page, "BST")) == (3 if experiment == "placebo" else 4)  # with the share of the headroom


def test_share_of_the_headroom_only_where_the_oracle_is_known() -> None:
    results = make_results()
    assert unescape(row(render_experiment(results), "BST")[3]) == "70\N{NO-BREAK SPACE}%"  # .14 of .2
    blind = replace(results, references={"popularity": figures(0.55)})
    page = render_experiment(blind)
    assert "oracle" not in words(page).lower()
    assert row(page, "BST")[3] == "0.6180"
    assert row(page, "popularity")[0].strip() == "0.5500"


def test_methods_stay_in_the_order_of_the_runs_in_tables_and_in_the_plot() -> None:
    page = render_experiment(make_results())
    table, plot = page[: page.index("<figure>")], page[page.index("<figure>") :]
    assert re.findall(r"<tr><td>(DIN|BST|ADAPT)</td>", table) == ["DIN", "BST", "ADAPT"]
    assert re.findall(r"<!-- (DIN|BST|ADAPT) -->", plot)[:3] == ["DIN", "BST", "ADAPT"]


def test_every_method_is_tested_against_adapt_and_an_original_against_the_paper_s_version() -> None:
    table = markdown_table(
        make_results("beyond", **{"ADAPT": [0.7, 0.71, 0.72], "DIN": [0.6, 0.61, 0.625], "DIN (original)": [0.65] * 3})
    )
    compared = [cells(line) for line in table[table.index("| Method | against") :].splitlines()[2:]]
    assert [line[:3] for line in compared] == [
        ["DIN", "ADAPT", "−0.0983"],
        ["DIN (original)", "DIN", "+0.0383"],
    ]
    assert compared[1][3] == "p = 0.034"  # .05 .04 .025: t = 5.28 with two degrees of freedom


def test_placebos_are_compared_within_their_group_alone() -> None:
    groups: Mapping[str, Sequence[Run]] = {
        "as it is": (*runs("ADAPT", [0.7, 0.71], group="as it is"), *runs("BST", [0.6, 0.6], group="as it is")),
        "permuted": (*runs("ADAPT", [0.49, 0.5], group="permuted"), *runs("BST", [0.5, 0.52], group="permuted")),
    }
    table = markdown_table(Results("placebo", {}, tuple(run for group in groups.values() for run in group), {}, ()))
    marked = [(cells(line)[:2], cells(line)[2][:2]) for line in table.splitlines()[2:6]]
    assert marked == [
        (["as it is", "ADAPT"], "**"),
        (["as it is", "BST"], "<u"),
        (["permuted", "ADAPT"], "<u"),
        (["permuted", "BST"], "**"),
    ]
    assert "| permuted | BST | ADAPT | +0.0150 |" in table


def test_the_order_is_held_against_the_paper_s() -> None:
    results = make_results(DIN=[0.70, 0.701, 0.702], BST=[0.60, 0.602, 0.601], ADAPT=[0.65, 0.60, 0.71])
    text = words(render_experiment(results))
    assert "Of the 3 pairs that the paper orders alike on SRD-1 and SRD-2, 2 stand the other way round here" in text
    assert "1 of them significantly" in text
    assert "DIN above BST (p < 0.001)" in markdown_table(results)


def test_a_lower_log_loss_is_marked_best() -> None:
    page = render_experiment(make_results())
    others = page[page.index("Other figures") :]
    assert row(others, "ADAPT")[1].split() == ["best", "0.3399", "*", "±", "0.0009"]


def test_who_was_left_out_is_counted() -> None:
    text = words(render_experiment(make_results()))
    assert "152,340 held-out impressions" in text
    assert "over the 10,342 users" in text
    assert "1,203 users with only one of them are left out" in text
    assert "leave out 312 clicks" in text


def test_methods_that_were_judged_on_fewer_users_are_named() -> None:
    first, *rest = make_results().runs
    fewer = replace(first, metrics={**first.metrics, "num_users": 9_999})
    text = words(render_experiment(replace(make_results(), runs=(fewer, *rest))))
    assert "DIN: 152,340 held-out impressions. Per-user AUC is a mean over the 9,999 users" in text


def test_costs_settings_seeds_and_notes_are_told() -> None:
    page = render_experiment(make_results())
    assert row(page[page.index("What it costs") :], "BST") == ["1,234,567", "200", "4, 4, 4"]
    assert row(page[page.index("Settings of the methods") :], "BST") == ["0.003"]
    assert "<td>0, 1, 2</td>" in page
    assert "Note: knobs were frozen." in words(page)
    assert "counts.stories20,000" in words(page).replace(" ", "")


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows() -> None:
    page = render_experiment(replace(make_results(), notes=("<script>alert(1)</script>",)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=[\"']?(https?:|//)", page)
    assert "<link" not in page


def test_one_method_with_one_seed_has_a_report() -> None:
    page = render_experiment(make_results(ADAPT=[0.66]))
    assert row(page, "ADAPT")[0].split() == ["best", "0.6600"]
    assert "nan" not in words(page).lower()
    assert "Is the order" not in page
    assert "nan" not in markdown_table(make_results(ADAPT=[0.66]))


def test_matching_is_ranked_by_held_out_pairs_beside_the_published_rows() -> None:
    def matching(part: str, value: float) -> dict[str, float]:
        return {part + name: value for name in ("hit_at_5", "recall_at_5", "ndcg_at_5", "auc_top_500")}

    found = [
        Run(
            method,
            "",
            seed,
            matching("in_sample_", 1 - value * growth) | matching("held_out_", value * growth),
            0.0,
            1,
            0,
            {},
        )
        for method, value in {"w/o DUAL": 0.2, "w. DUAL": 0.4}.items()
        for seed, growth in enumerate((1.0, 1.1))
    ]
    results = Results("table7", {}, tuple(found), {"raw covers": matching("held_out_", 0.3)}, ())
    page = render_experiment(results)
    assert "w. DUAL is best with a held-out hit@5 of 0.4200" in words(page)
    assert row(page, "w/o DUAL")[4].split()[:2] == ["best", "0.7900"]
    assert [cell.strip() for cell in row(page, "w. DUAL, published, SRD-1")[4:]] == ["–", "0.3294", "0.3221", "0.9196"]
    assert "How far" not in page


def test_operations_stand_beside_the_published_ones_fewest_best() -> None:
    found = [
        Run(method, "", 0, {"training_all": value, "inference_all": value / 2}, 0.0, 1, 0, {})
        for method, value in {"pi-Net": 80.0, "ADAPT": 60.0}.items()
    ]
    page = render_experiment(Results("table5", {}, tuple(found), {}, ()))
    assert [cell.strip() for cell in row(page, "ADAPT")] == ["best 60.0000", "best 30.0000", "69.0700", "38.9700"]
    assert "left out" not in words(page)


def test_placebos_have_no_share_of_another_world_s_headroom() -> None:
    results = replace(make_results(), experiment="placebo")
    page = render_experiment(results)
    assert len(row(page, "BST")) == 3
    assert "for reference, on the data as it is" in words(page)


def test_the_report_is_made_again_from_the_csv_alone(tmp_path: Path) -> None:
    write_report(make_results(), tmp_path / "first")
    alone = tmp_path / "alone.csv"
    alone.write_bytes((tmp_path / "first" / "results.csv").read_bytes())
    remake_report(alone, out=tmp_path / "again")
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["report.html", "results.csv", "results.json", "table.md"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


def test_a_foreign_file_overwrites_nothing(tmp_path: Path) -> None:
    write_report(make_results(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    foreign = tmp_path / "results.csv"
    foreign.write_text("method,seed\n")
    with pytest.raises(DataError):
        remake_report(foreign, out=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before | {"results.csv": b"method,seed\n"}


@pytest.mark.parametrize("bad", [(), (replace(runs("DIN", [0.6])[0], metrics={}),)])
def test_results_without_figures_are_refused_and_nothing_is_written(tmp_path: Path, bad: tuple[Run, ...]) -> None:
    with pytest.raises(DataError) as caught:
        write_report(replace(make_results(), runs=bad), tmp_path / "out")
    assert caught.value.remedy
    assert not (tmp_path / "out").exists()
