"""What goes wrong on the way to a provider and back, as the problem that the caller gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp

from keyman.errors import ProviderAnswerRefused, ProviderTimeout, ProviderUnreachable, raise_alone
from keyman.logs import log
from keyman.planes.gateway.body import Body

UNREACHABLE = (
    "The provider cannot be reached: its name, its address or its certificate is wrong, or it is down. Nothing was "
    "sent. Try again later, or ask the operator of keyman: its log says why."
)

_MAY_COST = "It may have done the work all the same, so a second request can cost a second time."

_UNREACHED = (
    aiohttp.ClientConnectorError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.InvalidURL,
)


@contextmanager
def faults(body: Body) -> Iterator[None]:
    """Turn the errors of aiohttp into problems. They can contain what was sent or received, so none is kept.

    aiohttp's connection refers to its error, and the error by its traceback to the body. So the traceback ends here.
    """
    try:
        yield
    except _UNREACHED as fault:
        fault.__traceback__ = None
        if body.fault is None:
            log.warning("a provider cannot be reached", fault=_kind(fault))
        raise_alone(body.fault or ProviderUnreachable(UNREACHABLE))
    except TimeoutError as fault:
        fault.__traceback__ = None
        raise_alone(body.fault or ProviderTimeout(f"The provider sent nothing for too long. {_MAY_COST}"))
    except (aiohttp.ClientError, OSError, ValueError) as fault:
        fault.__traceback__ = None
        raise_alone(
            body.fault
            or ProviderAnswerRefused(f"The provider ended the connection, or its answer is not HTTP. {_MAY_COST}")
        )


def _kind(fault: Exception) -> str:
    """Return the class of what keeps the gateway from a provider. Its text can contain a name that a user chose."""
    if isinstance(fault, aiohttp.ClientConnectorError) and type(fault) is aiohttp.ClientConnectorError:
        return type(fault.os_error).__name__  # the other classes say more than what is in them
    return type(fault).__name__
