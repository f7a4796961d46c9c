"""Lists of keys that are filtered, searched and sorted are those of a plain model, on both databases."""

from __future__ import annotations

import base64
import unicodedata
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from keyman.ids import MAX_ID
from keyman.keys.sorting import MAX_CURSOR, Flag, KeyCursor, Sort, SortName, StatusName, VerdictName
from keyman.keys.tables import api_keys
from keyman.providers.catalogue import Catalogue
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import ApiPlane, Json, next_link, pages, problem, store
from tests.support.fast import examples

pytestmark = pytest.mark.anyio

PAST, FUTURE = datetime(2026, 1, 1, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)
NAMES = (None, "b", "B", "a", "a%b", "a_b", "axb", "é", "e\u0301", "Straße", "STRASSE", "z", "\U0001f511", "Ωmega")
MASKS = ("sk-...aB1%", "sk-...ab1_", "...", "...x...", "sk-ant-...Zz99")
SERVICES = ("OPENAI", "OPENROUTER", "ANTHROPIC")
STATES: tuple[dict[str, Any], ...] = (
    {},
    {"disabled": True},
    {"expires_at": PAST},
    {"expires_at": FUTURE},
    {"undecryptable": True, "expires_at": PAST, "disabled": True},
    {"disabled": True, "expires_at": PAST},
)
CHECKS: tuple[dict[str, Any], ...] = (
    {},
    {"check_verdict": "accepted", "checked_at": PAST, "check_detail": "", "checked_by": "keyman"},
    {"check_verdict": "refused", "checked_at": PAST, "check_detail": "", "checked_by": "use"},
    {"check_verdict": "made-up", "checked_at": PAST, "check_detail": "", "checked_by": "use"},
)
NO_CHECK = dict.fromkeys(("check_verdict", "checked_at", "check_detail", "checked_by"))
COUNT = 60

NAME_OF = {info.service: info.name for info in Catalogue().infos()}


def folded(text: str) -> str:
    return unicodedata.normalize("NFC", text.casefold())


def rows_of(owner: int) -> list[dict[str, Any]]:
    """Keys whose columns come together in many ways, with many that are equal and many that are null."""
    return [
        {
            "user_id": owner,
            "owner_id": owner,
            "service": SERVICES[n % 3],
            "name": (name := NAMES[n * 5 % len(NAMES)]),
            "name_folded": None if name is None else folded(name),
            "encrypted_key": "vault:v1:none",
            "key_version": 1,
            "value_uuid": uuid4(),
            "last_4_chars": MASKS[n % 5],
            "disabled": False,
            "undecryptable": False,
            "expires_at": None,
            "created_at": PAST,
            "updated_at": PAST,
            "last_used_at": None if n % 3 == 1 else PAST + timedelta(microseconds=n * 7 % 11),
            **STATES[n * 11 % len(STATES)],
            **NO_CHECK,
            **CHECKS[n * 13 % len(CHECKS)],
        }
        for n in range(COUNT)
    ]


_FILLED: dict[str, tuple[httpx.AsyncClient, list[Json]]] = {}


async def filled(plane: ApiPlane) -> tuple[httpx.AsyncClient, list[Json]]:
    """One user of a plane with many keys, for all examples, and the keys as answers show them, oldest first."""
    where = str(plane.settings.database_url)
    if where not in _FILLED:
        client = await plane.user()
        owner = (await client.get("/api/auth/me")).json()["id"]
        async with plane.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(insert(api_keys), rows_of(owner))
        keys = [key async for page in pages(client, "/api/keys?limit=200") for key in page]
        assert len(keys) == COUNT
        _FILLED[where] = client, keys[::-1]
    return _FILLED[where]


def fits(key: Json, asked: dict[str, str]) -> bool:
    """Whether a key is in a list, by what its answer shows."""
    text, mask = folded(asked.get("q", "")), key["last_4_chars"]
    seen = (key["name"] or "", NAME_OF[key["service"]], "" if mask == "..." else mask[-4:])
    return (
        asked.get("service", key["service"]) == key["service"]
        and asked.get("status", key["status"]) == key["status"]
        and asked.get("check") in (None, (key["check"] or {}).get("verdict"))
        and any(text in folded(one) for one in seen)
    )


def used_at(key: Json) -> datetime:
    return datetime.fromisoformat(key["last_used_at"] or "0001-01-01T00:00:00Z")


def in_order(keys: Iterable[Json], sort: str) -> list[Json]:
    by: dict[str, Callable[[Json], Any]] = {
        "created": lambda key: key["id"],
        "name": lambda key: (folded(key["name"] or ""), key["id"]),
        "used": lambda key: (used_at(key), key["id"]),
    }
    return sorted(keys, key=by[sort.removeprefix("-")], reverse=sort.startswith("-"))


ASKED = st.fixed_dictionaries(
    {},
    optional={
        "service": st.sampled_from(SERVICES),
        "status": st.sampled_from(["active", "disabled", "expired", "undecryptable"]),
        "check": st.sampled_from(["accepted", "refused", "unsupported"]),
        "sort": st.sampled_from([sort.value for sort in Sort]),
        "q": st.sampled_from(
            [
                "",
                "b",
                "%",
                "_",
                "a_",
                "É",
                "ss",
                "open",
                "OpenAI",
                "ai",
                "1%",
                "AB1",
                "zz99",
                ".",
                "sk-",
                "\\",
                "'",
                "ω",
            ]
        ),
    },
)


@settings(max_examples=examples(120))
@given(asked=ASKED, limit=st.sampled_from([1, 3, 7, 50, 200]))
@example(asked={"sort": "name"}, limit=1)
@example(asked={"sort": "-name"}, limit=1)
@example(asked={"sort": "used"}, limit=1)
@example(asked={"sort": "-used"}, limit=1)
@example(asked={"sort": "created"}, limit=7)
@example(asked={"sort": "-created", "status": "expired"}, limit=3)
async def test_a_list_is_that_of_a_plain_model(shared: ApiPlane, asked: dict[str, str], limit: int) -> None:
    ada, keys = await filled(shared)
    wanted = in_order((key for key in keys if fits(key, asked)), asked.get("sort", "-created"))
    target = str(httpx.URL("/api/keys", params={**asked, "limit": str(limit)}))
    got = [page async for page in pages(ada, target)]
    assert [key["id"] for page in got for key in page] == [key["id"] for key in wanted]
    assert len(got) == max(1, -(-len(wanted) // limit))
    counted = await ada.get("/api/keys", params={**asked, "limit": "1", "count": "true"})
    assert counted.headers["keyman-total-count"] == str(len(wanted))


async def test_every_filter_selects_some_keys_and_not_all(shared: ApiPlane) -> None:
    """So that the model and the lists do not agree only because they are empty."""
    ada, _ = await filled(shared)
    for asked in (
        *({"status": status} for status in ("active", "disabled", "expired", "undecryptable")),
        {"check": "accepted"},
        {"check": "refused"},
        *({"q": text} for text in ("b", "%", "_", "É", "open", "OpenRouter", "AB1", "zz99", "x..")),
    ):
        assert 0 < len((await ada.get("/api/keys", params={**asked, "limit": "200"})).json()) < COUNT, asked
    for text in ("sk-", "vault", "OPENAI_"):
        assert (await ada.get("/api/keys", params={"q": text})).json() == []


async def test_the_total_is_counted_only_if_it_is_asked_for(shared: ApiPlane) -> None:
    ada = await shared.user()
    for _ in range(3):
        await store(ada)
    for params, total in (({}, None), ({"count": "false"}, None), ({"count": "true", "limit": "1"}, "3")):
        assert (await ada.get("/api/keys", params=params)).headers.get("keyman-total-count") == total
    second = await ada.get(next_link(await ada.get("/api/keys?count=true&limit=2")) or "")
    assert (len(second.json()), second.headers["keyman-total-count"]) == (1, "3")


@pytest.mark.parametrize("name", ["status", "check", "sort", "count"])
async def test_an_unknown_value_is_refused_and_its_parameter_is_named(sqlite_plane: ApiPlane, name: str) -> None:
    ada = await sqlite_plane.user()
    for value in ("", "ACTIVE", "Name", "--name", "+name", "-", "id", "created,name", "1", "True", "null", "canary"):
        answer = await ada.get("/api/keys", params={name: value})
        problem(answer, "invalid-request", name)
        assert "canary" not in answer.text
    problem(await ada.get(f"/api/keys?{name}=canary&{name}=canary"), "invalid-request", name)


LISTS: tuple[dict[str, str], ...] = (
    {},
    {"service": "OPENAI"},
    {"service": "ANTHROPIC"},
    {"status": "active"},
    {"check": "refused"},
    {"q": "open"},
    {"q": "OPEN"},
    *({"sort": sort.value} for sort in Sort),
    {"sort": "name", "status": "active"},
)


async def test_a_cursor_is_valid_only_for_its_sort_and_filters(shared: ApiPlane) -> None:
    ada, _ = await filled(shared)
    cursors: dict[int, str] = {}
    for n, asked in enumerate(LISTS):
        link = next_link(await ada.get("/api/keys", params={**asked, "limit": "2"}))
        assert link is not None
        (cursors[n],) = parse_qs(urlsplit(link).query)["cursor"]
    plain = (0, LISTS.index({"sort": "-created"}))  # the same list
    for n, asked in enumerate(LISTS):
        for other, cursor in cursors.items():
            answer = await ada.get("/api/keys", params={**asked, "cursor": cursor, "limit": "3", "count": "true"})
            if n == other or {n, other} == {*plain}:
                assert answer.status_code == 200
            else:
                problem(answer, "invalid-request", "cursor")


async def test_a_made_up_cursor_is_refused_and_never_an_error(shared: ApiPlane) -> None:
    ada, keys = await filled(shared)
    link = next_link(await ada.get("/api/keys", params={"sort": "used", "limit": "30"}))
    assert link is not None
    given = KeyCursor.parse(parse_qs(urlsplit(link).query)["cursor"][0])
    values = ("", "x", "-1", "1.5", "9" * 19, "9" * 40, "\0", "٣", "\ud7ff", "x" * 1500)
    made = [str(KeyCursor.at(given, given.of, value)) for value in values]
    content = given.to_bytes(8, "big") + given.of
    raws = (content + b"\xff", content + b"\xed\xa0\x80", bytes(8) + given.of, b"\xff" * 8 + given.of, content[:15])
    made += [base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in raws]
    made += [f"{given}=", f"{given}A", "A" * (MAX_CURSOR + 1)]
    for cursor in made:
        problem(await ada.get("/api/keys", params={"sort": "used", "cursor": cursor}), "invalid-request", "cursor")
    for value, sort in (("253402300799999999", "used"), ("0", "-used"), ("\U0010ffff" * 100, "name"), ("", "-name")):
        of = KeyCursor.parse(await _cursor(ada, sort)).of
        for number in (1, MAX_ID):
            params = {"sort": sort, "cursor": str(KeyCursor.at(number, of, value))}
            assert (await ada.get("/api/keys", params=params)).status_code == 200
    assert len(keys) == COUNT


async def _cursor(client: httpx.AsyncClient, sort: str) -> str:
    link = next_link(await client.get("/api/keys", params={"sort": sort, "limit": "2"}))
    assert link is not None
    return parse_qs(urlsplit(link).query)["cursor"][0]


async def test_a_list_shows_nothing_of_another_owner(shared: ApiPlane) -> None:
    ada, _ = await filled(shared)
    eve = await shared.user()
    own = (await store(eve, name="a"))["id"]
    for asked in LISTS:
        link = next_link(await ada.get("/api/keys", params={**asked, "limit": "2"}))
        assert link is not None
        assert {key["id"] for key in (await eve.get(link)).json()} <= {own}
        counted = await eve.get("/api/keys", params={**asked, "count": "true"})
        assert counted.headers["keyman-total-count"] in ("0", "1")


@pytest.mark.parametrize(
    ("name", "kind"), [("sort", SortName), ("status", StatusName), ("check", VerdictName), ("count", Flag)]
)
async def test_what_a_parameter_can_be_is_said_in_full(
    shared: ApiPlane, name: str, kind: type[SortName | StatusName | VerdictName | Flag]
) -> None:
    """The framework cuts a message at a dash."""
    with pytest.raises(ValueError, match="must be ") as fault:
        kind.parse("x")
    refused = problem(await (await shared.user()).get(f"/api/keys?{name}=x"), "invalid-request", name)
    assert refused["errors"][0]["message"] == str(fault.value)
