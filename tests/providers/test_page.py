"""docs/reference/services.md is the shipped catalogue. `.venv/bin/python -m tests.providers.test_page` writes it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from keyman.providers.services import SHIPPED, Service
from keyman.providers.upstreams import Check

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "services.md"

BEGINNING = """\
# Services

These are the services that keyman ships: where the gateway sends their requests, how it gives them the key, and which
requests it forwards. [`keyman services`](cli.md#keyman-services) shows the same for your installation, with what your
[services file](configuration.md#more-services) changes. [The API](api.md#the-catalogue) lists the prefixes of keys.

`.venv/bin/python -m tests.providers.test_page` writes this page from the code, and a test compares them.

## Where they are

`{name}` in a base URL stands for a setting of the key. "Key in" says how the gateway sends the key: `bearer` is
`Authorization: Bearer`; anything else is the name of a header. "Live check" is the request by which keyman finds out
[whether a key works](api.md#live-checks); it only reads, and costs nothing. A service without a base URL cannot be used
through the gateway: its keys can be stored, and the resolver gives them out.

"""

PATHS = """
## What is forwarded

The path below `/{service}` of the gateway is the path below the base URL. `{name}` stands for one segment, or for the
beginning of one. The gateway answers everything else with 403 `path-not-allowed`, and sends nothing. `HEAD` counts as
`GET`. If a header is named here, the gateway sends it unless the client sends its own.
"""


def page() -> str:
    return BEGINNING + "\n".join(_table()) + "\n" + PATHS + "".join(_section(service) for service in SHIPPED)


def _table() -> Iterator[str]:
    yield "| service | name | at the gateway | base URL | key in | live check |"
    yield "|---|---|---|---|---|---|"
    for service in SHIPPED:
        upstream = service.upstream
        where = (
            ("", "", "") if upstream is None else (f"`/{service.slug}`", f"`{upstream.base_url}`", f"`{upstream.auth}`")
        )
        check = "" if upstream is None or upstream.check is None else f"`{_check(upstream.check)}`"
        yield " ".join(f"| {cell}".rstrip() for cell in (f"`{service.service}`", service.name, *where, check)) + " |"


def _check(check: Check) -> str:
    return f"{check.method} {check.path or check.url}"


def _section(service: Service) -> str:
    if service.upstream is None:
        return ""
    lines = "\n".join(service.upstream.paths)
    also = "".join(f"\nHeader: `{name}: {value}`\n" for name, value in service.upstream.headers)
    return f"\n### {service.name}\n{also}\n```text\n{lines}\n```\n"


def test_the_page_is_the_catalogue() -> None:
    assert PAGE.read_text() == page(), "write it again: .venv/bin/python -m tests.providers.test_page"


if __name__ == "__main__":
    PAGE.write_text(page())
