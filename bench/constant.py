"""A bare Litestar application with one constant answer: the least that a request costs with keyman's framework."""

from __future__ import annotations

from litestar import Litestar, get


@get("/", sync_to_thread=False)
def constant() -> dict[str, str]:
    return {"status": "ok"}


def create_app() -> Litestar:
    return Litestar([constant], logging_config=None, openapi_config=None)
