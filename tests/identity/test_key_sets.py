"""Where keys come from: an issuer over HTTP that rotates, is down, slow or hostile, and a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest

from keyman.errors import IssuerUnavailable
from keyman.identity import key_sets
from keyman.identity.fetching import PATIENCE, Fetcher, FetchFailed
from keyman.identity.jose import Rules
from keyman.identity.jwks import MAX_BYTES, Refused, UnknownKey
from keyman.identity.key_sets import FILE_CHECK, FRESH, LAST_GOOD, PAUSE, FileKeys, RemoteKeys, verify
from tests.support.http import HANG_UP, RESET, SILENCE, Reply, answer
from tests.support.issuer import AUDIENCE, Issuer, served
from tests.support.logs import capture_logs

pytestmark = pytest.mark.anyio

DISCOVERY = "/.well-known/openid-configuration"


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with served() as found:
        yield found


@pytest.fixture
def moment() -> Clock:
    return Clock()


@pytest.fixture
async def remote(issuer: Issuer, moment: Clock) -> AsyncIterator[RemoteKeys]:
    keys = RemoteKeys(Fetcher(), issuer.url, clock=moment)
    yield keys
    await keys.close()


def rules(issuer: Issuer) -> Rules:
    return Rules(issuer.url, AUDIENCE)


async def test_the_keys_are_discovered_and_cached(issuer: Issuer, remote: RemoteKeys, moment: Clock) -> None:
    for _ in range(5):
        assert (await verify(issuer.token(), remote, rules(issuer))).subject == "ada"
    assert (issuer.requests(DISCOVERY), issuer.requests()) == (1, 1)
    moment.seconds += FRESH
    await verify(issuer.token(), remote, rules(issuer))
    assert (issuer.requests(DISCOVERY), issuer.requests()) == (2, 2)


async def test_an_address_of_the_keys_needs_no_discovery(issuer: Issuer) -> None:
    remote = RemoteKeys(Fetcher(), "not discovered", f"{issuer.url}/jwks")
    assert len(await remote.current()) == 1
    assert issuer.requests(DISCOVERY) == 0


async def test_a_hundred_first_tokens_at_once_fetch_once(issuer: Issuer, remote: RemoteKeys) -> None:
    await asyncio.gather(*(verify(issuer.token(), remote, rules(issuer)) for _ in range(100)))
    assert issuer.requests() == 1


async def test_a_new_key_is_found_when_a_token_names_it(issuer: Issuer, remote: RemoteKeys, moment: Clock) -> None:
    await remote.current()
    moment.seconds += PAUSE
    issuer.rotate()
    assert await verify(issuer.token(), remote, rules(issuer))
    assert issuer.requests() == 2


async def test_unknown_keys_in_a_loop_fetch_once_in_ten_seconds(
    issuer: Issuer, remote: RemoteKeys, moment: Clock
) -> None:
    await remote.current()
    for seconds in range(30):
        for number in range(20):
            with pytest.raises(UnknownKey):
                await verify(issuer.token(header={"kid": f"made-up-{seconds}-{number}"}), remote, rules(issuer))
        moment.seconds += 1
    assert 3 <= issuer.requests() <= 4


async def test_a_token_that_is_refused_for_another_reason_fetches_nothing(
    issuer: Issuer, remote: RemoteKeys, moment: Clock
) -> None:
    await remote.current()
    moment.seconds += PAUSE
    for changed in (issuer.token(aud="other"), issuer.token(header={"crit": []}), issuer.token()[:-8]):
        with pytest.raises(Refused):
            await verify(changed, remote, rules(issuer))
    assert issuer.requests() == 1


async def test_a_withdrawn_key_works_for_ten_minutes_at_most(issuer: Issuer, remote: RemoteKeys, moment: Clock) -> None:
    old = issuer.token()
    await verify(old, remote, rules(issuer))
    issuer.rotate(keep=False)
    moment.seconds += FRESH - 1
    await verify(old, remote, rules(issuer))
    moment.seconds += 1
    with pytest.raises(UnknownKey):
        await verify(old, remote, rules(issuer))


BROKEN = {
    "hangs up": HANG_UP,
    "resets": RESET,
    "is down": answer({}, 503),
    "redirects": Reply(302, b"", {"Location": "/elsewhere"}),
    "redirects for good": Reply(308, b"", {"Location": "/elsewhere"}),
    "sends nonsense": Reply(200, b"<html>"),
    "sends no set": answer([]),
    "sends too much": Reply(200, b'{"keys": []' + b" " * MAX_BYTES + b"}"),
    "never ends": Reply(200, b"", {"Transfer-Encoding": "chunked", "Content-Length": "0"}),
    "compresses": Reply(200, b'{"keys": []}', {"Content-Encoding": "gzip"}),
    "is not http": Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n", then="close"),
    "is empty": Reply(200, b""),
}


@pytest.mark.parametrize("path", [DISCOVERY, "/jwks"])
async def test_the_log_names_the_address_that_did_not_work(issuer: Issuer, remote: RemoteKeys, path: str) -> None:
    issuer.replies[path] = lambda: Reply(404, b"")
    with capture_logs() as logged, pytest.raises(IssuerUnavailable):
        await remote.current()
    (line,) = logged
    assert (line["url"], line["why"]) == (f"{issuer.url}{path}", "it answered with status 404")


@pytest.mark.parametrize("path", [DISCOVERY, "/jwks"])
@pytest.mark.parametrize("fault", BROKEN)
async def test_without_any_keys_the_issuer_is_unavailable(
    issuer: Issuer, remote: RemoteKeys, moment: Clock, path: str, fault: str
) -> None:
    issuer.replies[path] = lambda: BROKEN[fault]
    with patience_for(fault):
        for _ in range(3):
            with pytest.raises(IssuerUnavailable) as unavailable:
                await verify(issuer.token(), remote, rules(issuer))
            assert unavailable.value.retry_after == PAUSE
    assert issuer.requests("/elsewhere") == 0
    assert issuer.requests(path) == 1
    del issuer.replies[path]
    moment.seconds += PAUSE
    assert await verify(issuer.token(), remote, rules(issuer))


@contextmanager
def patience_for(fault: str) -> Iterator[None]:
    """Give an issuer that never ends its answer up sooner."""
    patience = 1.0 if fault == "never ends" else PATIENCE
    with mock.patch.object(key_sets, "PATIENCE", patience):
        yield


@pytest.mark.parametrize("fault", BROKEN)
async def test_while_the_issuer_is_down_the_last_good_keys_count_for_a_day(
    issuer: Issuer, remote: RemoteKeys, moment: Clock, fault: str
) -> None:
    await remote.current()
    issuer.replies["/jwks"] = lambda: BROKEN[fault]
    with patience_for(fault):
        moment.seconds += LAST_GOOD - 1
        assert await verify(issuer.token(), remote, rules(issuer))
        moment.seconds += 1
        with pytest.raises(IssuerUnavailable):
            await verify(issuer.token(), remote, rules(issuer))


async def test_a_slow_issuer_is_given_up_and_then_nobody_waits(
    issuer: Issuer, remote: RemoteKeys, moment: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await remote.current()
    monkeypatch.setattr("keyman.identity.key_sets.PATIENCE", 0.2)
    issuer.replies["/jwks"] = lambda: SILENCE
    moment.seconds += FRESH
    assert await verify(issuer.token(), remote, rules(issuer))  # waits for the time-out, once
    moment.seconds += PAUSE
    monkeypatch.setattr("keyman.identity.key_sets.PATIENCE", 1000)
    assert await verify(issuer.token(), remote, rules(issuer))  # a fetch is under way that nobody waits for


async def test_an_answer_that_drips_is_given_up(issuer: Issuer, remote: RemoteKeys) -> None:
    issuer.replies["/jwks"] = lambda: Reply(200, b"{", {"Content-Length": "100000"}, then="drip")
    with patience_for("never ends"), pytest.raises(IssuerUnavailable):
        await remote.current()


async def test_one_who_leaves_does_not_end_the_fetch_for_others(
    issuer: Issuer, remote: RemoteKeys, moment: Clock
) -> None:
    issuer.replies["/jwks"] = lambda: Reply(200, issuer.jwks(), delay=0.3)
    first, second = (asyncio.create_task(remote.current()) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    assert len(await second) == 1
    assert issuer.requests() == 1


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"issuer": "https://other.example.com"},
        {"issuer": "{url}/"},
        {"issuer": "{url}"},
        {"issuer": "{url}", "jwks_uri": 5},
        {"issuer": "{url}", "jwks_uri": "http://id.example.com/jwks"},
        {"issuer": "{url}", "jwks_uri": "file:///etc/passwd"},
        {"issuer": "{url}", "jwks_uri": "https://user:pw@id.example.com/"},
        {"issuer": "{url}", "jwks_uri": "//127.0.0.1/"},
        {"issuer": "{url}", "jwks_uri": "http://127.0.0.1:1/\ud800"},
    ],
)
async def test_a_discovery_document_of_another_issuer_or_without_a_safe_address_is_refused(
    issuer: Issuer, remote: RemoteKeys, document: dict[str, object]
) -> None:
    filled = {
        name: value.replace("{url}", issuer.url) if isinstance(value, str) else value
        for name, value in document.items()
    }
    issuer.replies[DISCOVERY] = lambda: answer(filled)
    with pytest.raises(IssuerUnavailable):
        await remote.current()
    assert issuer.requests() == 0


async def test_no_failure_repeats_an_address(issuer: Issuer) -> None:
    for path in ("/nowhere", "/c4n4ry"):
        with pytest.raises(FetchFailed) as failed:
            await Fetcher().get(issuer.url + path)
        assert "c4n4ry" not in str(failed.value)
        assert "127" not in str(failed.value)
        assert failed.value.__context__ is None or "c4n4ry" not in repr(failed.value.__context__)


def test_a_file_of_keys_must_be_one(tmp_path: Path) -> None:
    for content in (b"{}", b"", b'{"keys": []' + b" " * MAX_BYTES + b"}"):
        (tmp_path / "jwks.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"^is "):
            FileKeys(tmp_path / "jwks.json")
    with pytest.raises(ValueError, match="cannot be read"):
        FileKeys(tmp_path / "none.json")


async def test_a_file_is_read_again_when_it_changes_and_never_replaced_by_nonsense(
    issuer: Issuer, tmp_path: Path, moment: Clock
) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(issuer.jwks())
    source = FileKeys(path, clock=moment)
    assert await verify(issuer.token(), source, rules(issuer))
    issuer.rotate()
    path.write_bytes(issuer.jwks())
    assert await verify(issuer.token(), source, rules(issuer))  # its kid is not known, so the file is looked at
    path.write_bytes(b"<html>")
    moment.seconds += FILE_CHECK
    assert await verify(issuer.token(), source, rules(issuer))
    path.unlink()
    moment.seconds += FILE_CHECK
    assert await verify(issuer.token(), source, rules(issuer))
    issuer.rotate(keep=False)
    path.write_bytes(issuer.jwks())
    moment.seconds += FILE_CHECK
    assert len(await source.current()) == 1
