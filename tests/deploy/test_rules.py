"""Rules of Prometheus: they are valid, pass their unit tests, and use metrics that the servers export."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from rpc.metrics import Metrics
from service.metrics import EngineMetrics
from tests.deploy.rendering import DEPLOY
from trainer.metrics import TrainerMetrics

MONITORING = DEPLOY / "components" / "monitoring"
_SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",), "summary": ("",)}
_WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset", "inf", "nan"}


def rules() -> Iterator[dict[str, Any]]:
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]:
        yield from group["rules"]


def exported() -> dict[str, frozenset[str]]:
    """The series that the servers export, with their labels."""
    registry = CollectorRegistry()
    tables = (Metrics(registry), EngineMetrics(registry), TrainerMetrics(registry))
    labels = {
        collector._name: frozenset(collector._labelnames)
        for table in tables
        for collector in vars(table).values()
        if isinstance(collector, MetricWrapperBase)
    }
    return {
        metric.name + suffix: labels.get(metric.name, frozenset())
        for metric in registry.collect()
        for suffix in _SUFFIXES[metric.type]
    }


def series_in(expression: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The names of the series in an expression, each with its matchers (label, value)."""
    text = re.sub(r"#.*", "", expression)
    text = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", text)
    text = re.sub(r"\[[^\]]*\]", "", text)
    for match in re.finditer(r"([a-zA-Z_:][\w:]*)\s*(\{[^}]*\}|\(|)", text):
        name, after = match[1], match[2]
        if after == "(" or name in _WORDS or _inside_braces(text, match.start()):
            continue
        yield name, re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', after)


def _inside_braces(text: str, position: int) -> bool:
    return text.count("{", 0, position) > text.count("}", 0, position)


def test_series_in_finds_every_series_of_an_expression() -> None:
    found = list(
        series_in('histogram_quantile(0.9, sum by (le, job) (rate(a_bucket{x=~"p|q", y!="z"}[5m]))) > 3 and b:c:d == 0')
    )
    assert found == [("a_bucket", [("x", "p|q"), ("y", "z")]), ("b:c:d", [])]


def test_every_series_of_a_rule_is_exported_or_recorded() -> None:
    known = exported()
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    seen = set()
    for rule in rules():
        for name, matchers in series_in(rule["expr"]):
            seen.add(name)
            assert name in known or name in recorded or name == "up", f"{name} is neither exported nor recorded"
            for label, _ in matchers:
                assert label in known.get(name, frozenset()) or label in {"job", "namespace", "pod"}, (name, label)
    # Recorded series without an alert are for dashboards.
    assert {name for name in recorded - seen if not name.startswith("namespace:pseudoword_generation_")} == set()


def test_rules_use_status_codes_as_the_servers_write_them() -> None:
    codes = {code.name for code in grpc.StatusCode}
    used = {
        code
        for rule in rules()
        for _, matchers in series_in(rule["expr"])
        for label, value in matchers
        if label == "grpc_code"
        for code in value.split("|")
    }
    assert used and used <= codes


def test_alerts_have_severity_and_texts_and_records_are_named_by_level() -> None:
    names = set()
    for rule in rules():
        if "record" in rule:
            assert re.fullmatch(r"[a-z_]+:[a-z0-9_]+:[a-z0-9_]+", rule["record"])
        else:
            assert rule["alert"].startswith("Pseudoword") and "for" in rule
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert set(rule["annotations"]) == {"summary", "description"}
            names.add(rule["alert"])
    tested = {
        case["alertname"]
        for test in yaml.safe_load((MONITORING / "rules.test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
    }
    assert {"PseudowordFaultBudgetBurns", "PseudowordServerDown", "PseudowordGenerationStuck"} <= tested <= names


def test_prometheus_scrapes_the_metrics_port_of_pods() -> None:
    (job,) = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    (keep,) = (rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    assert keep == {
        "source_labels": ["__meta_kubernetes_pod_container_port_name"],
        "regex": "metrics",
        "action": "keep",
    }


@pytest.mark.parametrize(
    "command", [["check", "rules", "--lint-fatal", "rules.yaml"], ["test", "rules", "rules.test.yaml"]]
)
def test_promtool_accepts_the_rules_and_their_tests(promtool: Path, command: list[str]) -> None:
    done = subprocess.run([promtool, *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout
