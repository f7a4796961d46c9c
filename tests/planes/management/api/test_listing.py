"""Listings: pages miss nothing and repeat nothing; a search gives the same on both databases."""

from __future__ import annotations

import random
import unicodedata
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert

from keyman.keys.tables import api_keys
from keyman.storage.transactions import Unchecked
from tests.planes.management.api.harness import OPENAI_KEY, ApiPlane, Json, next_link, pages, problem, store
from tests.support.fast import examples

pytestmark = pytest.mark.anyio

SERVICES = ("OPENAI", "ANTHROPIC", "COHERE")
BAD_LIMITS = ("0", "201", "-1", "1.5", "abc", "+1", "1_0", " 1", "1 ", "٣", "१", "1e2", "0x10", "", "9" * 30, "null")
BAD_CURSORS = (
    "",
    "x",
    "AAAAAAAAAAA",
    "_________-8",
    "AAAAAAAAAAoA",
    "AAAAAAAAAA=",
    "AAAAAAAA\0o",
    "é",
    "AAAA AAAAAo",
    "1",
)


async def fill(plane: ApiPlane, client: httpx.AsyncClient, count: int) -> list[Json]:
    """Many keys of one owner, put straight into the database: listing never opens them. Oldest first."""
    owner, now = (await client.get("/api/auth/me")).json()["id"], datetime.now(UTC)
    rows = [
        {
            "user_id": owner,
            "owner_id": owner,
            "service": SERVICES[n % 3],
            "name": (name := None if n % 7 == 0 else f"{'Prod' if n % 2 else 'stage'} {n:04}"),
            "name_folded": name and name.casefold(),
            "encrypted_key": "vault:v1:none",
            "key_version": 1,
            "value_uuid": uuid4(),
            "last_4_chars": f"...{n:04}",
            "disabled": False,
            "undecryptable": False,
            "created_at": now,
            "updated_at": now,
        }
        for n in range(count)
    ]
    async with plane.database.write(Unchecked.OPERATOR) as connection:
        await connection.execute(insert(api_keys), rows)
    return [key async for page in pages(client, "/api/keys?limit=200") for key in page][::-1]


