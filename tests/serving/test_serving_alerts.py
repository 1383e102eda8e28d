"""The server's alert rules read metrics that the server has, and say whom and what to do."""

import re
from pathlib import Path

import yaml
from prometheus_client.metrics import MetricWrapperBase

from storyrec.serving import metrics

RULES = yaml.safe_load((Path(__file__).parents[2] / "deploy" / "serving_alerts.yaml").read_text())["groups"][0]["rules"]


def test_every_expression_reads_metrics_that_are_exported() -> None:
    labels = {
        family.name + ("_total" if family.type == "counter" else ""): set(metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
        for family in metric.describe()
    }
    for rule in RULES:
        names = re.findall(r"\bstoryrec_\w+", rule["expr"])
        assert names, rule["alert"]
        assert set(names) <= labels.keys(), rule["alert"]
        for name, selected in re.findall(r"(\w+)\{(\w+)!?=", rule["expr"]):
            assert selected in labels[name], rule["alert"]
        told = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert all(told <= labels[name] for name in names), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["labels"]["owner"]
        assert rule["annotations"].keys() == {"summary", "action"}
