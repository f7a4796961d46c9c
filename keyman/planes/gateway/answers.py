"""The answer of a provider: whether it is passed on, and its body as it arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp

from keyman.errors import ProviderAnswerRefused, ProviderRedirected
from keyman.planes.gateway.body import Body
from keyman.planes.gateway.faults import faults

PART = 16 * 1024
"""The most bytes of an answer that are passed on at a time. The server holds some ten parts for a client that does not
read, whatever their size.
"""


async def parts(response: aiohttp.ClientResponse, body: Body, seconds: float) -> AsyncIterator[tuple[bytes, bool]]:
    """Yield the parts of an answer's body as they arrive, each with whether it is the last.

    The first part is what came with the headers. It can be empty, and so can the last. Raises ProviderTimeout if
    nothing more comes within so many seconds, and ProviderAnswerRefused.
    """
    content = response.content
    with faults(body):
        part, is_last = content.read_nowait(PART), content.at_eof()
        yield part, is_last
        if is_last:
            return
        waiting = _Waiting(content, seconds)
        try:
            while not is_last:  # the last part is empty if the end comes later than the bytes
                part = await waiting.read()
                is_last = content.at_eof()
                yield part, is_last
        finally:
            waiting.end()


class _Waiting:
    """Reads the body of an answer, and gives up when none of it has come for so many seconds.

    aiohttp counts from the last bytes that have arrived. They need not be of the body: what a provider may write beside
    the chunks has no end. There is one timer for a whole answer, because one for each part would cost more than the
    part.
    """

    def __init__(self, content: aiohttp.StreamReader, seconds: float) -> None:
        self._content, self._seconds = content, seconds
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        """Since when the next part is awaited, while it is."""
        self._timer = self._loop.call_later(seconds, self._look)

    async def read(self) -> bytes:
        self._since = self._loop.time()
        part = await self._content.read(PART)
        self._since = None
        return part

    def end(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        moment = self._loop.time()
        ends_at = (moment if self._since is None else self._since) + self._seconds
        if ends_at > moment:
            self._timer = self._loop.call_at(ends_at, self._look)
        else:
            self._content.set_exception(aiohttp.SocketTimeoutError())


def check(response: aiohttp.ClientResponse) -> None:
    """Raise ProviderAnswerRefused or ProviderRedirected for an answer that is not passed on."""
    if not 200 <= response.status <= 599:
        raise ProviderAnswerRefused("The provider answered with a status that the gateway does not pass on.")
    if 300 <= response.status < 400 and "Location" in response.headers:
        raise ProviderRedirected(
            "The provider redirected the request. The gateway follows no redirect, because it would take the key "
            "along. The operator of keyman can change the base URL of the service."
        )
    codings = _codings(response, "Content-Encoding") | _codings(response, "Transfer-Encoding") - {"chunked"}
    if codings - {"identity", ""}:
        raise ProviderAnswerRefused(
            "The provider compressed its answer, although it was asked not to, so nobody can look for the key in it. "
            "Use the resolver for this request."
        )


def _codings(response: aiohttp.ClientResponse, field: str) -> set[str]:
    """Return what an answer says was done to its body, in lower case."""
    return {part.strip() for part in ",".join(response.headers.getall(field, [])).lower().split(",")}