async def test_pages_join_to_the_whole_listing_whatever_their_size_and_filter(shared: ApiPlane) -> None:
    ada = await shared.user()
    keys = (await fill(shared, ada, 430))[::-1]
    assert len(keys) == 430
    assert [key["last_4_chars"] for key in keys] == [f"...{n:04}" for n in reversed(range(430))]
    for limit in (200, 50, 43, 7):
        for service in (None, "COHERE"):
            for q in (None, "prod", "stage 00"):
                wanted = [
                    key
                    for key in keys
                    if (service is None or key["service"] == service)
                    and (q is None or (key["name"] is not None and q in key["name"].casefold()))
                ]
                asked = {"limit": str(limit), "service": service, "q": q}
                target = str(httpx.URL("/api/keys", params={k: v for k, v in asked.items() if v is not None}))
                got = [page async for page in pages(ada, target)]
                assert [key for page in got for key in page] == wanted
                assert all(len(page) == limit for page in got[:-1])
                assert len(got[-1]) <= limit
                assert len(got) == max(1, -(-len(wanted) // limit)), "no page is empty but that of an empty listing"


async def test_a_page_holds_50_by_default(shared: ApiPlane) -> None:
    ada = await shared.user()
    await fill(shared, ada, 51)
    first = await ada.get("/api/keys")
    assert len(first.json()) == 50
    following = next_link(first)
    assert following is not None
    last = await ada.get(following)
    assert len(last.json()) == 1
    assert next_link(last) is None


async def test_the_link_says_what_was_asked_and_where_the_next_page_begins(shared: ApiPlane) -> None:
    ada = await shared.user()
    names = ["a&b=c d;é>\"'<%25#+", 'x>; rel="next", <http://evil', "line"]
    for name in names:
        for _ in range(3):
            await store(ada, name=name)
        answer = await ada.get("/api/keys", params={"q": name, "service": "OPENAI", "limit": "2"})
        link = next_link(answer)
        assert link is not None
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.path) == ("", "", "/api/keys")
        query = parse_qs(parts.query)
        assert query.keys() == {"q", "service", "limit", "cursor"}
        assert (query["q"], query["service"], query["limit"]) == ([name], ["OPENAI"], ["2"])
        assert len((await ada.get(link)).json()) == 1


async def test_a_link_carries_no_header_of_the_clients_making(shared: ApiPlane) -> None:
    ada = await shared.user()
    await store(ada, name="a")
    for q in (b"%0d%0aX-Evil:%201", b"a%0aSet-Cookie:x=1", b"%00", b"%ed%a0%80", b"%ff", b"\xff", b"%E2%80%AE"):
        cookie = [(b"cookie", f"keyman_session={ada.cookies['keyman_session']}".encode())]
        answer = await shared.wire("GET", b"/api/keys?limit=1&q=" + q, cookie)
        assert answer.status_code in (200, 400)
        assert "x-evil" not in answer.headers
        assert "set-cookie" not in answer.headers


async def test_what_is_there_throughout_is_seen_once_while_keys_come_and_go(shared: ApiPlane) -> None:
    ada = await shared.user()
    chance = random.Random(20240229)  # noqa: S311  # the same each time
    keys = await fill(shared, ada, 300)
    alive, removed, seen = {key["id"] for key in keys}, set[int](), list[int]()
    async for page in pages(ada, "/api/keys?limit=20"):
        seen += [key["id"] for key in page]
        await store(ada, name="came later")
        gone = chance.sample(sorted(alive), 8)
        alive -= set(gone)
        removed |= set(gone)
        async with shared.database.write(Unchecked.OPERATOR) as connection:
            await connection.execute(delete(api_keys).where(api_keys.c.id.in_(gone)))
    assert len(seen) == len(set(seen))
    assert seen == sorted(seen, reverse=True)
    assert alive <= set(seen) <= alive | removed


async def test_a_cursor_whose_key_is_gone_still_leads_on(shared: ApiPlane) -> None:
    ada = await shared.user()
    ids = [(await store(ada))["id"] for _ in range(5)]
    first = await ada.get("/api/keys?limit=2")
    link = next_link(first)
    assert link is not None
    for key_id in ids[2:4]:
        await ada.delete(f"/api/keys/{key_id}")
    assert [key["id"] for key in (await ada.get(link)).json()] == [ids[1], ids[0]]


async def test_a_cursor_of_somebody_else_shows_nothing_of_theirs(shared: ApiPlane) -> None:
    ada, eve = await shared.user(), await shared.user()
    await store(eve)
    await fill(shared, ada, 3)
    link = next_link(await ada.get("/api/keys?limit=1"))
    assert link is not None
    own = [key["id"] for key in (await eve.get("/api/keys")).json()]
    assert {key["id"] for key in (await eve.get(link)).json()} <= set(own)


@pytest.mark.parametrize("path", ["/api/keys", "/api/audit"])
async def test_a_limit_is_a_whole_number_from_1_to_200_and_a_cursor_one_that_was_given(
    sqlite_plane: ApiPlane, path: str
) -> None:
    ada = await sqlite_plane.user()
    for limit in BAD_LIMITS:
        problem(await ada.get(path, params={"limit": limit}), "invalid-request", "limit")
    for limit in ("1", "200", "050"):
        assert (await ada.get(path, params={"limit": limit})).status_code == 200
    for cursor in BAD_CURSORS:
        problem(await ada.get(path, params={"cursor": cursor}), "invalid-request", "cursor")
    problem(await ada.get(path, params={"cursor": "!", "limit": "x"}), "invalid-request", "cursor", "limit")


async def test_every_bad_parameter_of_a_listing_is_named_at_once(shared: ApiPlane) -> None:
    ada = await shared.user()
    params = {"limit": "many", "cursor": "canary", "service": "canary", "q": "canary" * 20}
    answer = await ada.get("/api/keys", params=params)
    problem(answer, "invalid-request", "cursor", "limit", "q", "service")
    assert "canary" not in answer.text


@pytest.mark.parametrize(
    ("target", "fields"),
    [
        ("/api/keys?servce=OPENAI", [""]),
        ("/api/keys?service=OPENAI&CANARY=CANARY&CANARY2", [""]),
        ("/api/keys?limit=1&limit=2&q=a&q=a", ["limit", "q"]),
        ("/api/keys?limit=1&limit=1&x=1", ["", "limit"]),
        ("/api/keys?LIMIT=1", [""]),
        ("/api/keys?=1", [""]),
        ("/api/audit?service=OPENAI", [""]),
        ("/api/services?q=open", [""]),
        ("/api/auth/me?x=1", [""]),
        ("/api/keys/1?x=1", [""]),
    ],
)
async def test_a_query_holds_known_parameters_once_each(sqlite_plane: ApiPlane, target: str, fields: list[str]) -> None:
    ada = await sqlite_plane.user()
    answer = await ada.get(target)
    problem(answer, "invalid-request", *fields)
    assert "CANARY" not in answer.text


async def test_a_caller_without_the_scope_learns_nothing_of_the_query(shared: ApiPlane) -> None:
    problem(await shared.client().get("/api/keys?x=1"), "unauthenticated")
    ada = await shared.user()
    problem(await ada.put("/api/keys/1?x=1", json={"api_key": OPENAI_KEY}), "invalid-request", "")


async def test_a_service_that_is_spelt_wrong_is_refused_and_one_without_keys_is_empty(shared: ApiPlane) -> None:
    ada = await shared.user()
    await store(ada)
    for service in ("openai", "OPENAI ", "OPEN%", "", "\0"):
        problem(await ada.get("/api/keys", params={"service": service}), "invalid-request", "service")
    assert (await ada.get("/api/keys", params={"service": "COHERE"})).json() == []


async def test_a_search_takes_up_to_100_characters(shared: ApiPlane) -> None:
    ada = await shared.user()
    await store(ada, name="x" * 100)
    assert len((await ada.get("/api/keys", params={"q": "x" * 100})).json()) == 1
    problem(await ada.get("/api/keys", params={"q": "x" * 101}), "invalid-request", "q")
    problem(await ada.get("/api/keys", params={"q": "a\0b"}), "invalid-request", "q")


async def test_an_empty_search_is_none(shared: ApiPlane) -> None:
    ada = await shared.user()
    keys = [await store(ada), await store(ada, name="named")]
    assert (await ada.get("/api/keys", params={"q": ""})).json() == keys[::-1]


@pytest.mark.parametrize(
    ("name", "found", "not_found"),
    [
        ("Prod chat", ["prod", "PROD CHAT", "d c", "t"], ["prodchat", "stage"]),
        ("100%", ["%", "0%", "100%"], ["1%0", "%%"]),
        ("a_b", ["_", "a_b"], ["a__b", "acb"]),
        ("axb", ["x"], ["a_b", "a%b"]),
        (r"a\b/c", ["\\", "/", r"a\b", "b/c"], ["a/b"]),
        ("Éclair", ["é", "É", "e\u0301clair", "ÉCLAIR"], ["eclair"]),
        ("e\u0301clair", ["é", "É"], ["x"]),
        ("Straße", ["STRASSE", "ß", "ss"], ["strase"]),
        ("ΣΊΣΥΦΟΣ", ["σίσυφος", "σίσυφοσ"], ["ς ς"]),
        ("Ключ", ["КЛЮЧ", "люч"], ["kljuch"]),
        ("' OR 1=1 --", ["'", "or 1=1"], ["' or 1=2"]),
    ],
)
async def test_a_search_finds_what_a_name_contains_whatever_the_case(
    shared: ApiPlane, name: str, found: list[str], not_found: list[str]
) -> None:
    ada = await shared.user()
    key = await store(ada, name=name)
    await store(ada)
    for q in found:
        assert [k["id"] for k in (await ada.get("/api/keys", params={"q": q})).json()] == [key["id"]], q
    for q in not_found:
        assert (await ada.get("/api/keys", params={"q": q})).json() == [], q


async def test_a_renamed_key_is_found_only_by_its_new_name(shared: ApiPlane) -> None:
    ada = await shared.user()
    key = await store(ada, name="before")
    path = f"/api/keys/{key['id']}"
    await ada.patch(path, json={"name": "AFTER"})
    assert (await ada.get("/api/keys", params={"q": "before"})).json() == []
    assert len((await ada.get("/api/keys", params={"q": "after"})).json()) == 1
    await ada.put(path, json={"api_key": OPENAI_KEY, "name": None})
    assert (await ada.get("/api/keys", params={"q": "after"})).json() == []


TEXT = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), max_size=12)
LETTERS = st.text("aAßẞsS%_\\/'\"éÉe\u0301İiIıﬁΣσς \U0001f511", max_size=8)


