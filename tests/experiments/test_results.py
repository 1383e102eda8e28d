"""Results on the disk: what is written comes back, and nothing else is taken for it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from storyrec.errors import DataError
from storyrec.experiments.results import Results, Run, read_results, write_results

RESULTS = Results(
    experiment="table4",
    data={"name": "logs # of a marketplace", "counts": {"stories": 20}, "windows": {"reasons": ["a", "b"]}},
    runs=(
        Run("DIN", "single-domain", 0, {"per_user_auc": 0.1 + 0.2, "num_users": 7}, 12.5, 900, 3, {"batch_size": 64}),
        Run("V+T, w. DUAL", "cross-domain", 1, {"per_user_auc": 0.625, "hr_at_5": 0.5}, 1e3, 1000, 0, {}),
    ),
    references={"oracle": {"per_user_auc": 0.75, "num_users": 7}, "popularity": {"per_user_auc": 0.5}},
    notes=('a "small" run, not converged\nat all',),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_results(RESULTS, tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_either_file_alone_gives_all_of_it_back(folder: Path, name: str) -> None:
    alone = folder / "elsewhere" / name
    alone.parent.mkdir()
    alone.write_bytes((folder / name).read_bytes())
    assert read_results(alone) == RESULTS
    assert read_results(alone.parent) == RESULTS


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_what_was_read_is_written_to_the_same_bytes(folder: Path, name: str) -> None:
    write_results(read_results(folder / name), folder / "again")
    for written in ("results.csv", "results.json"):
        assert (folder / "again" / written).read_bytes() == (folder / written).read_bytes()


@pytest.mark.parametrize("name", ["results.csv", "results.json"])
def test_a_figure_that_is_no_number_stays_none_and_a_missing_one_missing(tmp_path: Path, name: str) -> None:
    unscored = replace(RESULTS.runs[0], metrics={"per_user_auc": float("nan")})
    write_results(replace(RESULTS, runs=(unscored, RESULTS.runs[1])), tmp_path)
    first, second = read_results(tmp_path / name).runs
    assert list(first.metrics) == ["per_user_auc"]
    assert math.isnan(first.metrics["per_user_auc"])
    assert second == RESULTS.runs[1]


def test_json_is_json_even_with_figures_that_are_no_number(tmp_path: Path) -> None:
    unscored = replace(RESULTS.runs[0], metrics={"per_user_auc": float("nan")})
    write_results(replace(RESULTS, runs=(unscored,)), tmp_path)
    document = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    assert document["runs"][0]["metrics"] == {"per_user_auc": None}


def test_pandas_reads_a_line_per_run_and_reference(folder: Path) -> None:
    frame = pd.read_csv(folder / "results.csv", comment="#")
    assert frame["method"].tolist() == ["DIN", "V+T, w. DUAL", "oracle", "popularity"]
    assert frame["group"].tolist() == ["single-domain", "cross-domain", "reference", "reference"]
    assert frame["per_user_auc"].tolist() == pytest.approx([0.3, 0.625, 0.75, 0.5])
    assert frame["seed"].tolist()[:2] == [0, 1]
    assert frame["seed"].isna().tolist() == [False, False, True, True]
    assert set(frame["experiment"]) == {"table4"}
    assert set(frame["format"]) == {1}


def test_results_of_another_format_are_refused(folder: Path) -> None:
    as_csv, as_json = folder / "results.csv", folder / "results.json"
    as_csv.write_text(as_csv.read_text().replace("table4,1,", "table4,7,"))
    as_json.write_text(as_json.read_text().replace('"format": 1', '"format": 7'))
    for path in (as_csv, as_json):
        with pytest.raises(DataError, match="format 7") as caught:
            read_results(path)
        assert "format 1" in caught.value.expected
        assert caught.value.where == str(path)
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"method,seed\nDIN,0\n"),
        ("a.csv", b""),
        ("a.csv", b"\xff\xfe\x00"),
        ("a.csv", b'# storyrec experiment: {"data": {}, "notes": []}\n'),
        ("a.csv", b'# storyrec experiment: {"data": {}, "notes": []}\nmethod,seed\nDIN,0\n'),
        ("a.json", b"[]"),
        ("a.json", b"{}"),
        ("a.json", b'{"format": 1}'),
        ("a.json", b'{"format": 1, "exp'),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_results(tmp_path / name)
    assert caught.value.where == str(tmp_path / name)
    assert "results.csv" in caught.value.expected


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"results\.csv"):
        read_results(tmp_path)


def test_a_line_that_was_cut_off_is_refused(folder: Path) -> None:
    text = (folder / "results.csv").read_text()
    (folder / "results.csv").write_text(text[: text.index(",1000,")])
    with pytest.raises(DataError):
        read_results(folder / "results.csv")


def test_a_run_that_is_there_twice_is_refused(folder: Path) -> None:
    path = folder / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[2]]))
    with pytest.raises(DataError, match="'DIN' with seed 0 is there twice"):
        read_results(path)


def test_two_experiments_in_one_file_are_refused(folder: Path) -> None:
    path = folder / "results.csv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], lines[-1].replace("table4", "table6")]))
    with pytest.raises(DataError, match="2 experiments"):
        read_results(path)
