"""docs/guide/operator.md has each check, each cause, each metric and each alert, and no metric that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from keyman.errors import VAULT_DETAILS, VaultReason
from keyman.metrics import Metrics
from keyman.planes.gateway.measures import Measures

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "guide" / "operator.md").read_text()


WARNED_OF_BY_SERVE = {"address"}
"""What is not a check of doctor: it does not know on which address a plane listens."""


def first_cells(heading: str) -> list[str]:
    """The names in the first column of the table below a heading."""
    section = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)


def test_every_check_of_the_doctor_is_in_the_table() -> None:
    said = set[str]()
    for path in (ROOT / "keyman" / "doctor").glob("*.py"):
        said |= set(re.findall(r'(?:ok|warning|failed|skipped|clock)\(\s*"([a-z-]+)"', path.read_text()))
    assert len(said) > 15
    assert {*first_cells("What `keyman doctor` checks")} == {*said, "configuration"} - WARNED_OF_BY_SERVE


def test_every_cause_of_an_unavailable_vault_is_in_the_table_with_its_words() -> None:
    assert first_cells("When Vault is unavailable") == [reason.value for reason in VaultReason]
    for reason, detail in VAULT_DETAILS.items():
        row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{reason.value}` |"))
        assert detail.startswith(row.split("|")[2].strip()), reason


def registered() -> CollectorRegistry:
    """The metrics of every plane, with those that only the gateway has."""
    metrics = Metrics()
    Measures(metrics.registry, ["OPENAI"])
    return metrics.registry


def test_alerts_ask_for_metrics_that_exist() -> None:
    alerts = TEXT.split("\n## Alerts\n")[1]
    asked = set(re.findall(r"\bkeyman_[a-z_]+", alerts))
    there = {name for family in registered().collect() for name in _names(family.name, family.type)}
    assert asked
    assert asked <= there


def test_every_alert_of_prometheus_is_in_the_table_and_no_other() -> None:
    rules = (ROOT / "docker" / "prometheus" / "rules.yaml").read_text()
    section = TEXT.split("\n## Alerts\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == re.findall(r"- alert: (\w+)", rules)


def test_every_metric_is_in_the_table_and_no_other() -> None:
    families = registered().collect()
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    section = TEXT.split("\n## Metrics\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `(keyman_[a-z_]+)` \|", section, re.MULTILINE)) == names


def _names(name: str, kind: str) -> set[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(kind, ("",))
    return {name + suffix for suffix in suffixes}
