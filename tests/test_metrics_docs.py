"""docs/metrics.md, the alert rules and the dashboard name metrics that exist, with the labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .test_metrics import everything

ROOT = Path(__file__).parent.parent
ALERTS = ROOT / "docs/examples/prometheus/alerts.yml"
DASHBOARD = ROOT / "docs/examples/prometheus/grafana.json"

FAMILIES = list(text_string_to_metric_families(everything()))
SAMPLES = {sample.name: set(sample.labels) for family in FAMILIES for sample in family.samples}
OF_PROMETHEUS = {"job", "instance", "le"}


def test_every_metric_is_documented_with_its_type_and_labels() -> None:
    documented = {}
    for line in (ROOT / "docs/metrics.md").read_text().splitlines():
        if line.startswith("| `ftpproxy_"):
            name, kind, labels, _ = (cell.strip() for cell in line.strip("|").split("|"))
            documented[name.strip("`")] = kind, set(re.findall(r"`(\w+)`", labels))
    existing = {}
    for family in FAMILIES:
        if family.name.startswith("ftpproxy_"):
            has = {label for sample in family.samples for label in sample.labels} - {"le"}
            existing[family.name + "_total" * (family.type == "counter")] = family.type, has
    assert documented == existing


@pytest.mark.linux("/proc, where the client library finds process_*")
def test_process_metrics_are_documented() -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    assert set(re.findall(r"`(process_\w+)`", text)) == {name for name in SAMPLES if name.startswith("process_")}


def used(text: str) -> list[tuple[str, str]]:
    """The metrics in an expression, with what stands in braces behind them."""
    return re.findall(r"\b((?:ftpproxy|process)_[a-z_]+)(?:\{(.*?)\})?", text)


def check(expressions: list[str]) -> None:
    assert expressions
    for expression in expressions:
        assert used(expression) or expression.startswith("up{")
        for name, selector in used(expression):
            assert name in SAMPLES, expression
            assert set(re.findall(r"(\w+)[!=]", selector)) <= SAMPLES[name] | OF_PROMETHEUS, expression
        by = {label for labels in re.findall(r"by \((.*?)\)", expression) for label in labels.split(", ")}
        assert by <= set().union(*(SAMPLES[name] for name, _ in used(expression))) | OF_PROMETHEUS, expression


@pytest.mark.linux("/proc, where the client library finds process_*")
def test_the_alerts_name_what_exists() -> None:
    text = ALERTS.read_text()
    blocks = re.findall(r"expr: (.*?)\n        (?:for|labels):", text, re.DOTALL)
    assert len(blocks) == text.count("- alert: ")
    check([block.removeprefix("|").strip() for block in blocks])


@pytest.mark.linux("/proc, where the client library finds process_*")
def test_the_dashboard_names_what_exists() -> None:
    board = json.loads(DASHBOARD.read_text())
    check([target["expr"] for panel in board["panels"] for target in panel["targets"]])
    variables = [each["query"]["query"] for each in board["templating"]["list"] if each["type"] == "query"]
    assert all(name in SAMPLES for text in variables for name, _ in used(text))
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(places) == len(set(places))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here")
def test_promtool_finds_nothing_to_say() -> None:
    metrics = subprocess.run(["promtool", "check", "metrics"], input=everything(), capture_output=True, text=True)
    assert (metrics.returncode, metrics.stdout, metrics.stderr) == (0, "", "")
    rules = subprocess.run(["promtool", "check", "rules", str(ALERTS)], capture_output=True, text=True)
    assert rules.returncode == 0, rules.stdout + rules.stderr
