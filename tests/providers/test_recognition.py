"""`keyman.providers.recognition`: what looks like a key, and what certainly belongs to another service."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.providers.catalogue import Catalogue
from keyman.providers.masking import is_mask
from keyman.providers.recognition import ProviderKey, check_label, check_new_key, check_shown, check_value
from keyman.providers.services import SHIPPED, Service
from keyman.providers.settings import KeySettings
from keyman.secret import Secret
from tests.providers.values import CATALOGUE, PRINTABLE, SERVICES, VALUES


@given(service=SERVICES, value=VALUES, other=SERVICES)
def test_no_mask_is_taken_for_a_key(service: str, value: str, other: str) -> None:
    (fault,) = check_value(CATALOGUE, other, CATALOGUE.mask(service, value))
    assert fault.field == "api_key"
    assert "mask" in fault.message


@given(service=SERVICES, value=st.text(PRINTABLE, min_size=8, max_size=60))
def test_a_value_is_refused_for_its_prefix_only_when_that_is_certain(service: str, value: str) -> None:
    faults = list(check_value(CATALOGUE, service, value))
    claims = {known.service for known in SHIPPED for prefix in known.exclusive if value.startswith(prefix)}
    if faults and not re.search("is a mask|is JSON", faults[0].message):
        assert claims
        assert service not in claims
        assert value not in faults[0].message
    if not claims and not is_mask(value) and not value.startswith("{"):
        assert faults == []


def test_every_exclusive_prefix_belongs_to_one_service() -> None:
    owners = {prefix: service.service for service in SHIPPED for prefix in service.exclusive}
    assert sum(len(service.exclusive) for service in SHIPPED) == len(owners)
    for prefix, owner in owners.items():
        for service in (one for one in SHIPPED if one.credential is None):
            faults = list(check_value(CATALOGUE, service.service, f"{prefix}Zq7Rk2Lw9Xc4Vb6Nm1"))
            assert bool(faults) is (service.service != owner), (prefix, service.service)


def test_a_service_like_another_may_share_its_prefix() -> None:
    """An operator's own gateway to a provider takes keys that look like the provider's."""
    catalogue = Catalogue([Service("CLAUDE_EU", "Anthropic, EU", "sk-ant-")])
    assert not list(check_value(catalogue, "CLAUDE_EU", "sk-ant-Zq7Rk2Lw9Xc4Vb6Nm1"))
    assert not list(check_value(catalogue, "ANTHROPIC", "sk-ant-Zq7Rk2Lw9Xc4Vb6Nm1"))
    assert list(check_value(catalogue, "OPENAI", "sk-ant-Zq7Rk2Lw9Xc4Vb6Nm1"))


def test_a_label_that_holds_the_key_is_refused() -> None:
    value = Secret("sk-Zq7Rk2Lw9Xc4Vb6Nm1")
    (fault,) = check_label(CATALOGUE, {"name": f"my {value.reveal()}", "api_key": value})
    assert fault.field == "name"
    assert value.reveal() not in fault.message
    assert not list(check_label(CATALOGUE, {"name": "my key", "api_key": value}))
    assert not list(check_label(CATALOGUE, {"name": None, "api_key": value}))


@pytest.mark.parametrize(
    "key",
    [
        "sk-0f1e2d3c4b5a69788796a5b4c3d2e1f0",  # pragma: allowlist secret
        "sk-proj-hq2v9mXbT0c7_eUKwN4Rd-1234",
        "sk-ant-api03-hq2v9mXbT0c7eUKwN4Rd",
        "AIzaSyhq2v9mXbT0c7eUKwN4Rd-_aB3dE5fG7h",  # pragma: allowlist secret
        "AQ.Ab8hq2v9mXbT0c7eUKwN4Rd",
        "hf_hqVmXbTcEUKwNRdhqVmXbTcEUKwNRdab",  # pragma: allowlist secret
        "tgp_v1_hq2v9mXbT0c7eUKwN4Rd",
    ],
)
@pytest.mark.parametrize("around", ["{}", "my {} for the chat", "key:{}", "({})", "OPENAI_API_KEY={}"])
def test_a_label_or_a_setting_that_looks_like_a_key_is_refused_whatever_key_is_sent(key: str, around: str) -> None:
    shown = around.format(key)
    for values in ({}, {"api_key": Secret("sk-Zq7Rk2Lw9Xc4Vb6Nm1")}):
        faults = list(check_shown(CATALOGUE, {**values, "name": shown, "settings": KeySettings(project=shown)}))
        assert [fault.field for fault in faults] == ["name", "settings.project"]
        assert faults[0].message.endswith("write what the key is for")
        assert not any(key in fault.message for fault in faults)


@pytest.mark.parametrize(
    "label",
    [
        "Production chat",
        "sk-...1234",
        "OPENAI_API_KEY",
        "sk-proj-production-chat-backend",
        "hf_models-for-production-2027",
        "sk-or-v1-prod-2027",
        "task-0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "europe-west4",
        "sk-ant-short1234",
    ],
)
def test_what_a_person_writes_is_a_label(label: str) -> None:
    assert not list(check_shown(CATALOGUE, {"name": label, "settings": KeySettings(project=label)}))


def test_a_label_with_a_key_of_a_service_of_the_operator_is_refused() -> None:
    catalogue = Catalogue([Service("OWN", "Our own", "own.")])
    assert list(check_label(catalogue, {"name": "own.hq2v9mXbT0c7eUKwN4Rd"}))
    assert not list(check_label(CATALOGUE, {"name": "own.hq2v9mXbT0c7eUKwN4Rd"}))


def test_a_new_key_is_checked_for_its_service_its_value_and_its_label() -> None:
    check, value = check_new_key(CATALOGUE), Secret("sk-ant-Zq7Rk2Lw9Xc4Vb6Nm1")
    assert [fault.field for fault in check({"service": "GONE", "api_key": value})] == ["service"]
    assert [fault.field for fault in check({"service": "OPENAI", "api_key": value})] == ["api_key"]
    assert [fault.field for fault in check({"service": "ANTHROPIC", "api_key": value})] == []
    assert [fault.field for fault in check({"name": value.reveal(), "api_key": value})] == ["name"]
    assert [fault.field for fault in check({})] == []


@given(text=st.text(PRINTABLE.filter(lambda character: character not in "=:\"'`\\,;.*{"), min_size=8, max_size=512))
def test_a_provider_key_is_kept_but_for_white_space_around_it(text: str) -> None:
    assume(text[0] + text[-1] not in ("()", "<>", "[]"))
    for around in ("", " ", "\n", "\u00a0", "\t\r\n "):
        assert ProviderKey.parse(f"{around}{text}{around}").reveal() == text


@pytest.mark.parametrize("text", ["...", "...abcd", " ...abcd "])
def test_a_bare_mask_is_called_one_and_not_too_short(text: str) -> None:
    with pytest.raises(ValueError, match="is a mask"):
        ProviderKey.parse(text)
