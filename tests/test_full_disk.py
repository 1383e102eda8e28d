"""Steps whose disk is full halfway: one clear error, the old state stays, and the same command finishes later."""

import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
import tomli_w

from builders import planted_config, write_validated
from full_disk import full_disk
from storyrec.analysis.analyze import analyze
from storyrec.analysis.report import write_analysis
from storyrec.config import Config, Locations, load_config
from storyrec.data.build import build_dataset
from storyrec.data.dataset import Dataset
from storyrec.errors import EXIT_CODE, StorageError
from storyrec.logs.simulate import simulate
from storyrec.logs.validate import validate_logs

FIRST_DAY = date(2026, 3, 1)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file but the data docs."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("data_docs/")}


def simulated(folder: Path) -> Callable[[], object]:
    return lambda: simulate(
        out_logs=folder / "logs",
        out_truth=folder / "truth",
        num_users=12,
        num_days=3,
        first_day=FIRST_DAY,
        seed=7,
    )


def test_simulate_leaves_nothing_and_starts_again(tmp_path: Path) -> None:
    run = simulated(tmp_path)
    with full_disk(60_000), pytest.raises(StorageError, match="cannot write"):  # events fit, catalogs do not
        run()
    assert list(tmp_path.iterdir()) == []
    run()
    assert (tmp_path / "logs" / "_marketplace.json").is_file()


def test_validate_logs_keeps_what_other_days_hold_and_finishes_later(tmp_path: Path) -> None:
    simulated(tmp_path)()
    locations = Locations(logs=str(tmp_path / "logs"), work=str(tmp_path / "work"))
    config = Config(locations=locations)
    validate_logs(config, day=FIRST_DAY)
    first = files_of(tmp_path / "work")
    day = FIRST_DAY + timedelta(days=1)
    catalog = max(path.stat().st_size for path in (tmp_path / "logs" / "products" / f"dt={day}").iterdir())
    with full_disk(catalog // 2), pytest.raises(StorageError, match="File too large"):
        validate_logs(config, day=day)
    halfway = files_of(tmp_path / "work")
    assert {name: halfway[name] for name in first} == first
    assert f"reports/dt={day}.json" not in halfway
    validate_logs(config, day=day)
    assert f"reports/dt={day}.json" in files_of(tmp_path / "work")


def test_build_dataset_keeps_the_old_one(tmp_path: Path) -> None:
    config = planted_config(tmp_path)
    day = write_validated(tmp_path, num_users=20, num_days=4, items_per_day=10)
    out = tmp_path / "dataset"
    build_dataset(config, day=day - timedelta(days=1), out=out)
    before = files_of(out)
    with full_disk(max(map(len, before.values())) // 2), pytest.raises(StorageError, match="cannot write"):
        build_dataset(config, day=day, out=out)
    assert files_of(out) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    build_dataset(config, day=day, out=out)
    assert Dataset.load(out).day == day


def test_build_dataset_says_that_a_disk_is_full_whose_files_may_have_holes(tmp_path: Path) -> None:
    """A limit on files, as above, is met when one grows; a full disk only when a page of the map is touched."""
    config = planted_config(tmp_path)
    day = write_validated(tmp_path, num_users=20, num_days=4, items_per_day=100)
    build_dataset(config, day=day, out=tmp_path / "whole")
    largest = max(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    settings, disk = tmp_path / "my.toml", tmp_path / "disk"
    settings.write_text(tomli_w.dumps(config.model_dump(mode="json")))
    disk.mkdir()
    build = f"{sys.executable} -m storyrec.cli build-dataset --day {day} --config {settings} --out {disk}/dataset"
    mount = f"mount -t tmpfs -o size={largest // 2} tmpfs {disk}"
    again = f"mount -o remount,size=1g {disk} && {build} && ls {disk}"
    script = f"{mount} || exit 99; {build}; echo rc $?; ls -A {disk}; {again}"
    # the disk is there for these commands alone
    done = subprocess.run(["unshare", "--mount", "--map-root-user", "sh", "-c", script], capture_output=True, text=True)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no disk may be mounted here: {done.stderr.strip()}")
    assert done.stdout.splitlines() == [f"rc {EXIT_CODE}", "dataset"], done.stderr
    assert "storyrec: cannot write this path: No space left on device" in done.stderr


def test_analyze_leaves_all_its_files_or_none(tmp_path: Path) -> None:
    simulated(tmp_path)()
    out = tmp_path / "analysis"
    run_analyze(tmp_path / "logs", out, seed=1)
    before = files_of(out)
    room = max(map(len, before.values())) // 2  # for figures and tables, not for the page
    for place, left in ((out, before), (tmp_path / "new", {})):
        with full_disk(room), pytest.raises(StorageError, match=r"cannot write.*\n.*analysis\.html"):
            run_analyze(tmp_path / "logs", place, seed=2)
        assert files_of(place) == left
    # even the events, in the temporary folder, are too large
    with full_disk(10_000), pytest.raises(StorageError, match="cannot measure the logs"):
        run_analyze(tmp_path / "logs", out, seed=2)
    assert files_of(out) == before
    run_analyze(tmp_path / "logs", out, seed=2)
    assert all(content != before[name] for name, content in files_of(out).items() if name != "analysis.md")


def run_analyze(data: Path, out: Path, *, seed: int) -> None:
    settings = load_config(None)
    found = analyze(
        data,
        history_days=settings.windows.history_days,
        sequence_length=settings.features.sequence_length,
        vocabulary_size=settings.features.vocabulary_size,
        min_word_count=settings.features.min_word_count,
        max_title_words=settings.features.max_title_words,
        seed=seed,
    )
    write_analysis(found, out)
