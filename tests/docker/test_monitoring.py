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

from keyman.telemetry import Metrics

DOCKER = Path(__file__).parents[2] / "docker"
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


SERIES = registered(Metrics().registry)


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


def test_prometheus_and_grafana_find_each_other_and_both_planes() -> None:
    prometheus = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text())
    assert {job["job_name"] for job in prometheus["scrape_configs"]} == {"management", "resolver"}
    (source,) = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])}
    assert used == {source["uid"]}
