"""A management plane behind its real server, and people with accounts there who type commands."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
import keyring
import pytest
from argon2 import PasswordHasher
from keyring.backend import KeyringBackend
from keyring.backends import fail
from keyring.errors import PasswordDeleteError
from sqlalchemy.engine import URL, make_url

from keyman.identity import users
from keyman.identity.passwords import Passwords
from keyman.storage.transactions import Database
from keyman.values import EmailAddress, NewPassword
from tests.cli.transcript import keyman
from tests.planes.management.api.served import served
from tests.support.cli import Finished, environment
from tests.support.database import copied
from tests.support.http import client_of
from tests.support.planes import PASSWORD, Vault

GATEWAY = "https://gateway.example.com"

_NUMBERS = itertools.count(1)


class Site(NamedTuple):
    """A plane behind its server, and the database of it."""

    url: str
    database: URL

    def add(self, email: str) -> None:
        """Create an account. Sign-up would be refused after some of them."""

        async def do() -> None:
            db = Database(self.database)
            quick = Passwords(PasswordHasher(time_cost=1, memory_cost=8, parallelism=1))
            await users.add(db, quick, EmailAddress.parse(email), NewPassword.parse(PASSWORD))
            await db.close()

        asyncio.run(do())


@contextmanager
def site_at(directory: Path, migrated: Path, vault: Vault, **given: str) -> Iterator[Site]:
    copied(migrated, directory / "keyman.db")
    database = make_url(f"sqlite+aiosqlite:///{directory}/keyman.db")
    with served(database, vault.settings, directory / "log", **given) as url:
        yield Site(url, database)


@pytest.fixture(scope="session")
def owners_site(migrated_sqlite: Path, provisioned: Vault, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A plane whose gateway has an address, too."""
    directory = tmp_path_factory.mktemp("owners")
    with site_at(directory, migrated_sqlite, provisioned, KEYMAN_GATEWAY_PUBLIC_URL=GATEWAY) as site:
        yield site


@dataclass
class Person:
    """Somebody with an account, and their command line. `pages` is their browser."""

    url: str
    email: str
    pages: httpx.Client
    env: dict[str, str]

    def types(self, *arguments: str | Path, stdin: str | bytes = "", **variables: str) -> Finished:
        return keyman(*arguments, env=self.env | variables, stdin=stdin)

    def does(self, *arguments: str | Path, stdin: str | bytes = "", **variables: str) -> Finished:
        """Type a command that has to work."""
        done = self.types(*arguments, stdin=stdin, **variables)
        assert done.code == 0, done.err
        return done

    def signs_in(self) -> None:
        self.does("login", self.url, "--email", self.email, stdin=f"{PASSWORD}\n")

    def tokens(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.pages.get("/api/tokens").json()
        return found

    def stored(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.pages.get("/api/keys").json()
        return found

    def stores(self, service: str, value: str, **fields: object) -> int:
        answer = self.pages.post("/api/keys", json={"service": service, "api_key": value, **fields})
        assert answer.status_code == 201, answer.text
        number: int = answer.json()["id"]
        return number

    @property
    def logins(self) -> Path:
        return Path(self.env["HOME"]) / ".config" / "keyman" / "logins.json"


@pytest.fixture
def stranger(owners_site: Site, tmp_path: Path) -> Iterator[Person]:
    """Somebody with an account who has not signed in yet."""
    email = f"person{next(_NUMBERS)}@example.com"
    owners_site.add(email)
    env = environment(HOME=str(tmp_path), PYTHON_KEYRING_BACKEND="keyring.backends.fail.Keyring")
    with closing(client_of(owners_site.url)) as pages:
        assert pages.post("/api/auth/login", json={"email": email, "password": PASSWORD}).status_code == 200
        yield Person(owners_site.url, email, pages, env)


@pytest.fixture
def member(stranger: Person) -> Person:
    """Somebody who is signed in."""
    stranger.signs_in()
    return stranger


def complaint(done: Finished) -> str:
    """The last line of a command that failed for a reason of its own, after what it said before."""
    assert done.code == 1, done
    assert "Traceback" not in done.err
    said = done.err.splitlines()[-1]
    assert said.startswith("keyman: ")
    return said


class Ring(KeyringBackend):
    """A keyring in memory: no system of the tests has one that opens without a person."""

    priority = 1

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # keyring has no type there
        self.held: dict[tuple[str, str], str] = {}

    def get_password(self, service: str, username: str) -> str | None:
        return self.held.get((service, username))

    def set_password(self, service: str, username: str, password: str) -> None:
        self.held[service, username] = password

    def delete_password(self, service: str, username: str) -> None:
        if self.held.pop((service, username), None) is None:
            raise PasswordDeleteError


@pytest.fixture(autouse=True)
def use_ring() -> Iterator[Callable[[KeyringBackend], None]]:
    """Gives commands in this process another keyring; without it, they have none."""
    none = fail.Keyring()  # type: ignore[no-untyped-call]  # as above
    keyring.set_keyring(none)
    yield keyring.set_keyring
    keyring.set_keyring(none)
