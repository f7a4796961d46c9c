"""Fetches public documents of an issuer: its discovery document and its keys."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path

import httpx
import msgspec

from keyman.config.identity import issuer_url
from keyman.errors import KeymanError, raise_alone
from keyman.identity.jwks import MAX_BYTES

DISCOVERY = "/.well-known/openid-configuration"
"""The path of the discovery document, which is added to the issuer (OpenID Connect Discovery 1.0, 4)."""

PATIENCE = 5.0
"""Seconds for one document. Requests may wait for it, and an issuer that is up answers in less than one."""


def discovery_address(issuer: str) -> str:
    """Return the address of the discovery document of an issuer."""
    return issuer.removesuffix("/") + DISCOVERY


class FetchFailed(KeymanError):
    """A document of an issuer cannot be fetched. The text is the end of a sentence, and repeats no address."""


class Fetcher:
    """Fetches documents over https. `ca_certificate` replaces the certificate authorities of the machine."""

    def __init__(self, ca_certificate: Path | None = None) -> None:
        self._ca_certificate = ca_certificate
        self.date: datetime | None = None
        """The time on the clock of the server at its last answer, if it said so."""
        self._tls: ssl.SSLContext | None = None

    async def get(self, url: str) -> bytes:
        """Return a document of at most MAX_BYTES. Follows no redirect. Raises FetchFailed, after PATIENCE at the
        latest.
        """
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._get(issuer_url(url))
        except TimeoutError:
            raise_alone(FetchFailed("did not answer in time"))
        except ValueError:
            raise_alone(FetchFailed("named an address that is not https"))
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as fault:
            raise_alone(FetchFailed(f"could not be reached ({type(fault).__name__})"))

    async def discover(self, issuer: str) -> Mapping[str, object]:
        """Return the discovery document, whose `issuer` is this one byte for byte. Raises FetchFailed."""
        content = await self.get(discovery_address(issuer))
        try:
            found = msgspec.json.decode(content, type=dict[str, object])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise_alone(FetchFailed("sent a discovery document that is not a JSON object"))
        if found.get("issuer") != issuer:
            raise FetchFailed("sent a discovery document with another issuer")
        return found

    async def _get(self, url: str) -> bytes:
        if self._tls is None:
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._ca_certificate)
        # A client for each call: it keeps no cookie and no connection. keyman asks an issuer once in ten minutes.
        async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=PATIENCE) as client:
            headers = {"accept": "application/json", "accept-encoding": "identity"}
            async with client.stream("GET", url, headers=headers, follow_redirects=False) as answer:
                self.date = _date(answer.headers.get("date"))
                if answer.status_code != HTTPStatus.OK:
                    raise FetchFailed(f"answered with status {answer.status_code}")
                if answer.headers.get("content-encoding", "identity") != "identity":
                    raise FetchFailed("sent a compressed answer")
                content = bytearray()
                async for chunk in answer.aiter_raw():
                    content += chunk
                    if len(content) > MAX_BYTES:
                        raise FetchFailed(f"sent more than {MAX_BYTES // 1024} KiB")
                return bytes(content)


def _date(header: str | None) -> datetime | None:
    try:
        found = None if header is None else parsedate_to_datetime(header)
    except ValueError:
        return None
    return None if found is None or found.tzinfo is None else found.astimezone(UTC)
