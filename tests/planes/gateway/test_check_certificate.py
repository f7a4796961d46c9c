"""Live checks at a gateway whose certificate a private CA signed: `KEYMAN_GATEWAY_URL_CACERT`."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest
from argon2 import PasswordHasher
from stack.certificates import authority, issue

from keyman.config.checks import CheckSettings
from keyman.doctor import checks as doctor
from keyman.secret import Secret
from tests.planes.gateway.scene import Scene
from tests.planes.gateway.test_checks import Checking, bridge, checking, owned
from tests.planes.management.api.harness import problem
from tests.planes.management.web.moves import KEYS
from tests.support.planes import Vault

pytestmark = pytest.mark.anyio

BROWSER = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True)
class Certified:
    """A gateway that is served with a certificate of its own CA."""

    check: Checking
    address: str
    ca: Path

    def settings(self, ca_certificate: Path | None, host: str = "127.0.0.1") -> CheckSettings:
        return CheckSettings(self.address.replace("127.0.0.1", host), Secret(self.check.token), ca_certificate)

    async def found(self, settings: CheckSettings) -> tuple[str, str, str | None]:
        """What doctor says: the state, what it found, and the remedy."""
        given = replace(self.check.scene.pair.management.settings, checks=settings)
        (one,) = [one async for one in doctor.examine(given)]
        return str(one.state), one.found, one.remedy


@asynccontextmanager
async def served(scene: Scene, directory: Path) -> AsyncIterator[Certified]:
    pair = issue(authority(directory), ["127.0.0.1"])
    (directory / "server.pem").write_bytes(pair.certificate_pem() + pair.key_pem())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(directory / "server.pem")
    async with bridge(scene, serving) as address:
        yield Certified(await checking(scene), address, directory / "ca.crt")


@pytest.fixture
async def certified_gateway(gateway: Scene, tmp_path: Path) -> AsyncIterator[Certified]:
    async with served(gateway, tmp_path) as found:
        yield found


@pytest.fixture
def another_ca(tmp_path: Path) -> Path:
    directory = tmp_path / "another"
    directory.mkdir()
    authority(directory)
    return directory / "ca.crt"


def refusals(logged: StringIO) -> list[Any]:
    lines = [json.loads(line) for line in logged.getvalue().splitlines()]
    return [line["why"] for line in lines if line["event"] == "the gateway's certificate is refused"]


async def test_a_check_works_with_the_ca_of_the_gateway(
    certified_gateway: Certified, provisioned: Vault, quick_passwords: PasswordHasher
) -> None:
    settings = certified_gateway.settings(certified_gateway.ca)
    async with owned(certified_gateway.check, provisioned, quick_passwords, settings) as holder:
        got = await holder.check()
    assert (got.status_code, got.json()["check"]["verdict"]) == (200, "accepted")
    assert len(await certified_gateway.check.entries()) == 1
    assert await certified_gateway.found(settings) == ("ok", "the gateway answers, and takes the token", None)


@pytest.mark.parametrize("wrong", ["none", "another", "host"])
async def test_a_certificate_that_does_not_count_is_503_and_the_log_and_doctor_say_what_to_do(
    certified_gateway: Certified,
    another_ca: Path,
    provisioned: Vault,
    quick_passwords: PasswordHasher,
    logged: StringIO,
    wrong: str,
) -> None:
    settings = {
        "none": certified_gateway.settings(None),
        "another": certified_gateway.settings(another_ca),
        "host": certified_gateway.settings(certified_gateway.ca, "localhost"),
    }[wrong]
    why = (
        "it is for another host than the one in KEYMAN_GATEWAY_URL"
        if wrong == "host"
        else "it is not signed by a known CA; set KEYMAN_GATEWAY_URL_CACERT to the file of a private CA"
    )
    detail = "The gateway's certificate is not trusted, so nothing was checked. Tell the operator of keyman."
    check = certified_gateway.check
    async with owned(check, provisioned, quick_passwords, settings) as holder:
        got = await holder.check()
        assert problem(got, "gateway-unavailable")["detail"] == detail
        ada = await holder.plane.user(f"{token_hex(4)}@example.com")
        ada.headers.update(BROWSER)
        made = await ada.post("/api/keys", json={"service": "OPENAI", "api_key": "sk-of-ada-0123456789abcdef"})
        key_id = made.json()["id"]
        answer = await ada.post(f"{KEYS}/{key_id}/check", data={"on": "page", "view": ""})
        assert "Not checked: the gateway cannot be reached." in (await ada.get(answer.headers["location"])).text
        assert (await ada.get(f"/api/keys/{key_id}")).json()["check"] is None
    assert refusals(logged) == [why, why]
    assert await check.shown() is None
    assert await check.entries() == []
    assert check.scene.provider.requests == []
    state, found, remedy = await certified_gateway.found(settings)
    assert (state, found) == ("failed", f"live checks do not work. {detail} The certificate: {why}.")
    assert "KEYMAN_GATEWAY_URL_CACERT" in str(remedy)
    assert check.token not in logged.getvalue()


async def test_a_file_that_vanishes_after_the_start_ends_only_live_checks(
    certified_gateway: Certified, provisioned: Vault, quick_passwords: PasswordHasher, logged: StringIO
) -> None:
    gone = certified_gateway.ca.with_name("gone.crt")
    check = certified_gateway.check
    async with owned(check, provisioned, quick_passwords, certified_gateway.settings(gone)) as holder:
        problem(await holder.check(), "gateway-unavailable")
        assert await check.shown() is None
        assert '"variable":"KEYMAN_GATEWAY_URL_CACERT"' in logged.getvalue()
        await check.forget_attempts()
        gone.write_bytes(certified_gateway.ca.read_bytes())
        assert (await holder.check()).status_code == 200
