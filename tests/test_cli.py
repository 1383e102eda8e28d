"""The command line as a user meets it: a process, its exit code and its words."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from storyrec.cli import app, main

STEPS = {
    "validate-logs",
    "build-features",
    "materialize-features",
    "embed-covers",
    "build-dataset",
    "pretrain-dual",
    "finetune-aden",
    "pack-bundle",
    "evaluate-model",
    "bless-model",
    "deploy-model",
    "train-adapt",
    "publish-features",
}


ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "y", "COLUMNS": "200"}


def storyrec(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | ENVIRONMENT
    environment.pop("STORYREC_CONFIG", None)
    command = [sys.executable, "-m", "storyrec.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_help_lists_every_step(tmp_path: Path) -> None:
    answer = storyrec("--help", folder=tmp_path)
    assert answer.returncode == 0
    assert all(step in answer.stdout for step in STEPS)
    assert {command.name or command.callback.__name__.replace("_", "-") for command in app.registered_commands} >= STEPS


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (("validate-logs", "--day", "2026-03-10"), "", "there is no partition 2026-03-10"),
        (("validate-logs", "--day", "someday"), "", "'someday' is not a day"),
        (("build-features", "--day", "2026-03-10"), "[aden]\nbatchsize = 3\n", "unknown key 'aden.batchsize'"),
        (("build-dataset", "--day", "2026-03-10", "--out", "out"), "", "2026-03-10"),
        (("run", "--data", "nowhere"), "", "there are no impressions at the place of the data"),
        (("analyze", "nowhere", "--out", "out"), "", "there is no partition of products, stories, impressions"),
        (("features", "get", "shop", "1"), "", "there is no entity 'shop'"),
        (("features", "push", "nowhere.json"), "", "the clicks cannot be read"),
        (("features", "reconcile", "--day", "2026-03-10"), "", "the features of 2026-03-10 are not built"),
        (("rank", "--user", "1"), "", "no model is deployed yet"),
        (("match", "--product", "1"), "", "no model is deployed yet"),
        (("explain", "--out", "out"), "", "no model is deployed yet"),
        (("features", "join", "nowhere", "out", "--service", "ranker_v2"), "", "there is no service 'ranker_v2'"),
        (("features", "neighbours", "product", "1"), "", "no model is published yet"),
        (("features", "retire-model", "0123456789abcdef"), "", "no index of model 0123456789abcdef"),
        (("features", "freshness"), "", "the freshness promise is broken"),
        (("features", "drift", "--day", "2026-03-10"), "", "the features of 2026-03-10 are not built"),
        (("experiment", "rating-sheet", "--out", "out"), "", "storyrec experiment table6 DATA"),
        (
            ("registry", "show"),
            '[locations]\nregistry = "s3://bucket/models"\ns3_endpoint = "http://127.0.0.1:1"\n',
            "S3 did not read 'champion.json'",
        ),
        (("registry", "show"), '[locations]\nregistry = "ftp://somewhere"\n', "'ftp://somewhere' is no location"),
        (("pretrain-dual", "--dataset", "nowhere", "--out", "out"), "", "no dataset"),
    ],
)
def test_bad_input_ends_in_one_message_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    settings: str,
    said: str,
) -> None:
    (tmp_path / "settings.toml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["storyrec", *arguments, "--config", "settings.toml"])
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("STORYREC_CONFIG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert_one_message(capfd.readouterr().err, said=said)
    assert not (tmp_path / "out").exists()


def test_so_it_does_in_a_process_of_its_own(tmp_path: Path) -> None:
    answer = storyrec("pretrain-dual", "--dataset", "nowhere", "--out", "out", folder=tmp_path)
    assert answer.returncode == 2
    assert_one_message(answer.stderr, said="no dataset")


def assert_one_message(stderr: str, *, said: str) -> None:
    assert stderr.startswith("storyrec: ")
    assert stderr.count("storyrec: ") == 1
    assert said in stderr
    assert "what to do: " in stderr
    assert "Traceback" not in stderr


def test_settings_can_be_printed_and_read_back(tmp_path: Path) -> None:
    printed = storyrec("settings", folder=tmp_path)
    (tmp_path / "all.toml").write_text(printed.stdout)
    again = storyrec("settings", "--config", "all.toml", folder=tmp_path)
    assert again.returncode == 0
    assert again.stdout == printed.stdout
