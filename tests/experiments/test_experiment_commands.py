"""`storyrec experiment` as a user meets it: folders, exit codes and words."""

import csv
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from experiment_world import contents, simulate_marketplace

from storyrec.cli import main
from storyrec.errors import ConfigError
from storyrec.experiments.commands import SMALL_SEEDS, choose
from storyrec.experiments.methods import TABLE_4, TABLE_6
from storyrec.experiments.results import read_results


@dataclass(frozen=True)
class Answer:
    """What a command ended with and said."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def storyrec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`storyrec experiment ...` in an empty folder, in this process: starting one takes many seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STORYREC_CONFIG", raising=False)

    def run(*arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["storyrec", "experiment", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


def test_methods_are_chosen_by_name_in_the_order_of_the_table() -> None:
    assert [method.name for method in choose(TABLE_4, " ADAPT,MF , pi-Net,")] == ["MF", "pi-Net", "ADAPT"]
    assert list(choose(TABLE_6, "")) == list(TABLE_6)
    with pytest.raises(ConfigError) as caught:
        choose(TABLE_4, "MF,mf,FM")
    assert caught.value.found == "unknown method: mf, FM"
    assert caught.value.expected == "among " + ", ".join(method.name for method in TABLE_4)


@pytest.mark.parametrize("table", ["table4", "table6", "beyond", "table5", "tune"])
def test_an_unknown_method_is_refused_before_anything_is_written(table: str, storyrec: Command, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    answer = storyrec(table, "data", "--methods", "ADAPT,FM", "--out", "out")
    assert answer.code == 2
    assert "storyrec: unknown method: FM" in answer.err
    assert "ADAPT" in answer.err.split("expected:")[1]
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()


def test_what_is_no_data_root_is_refused(storyrec: Command, tmp_path: Path) -> None:
    answer = storyrec("table4", "nowhere", "--out", "out")
    assert answer.code == 2
    assert "there are no impressions at the place of the data" in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()


def test_results_of_another_version_are_refused(storyrec: Command, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps({"format": 99, "experiment": "table4", "runs": []}))
    answer = storyrec("report", "results.json", "--out", "out")
    assert answer.code == 2
    assert "the results are of format 99" in answer.err
    assert "run the experiment again with this version" in answer.err
    assert "Traceback" not in answer.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_small_table_end_to_end_and_again(storyrec: Command, tmp_path: Path) -> None:
    simulate_marketplace(tmp_path, num_users=100)
    (tmp_path / "settings.toml").write_text("[model]\nwidth = 16\nhead_widths = [16, 8]\n")
    command = ("table4", "logs", "--methods", "MF,YouTubeNet", "--small", "--jobs", "1", "--config", "settings.toml")
    first = storyrec(*command, "--out", "out")
    assert first.code == 0, first.err
    assert first.out == "out/small/table4/report.html\n"
    last = 2 * SMALL_SEEDS
    assert f"methods {last}/{last}: YouTubeNet, seed {SMALL_SEEDS - 1}" in first.err

    table = tmp_path / "out/small/table4"
    found = read_results(table / "results.json")
    assert [(run.method, run.seed) for run in found.runs] == [
        (name, seed) for name in ("MF", "YouTubeNet") for seed in range(SMALL_SEEDS)
    ]
    written_twice = read_results(table / "results.csv")
    assert (found.runs, found.data, found.notes) == (written_twice.runs, written_twice.data, written_twice.notes)
    for name, figures in written_twice.references.items():
        assert found.references[name] == pytest.approx(figures, nan_ok=True)  # popularity has no log loss
    with (table / "results.csv").open() as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    assert [row["method"] for row in rows if row["group"] == "reference"] == ["oracle", "popularity", "title probe"]
    assert {run.settings["max_epochs"] for run in found.runs} == {2}
    assert found.notes == ("a small run: short trainings, not converged",)
    page = (table / "report.html").read_text()
    assert "YouTubeNet" in page
    assert f"{found.data['counts']['holdout']}" in page or f"{found.data['counts']['holdout']:,}" in page

    runs, written = contents(tmp_path / "out/small/runs"), contents(table)
    started = time.monotonic()
    again = storyrec(*command, "--out", "out")
    assert again.code == 0
    assert "methods" not in again.err  # nothing was trained
    assert time.monotonic() - started < 60
    assert contents(tmp_path / "out/small/runs") == runs
    assert {name: content for name, (content, _) in contents(table).items()} == {
        name: content for name, (content, _) in written.items()
    }
    assert not (tmp_path / "out/table4").exists()

    # the page can be made again from the file alone
    remade = storyrec("report", "out/small/table4/results.csv", "--out", "remade")
    assert remade.code == 0
    assert (tmp_path / "remade/report.html").read_text() == page

    # other settings are not mixed in
    other = storyrec("table4", "logs", "--methods", "MF", "--small", "--out", "out")
    assert other.code == 2
    assert "model.width was 16, now 64" in other.err
    assert contents(tmp_path / "out/small/runs") == runs
