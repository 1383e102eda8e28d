"""Who may do what: Feast's own check finds every view and service under a permission."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from storyrec.config import Config
from storyrec.errors import ConfigError
from storyrec.features.server import serve_features

REPO = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture
def repo(tmp_path: Path, redis: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may change, with the places of a cluster."""
    monkeypatch.setenv("STORYREC_OIDC_DISCOVERY", "http://127.0.0.1:1/.well-known/openid-configuration")
    monkeypatch.setenv("STORYREC_FEATURES", str(tmp_path / "features"))
    monkeypatch.chdir(tmp_path)  # Feast changes it, pytest changes it back
    shutil.copytree(REPO, tmp_path / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "feature_repo"


def unprotected(repo: Path) -> list[list[str]]:
    """The rows of both tables of `feast permissions check`, resources and actions, after `feast apply`."""
    from feast.cli.cli import cli

    for command in (["apply"], ["permissions", "check"]):
        settings = repo / "feature_store.cluster.yaml"
        result = CliRunner().invoke(cli, ["-c", str(repo), "-f", str(settings), *command])
        assert result.exit_code == 0, result.output
    tables = re.findall(r"^NAME +TYPE.*\n((?:(?!\x1b).*\n)*)", result.output, re.MULTILINE)
    assert len(tables) == 2, result.output
    return [[" ".join(row.split()) for row in table.splitlines()] for table in tables]


def test_every_view_and_service_is_under_a_permission_for_every_action(repo: Path) -> None:
    assert unprotected(repo) == [[], []]


@pytest.mark.slow  # and so in another process than the test above: Feast imports a repository once
def test_a_view_without_a_permission_is_found(repo: Path) -> None:
    path = repo / "definitions.py"
    text = path.read_text()
    for name in ("reading", "pushing", "changing"):
        text = text.replace(f'name="{name}",', f'name="{name}", name_patterns="^(?!stories_for_story$).*",')
    path.write_text(text)
    resources, actions = unprotected(repo)
    assert resources == ["stories_for_story FeatureView"]
    assert actions


@pytest.mark.parametrize("missing", ["STORYREC_OIDC_DISCOVERY", "STORYREC_OIDC_AUDIENCE"])
def test_a_server_that_could_not_tell_whom_to_let_in_does_not_start(
    missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STORYREC_OIDC_DISCOVERY", "STORYREC_OIDC_AUDIENCE"):
        monkeypatch.setenv(name, "set")
    monkeypatch.delenv(missing)
    with pytest.raises(ConfigError, match=f"not set: {missing}\\n"):
        serve_features(Config(profile="cluster"))
