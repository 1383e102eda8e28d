"""The alert rules: every expression reads metrics that are there, and every alert says whom and what to do."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from feature_world import NOW, World, day_of
from prometheus_client.parser import text_string_to_metric_families

from storyrec.features.build import build_features, materialize_features
from storyrec.features.drift import METRICS as DRIFT
from storyrec.features.drift import measure_drift
from storyrec.features.freshness import METRICS as FRESHNESS
from storyrec.features.freshness import measure_freshness

ROOT = Path(__file__).parents[2]
FEAST = """
import json
import feast.metrics as metrics
from prometheus_client.metrics import MetricWrapperBase
found = {}
for metric in vars(metrics).values():
    if isinstance(metric, MetricWrapperBase):
        for family in metric.describe():
            ends = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
            found.update({family.name + end: list(metric._labelnames) for end in ends})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def rules() -> list[dict[str, object]]:
    read = yaml.safe_load((ROOT / "deploy/alerts.yaml").read_text())
    return [rule for group in read["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """Labels by metric: what a measured world writes, and what Feast's server declares."""
    from feature_world import fill

    world = fill(World(tmp_path_factory.mktemp("measured")), num_days=2)
    build_features(world.config, day=day_of(1))
    materialize_features(world.config, day=day_of(1), now=NOW)
    measure_freshness(world.config, now=NOW)
    measure_drift(world.config, day=day_of(1))
    done = subprocess.run([sys.executable, "-c", FEAST], capture_output=True, text=True, check=True)
    found = {name: set(labels) for name, labels in json.loads(done.stdout.splitlines()[-1]).items()}
    for path in (FRESHNESS, DRIFT):
        for family in text_string_to_metric_families((world.folder / "work" / path).read_text()):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


def test_every_expression_reads_metrics_that_are_exported(
    rules: list[dict[str, object]], exported: dict[str, set[str]]
) -> None:
    read = set()
    for rule in rules:
        names = re.findall(r"\b(?:storyrec|feast)_\w+", str(rule["expr"]))
        assert names, rule["alert"]
        assert set(names) <= exported.keys(), rule["alert"]
        for name, selected in re.findall(r"(\w+)\{(\w+)=", str(rule["expr"])):
            assert selected in exported[name], rule["alert"]
        told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert all(told <= exported[name] for name in names), rule["alert"]
        read |= set(names)
    assert {name for name in exported if name.startswith("storyrec_")} - read == {
        "storyrec_feature_promise_kept",
        "storyrec_feature_stability_index",
    }


def test_every_alert_says_whom_and_what_to_do(rules: list[dict[str, object]]) -> None:
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        labels, annotations = rule["labels"], rule["annotations"]
        assert isinstance(labels, dict)
        assert isinstance(annotations, dict)
        assert (labels["owner"], labels["severity"] in {"page", "ticket"}) == ("storyrec", True)
        assert annotations.keys() == {"summary", "action"}
        assert str(rule["expr"]).count("(") == str(rule["expr"]).count(")")


def test_the_dag_names_its_alerts(rules: list[dict[str, object]]) -> None:
    text = (ROOT / "dags/features_slo.py").read_text()
    assert set(re.findall(r"`(Feature\w+)`", text)) == {"FeaturesOlderThanPromised", "FeaturesDrifted"}
    assert {"FeaturesOlderThanPromised", "FeaturesDrifted"} <= {rule["alert"] for rule in rules}
