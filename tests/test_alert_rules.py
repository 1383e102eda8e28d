"""Prometheus' own tool reads the alert rules and sees each alert fire when it should, and only then."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TESTS = sorted((ROOT / "tests/alerts").glob("*.test.yaml"))
RULES = sorted((ROOT / "deploy").glob("*alerts.yaml"))


def promtool(*arguments: str | Path) -> str:
    """What it says; it ends well or the test fails."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool (of Prometheus) is not installed")
    done = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_prometheus_reads_the_rules(path: Path) -> None:
    num_rules = sum(len(group["rules"]) for group in yaml.safe_load(path.read_text())["groups"])
    assert f"SUCCESS: {num_rules} rules found" in promtool("check", "rules", path)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name.partition(".")[0])
def test_each_alert_fires_when_it_should(path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)


def test_each_alert_is_seen_firing_and_silent() -> None:
    alerts = {
        rule["alert"]
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    }
    seen = [
        (expected["alertname"], bool(expected["exp_alerts"]))
        for path in TESTS
        for test in yaml.safe_load(path.read_text())["tests"]
        for expected in test["alert_rule_test"]
    ]
    assert set(seen) == {(alert, fires) for alert in alerts for fires in (True, False)}
