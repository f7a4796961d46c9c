"""The dashboard and the alerts use only metrics that keyman has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from keyman.http.problems import KINDS
from keyman.metrics import Metrics
from keyman.planes.gateway.measures import Measures

DOCKER = Path(__file__).parents[2] / "docker"
GUIDE = DOCKER.parent / "docs" / "guide" / "operator.md"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "dashboards" / "keyman.json").read_text())
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DOCKER / "prometheus" / "rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]

SCRAPED = {"job", "instance", "le"}
"""The labels that Prometheus itself gives."""


def registered(registry: CollectorRegistry) -> dict[str, set[str]]:
    """Each series that a registry can give, with its labels."""
    series: dict[str, set[str]] = {}
    for collector in list(registry._collector_to_names):
        labels = set(getattr(collector, "_labelnames", ()))
        for name in registry._collector_to_names[collector]:
            series[name] = labels
    return series


def of_every_plane() -> CollectorRegistry:
    """What each plane registers, and what only the gateway does."""
    registry = Metrics().registry
    Measures(registry, ["OPENAI"])
    return registry


SERIES = registered(of_every_plane())


def starting() -> dict[str, list[tuple[dict[str, str], float]]]:
    """The series of each counter before the first request: labels and value."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in of_every_plane().collect():
        if family.type == "counter":
            series = [sample for sample in family.samples if sample.name.endswith("_total")]
            found[f"{family.name}_total"] = [(sample.labels, sample.value) for sample in series]
    return found


STARTING = starting()


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_every_series_asked_for_exists_with_the_labels_asked_for(where: str, expression: str) -> None:
    names = set(re.findall(r"keyman_\w+", expression))
    assert names or re.search(r"\bup\{", expression), where
    assert names <= SERIES.keys()
    asked = set(re.findall(r"[{,]\s*(\w+)\s*(?:=~|!~|!=|=)", expression))
    for group in re.findall(r"by \(([^)]*)\)", expression):
        asked |= {label.strip() for label in group.split(",")}
    known = SCRAPED.union(*(SERIES[name] for name in names))
    assert asked <= known, where


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_series_that_an_alert_counts_exists_from_the_start_at_0(rule: dict[str, Any]) -> None:
    """`increase` and `rate` see only changes: a series that begins at 1 raises no alert."""
    counted = re.findall(r"\b(?:increase|rate)\((keyman_\w+)(?:\{([^}]*)\})?\[", rule["expr"])
    for name, selector in counted:
        matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', selector)
        matchers = [matcher for matcher in matchers if matcher[0] not in SCRAPED]
        if not name.endswith("_total"):  # a share of all requests, or how long they took: one request does not count
            assert all(operator.startswith("!") for _, operator, _ in matchers), (name, selector)
            continue
        assert STARTING[name], name
        for label, operator, value in matchers:
            for one in value.split("|") if operator == "=~" else [value]:
                found = [labels[label] for labels, _ in STARTING[name] if re.fullmatch(one, labels[label])]
                assert found, f"{label}={one}"
    assert "increase(" not in rule["expr"] or any(name.endswith("_total") for name, _ in counted)


def test_every_counter_starts_at_0_whatever_its_labels() -> None:
    for name, samples in STARTING.items():
        assert {value for _, value in samples} == {0}, name


def test_every_status_of_a_problem_exists_from_the_start() -> None:
    assert {str(kind.status) for kind in KINDS.values() if kind.status >= 400} <= {
        labels["status"] for labels, _ in STARTING["keyman_http_errors_total"]
    }


def test_every_series_is_shown() -> None:
    shown = " ".join(expression for _, expression in expressions())
    families = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in SERIES}
    assert {family for family in families if family not in shown and f"{family}_total" not in shown} == set()


def test_panels_lie_beside_each_other_and_have_names() -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        covered = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not covered & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= covered
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_every_alert_says_what_it_means_and_how_bad_it_is() -> None:
    for rule in RULES:
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule.get("for") or "increase(" in rule["expr"]  # at once only what has happened


def test_each_metric_of_the_guides_alerts_has_a_rule() -> None:
    alerts = GUIDE.read_text().partition("\n## Alerts\n")[2].partition("\n## ")[0]
    named = set(re.findall(r"keyman_\w+", alerts))
    assert {"keyman_open_connections", "keyman_open_connections_limit"} <= named
    assert named <= {name for rule in RULES for name in re.findall(r"keyman_\w+", rule["expr"])}


def test_the_alert_for_a_full_pool_counts_the_connections_of_all_workers() -> None:
    """A number would be wrong for another number of workers."""
    (full,) = (rule["expr"] for rule in RULES if rule["alert"] == "KeymanDatabasePoolFull")
    assert full == "keyman_database_connections_in_use >= keyman_database_connections_limit > 0"


def test_an_alert_for_slow_answers_does_not_count_how_long_providers_take() -> None:
    (slow,) = (rule["expr"] for rule in RULES if rule["alert"] == "KeymanSlow")
    assert 'job!="gateway"' in slow


def test_prometheus_and_grafana_find_each_other_and_each_plane() -> None:
    prometheus = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    assert {job["job_name"] for job in prometheus["scrape_configs"]} == {"management", "resolver", "gateway"}
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])}
    assert used == {source["uid"]}