@settings(max_examples=examples(80))
@given(name=TEXT | LETTERS, q=(TEXT | LETTERS).filter(bool))
@example(name="ß", q="SS")
@example(name="İ", q="i̇")
@example(name="\U0001f511\U0001f511", q="\U0001f511")
async def test_a_search_agrees_with_case_folding_on_both_databases(shared: ApiPlane, name: str, q: str) -> None:
    ada = await _searcher(shared)
    path = (await ada.get("/api/keys")).json()[0]["id"]
    renamed = await ada.patch(f"/api/keys/{path}", json={"name": name})
    assume(renamed.status_code != 400)  # a bidirectional control
    assert renamed.json()["name"] == name

    def folded(text: str) -> str:
        return unicodedata.normalize("NFC", text.casefold())

    found = (await ada.get("/api/keys", params={"q": q})).json()
    assert bool(found) == any(folded(q) in folded(one) for one in (name, "OpenAI", "1234"))


_SEARCHERS: dict[str, httpx.AsyncClient] = {}


async def _searcher(plane: ApiPlane) -> httpx.AsyncClient:
    """One user with one key for all examples of a plane."""
    where = str(plane.settings.database_url)
    if where not in _SEARCHERS:
        _SEARCHERS[where] = await plane.user()
        await store(_SEARCHERS[where])
    return _SEARCHERS[where]
