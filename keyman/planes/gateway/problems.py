"""Problems as the SDKs of providers read them: with a member `error`, as OpenAI and Anthropic send it."""

from __future__ import annotations

import msgspec

from keyman.errors import Problem
from keyman.http import problems
from keyman.http.exchange import Exchange
from keyman.http.problems import Answer


def render(problem: Problem, exchange: Exchange) -> Answer:
    """Return the answer for a problem, with `error` beside the members of RFC 9457, and `Keyman-Error`.

    The server ends the connection if the body of the request has not arrived when it answers. Its client must know:
    otherwise the next request on this connection fails, and no SDK shows why.
    """
    status, headers, body = problems.answer(problem, exchange.request_id)
    # SDKs show only `message`, so it also has what is wrong with each header.
    faults = "".join(f" {fault.field} {fault.message}." for fault in problem.errors if fault.field)
    error = {"message": f"{problem.detail}{faults}", "type": problem.slug, "code": problem.slug}
    content = {**msgspec.json.decode(body, type=dict[str, object]), "error": error}
    added = {"keyman-error": problem.slug, **({"connection": "close"} if _may_have_a_body(exchange) else {})}
    return Answer(status, {**headers, **added}, msgspec.json.encode(content))


def _may_have_a_body(exchange: Exchange) -> bool:
    return "transfer-encoding" in exchange.headers or exchange.headers.get("content-length", "0") != "0"
