"""`KEYMAN_DATABASE_…`: the URLs that platforms hand out, and how they are read."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL

from keyman.config.database import load_database_url
from keyman.errors import ConfigurationError
from keyman.storage.connecting import is_pooled
from tests.config.test_settings import CERTIFICATE


def read(url: str, **more: str) -> URL:
    return load_database_url({"KEYMAN_DATABASE_URL": url, **{f"KEYMAN_DATABASE_{name}": more[name] for name in more}})


def fault(url: str, **more: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        read(url, **more)
    return str(raised.value)


@pytest.fixture
def ca(tmp_path: Path) -> str:
    file = tmp_path / "ca.pem"
    file.write_text(CERTIFICATE)
    return str(file)


@pytest.mark.parametrize(
    ("url", "host", "parameters"),
    [
        # Neon
        (
            "postgresql://u:npg_x@ep-cool-1-pooler.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require",
            "ep-cool-1-pooler.eu-central-1.aws.neon.tech",
            {"ssl": "require", "channel_binding": "require"},
        ),
        # Supabase: its pooler, and a direct connection
        ("postgresql://postgres.abc:x@aws-0-eu-west-1.pooler.supabase.com:6543/postgres", None, {}),
        ("postgres://postgres:x@db.abc.supabase.co:5432/postgres?sslmode=require", None, {"ssl": "require"}),
        # Heroku
        ("postgres://u:p0123@ec2-1-2-3-4.compute-1.amazonaws.com:5432/d8r82722", None, {}),
        # a schema of its own
        (
            "postgresql://u:x@db/keyman?options=-csearch_path%3Dkeyman,public",
            "db",
            {"search_path": "keyman,public"},
        ),
        ("postgresql://u:x@db/keyman?options=-c%20search_path%3Dkeyman", "db", {"search_path": "keyman"}),
        ("postgresql+asyncpg://u:x@db/keyman?ssl=verify-full", "db", {"ssl": "verify-full"}),
        ("postgresql://u:x@db/keyman?sslrootcert=system", "db", {"ssl": "verify-full", "sslrootcert": "system"}),
        ("postgresql://u:x@db/keyman?channel_binding=prefer", "db", {}),
    ],
)
def test_the_urls_of_platforms_are_read(url: str, host: str | None, parameters: dict[str, str]) -> None:
    found = read(url)
    assert found.drivername == "postgresql+asyncpg"
    assert host in (None, found.host)
    assert found.query == parameters


def test_channel_binding_that_is_required_never_leaves_out_tls() -> None:
    for mode in ("", "&sslmode=disable", "&sslmode=allow", "&sslmode=prefer"):
        assert read(f"postgres://u:x@db/keyman?channel_binding=require{mode}").query["ssl"] == "require"
    assert read("postgres://u:x@db/keyman?channel_binding=require&sslmode=verify-ca").query["ssl"] == "verify-ca"


def test_a_ca_verifies_the_server(ca: str) -> None:
    wanted = {"ssl": "verify-full", "sslrootcert": ca}
    assert read("postgres://u:x@db/keyman", CACERT=ca).query == wanted
    assert read(f"postgres://u:x@db/keyman?sslrootcert={ca}").query == wanted
    assert read("postgres://u:x@db/keyman?sslmode=verify-full&sslrootcert=system", CACERT=ca).query == wanted
    # As libpq does: `require` with a CA verifies that the CA signed the certificate.
    assert read("postgres://u:x@db/keyman?sslmode=require", CACERT=ca).query == {"ssl": "require", "sslrootcert": ca}


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer"])
def test_a_ca_that_would_verify_nothing_is_refused(mode: str, ca: str) -> None:
    assert "write sslmode=verify-full" in fault(f"postgres://u:x@db/keyman?sslmode={mode}", CACERT=ca)
    assert "write sslmode=verify-full" in fault(f"postgres://u:x@db/keyman?sslmode={mode}&sslrootcert={ca}")


def test_a_password_of_its_own_replaces_that_of_the_url(tmp_path: Path) -> None:
    assert read("postgres://u:old@db/keyman", PASSWORD="p@ss:w/rd%?#").password == "p@ss:w/rd%?#"
    assert read("postgres://u@db/keyman", PASSWORD=" new\n").password == "new"
    file = tmp_path / "word"
    file.write_text("new\n")
    found = read("postgres://u:old@db/keyman", PASSWORD_FILE=f"{file}\n")
    assert found.query == {"password_file": str(file)}


def test_a_password_file_is_read_at_the_start_too(tmp_path: Path) -> None:
    assert "KEYMAN_DATABASE_PASSWORD_FILE names" in fault("postgres://u@db/keyman", PASSWORD_FILE=str(tmp_path / "no"))
    file = tmp_path / "word"
    file.write_text("\n")
    assert "KEYMAN_DATABASE_PASSWORD_FILE names" in fault("postgres://u@db/keyman", PASSWORD_FILE=str(file))
    assert "are both set; keep one" in fault("postgres://u@db/keyman", PASSWORD="x", PASSWORD_FILE=str(file))


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+aiosqlite"])
def test_a_url_of_sqlite_names_its_driver_or_leaves_it_out(scheme: str) -> None:
    assert str(read(f"{scheme}:////var/lib/keyman.db")) == "sqlite+aiosqlite:////var/lib/keyman.db"


@pytest.mark.parametrize("name", ["PASSWORD", "CACERT", "POOLED"])
def test_what_only_postgresql_knows_is_refused_for_sqlite(name: str, ca: str) -> None:
    value = "on" if name == "POOLED" else ca
    assert "is only for PostgreSQL" in fault("sqlite+aiosqlite:////x.db", **{name: value})


@pytest.mark.parametrize(
    ("query", "given_", "expected"),
    [("", None, None), ("", "auto", None), ("", "ON", True), ("", "off", False), ("?pgbouncer=true", None, True)],
)
def test_a_pooler_is_found_out_unless_it_is_said(query: str, given_: str | None, expected: bool | None) -> None:
    more = {} if given_ is None else {"POOLED": given_}
    assert is_pooled(read(f"postgres://u:x@db/keyman{query}", **more)) is expected


@given(st.text(st.characters(codec="utf-8", min_codepoint=33), min_size=1, max_size=20))
def test_any_password_arrives_percent_encoded(word: str) -> None:
    url = URL.create("postgresql", "keyman", word, "db.example.com", 5432, "keyman")
    found = read(url.render_as_string(hide_password=False))
    assert (found.username, found.password, found.host) == ("keyman", word, "db.example.com")


@given(st.text(st.sampled_from("@:/%?#"), min_size=1, max_size=3))
def test_a_password_that_is_not_encoded_arrives_or_is_answered_with_what_to_do(special: str) -> None:
    """Never with a connection to another host, and never with the password."""
    word = f"zulu{special}zulu"
    url = f"postgres://keyman:{word}@db.example.com/keyman"
    if "@" in special:
        said = fault(url)
        assert "percent-encode" in said
        assert "zulu" not in said
    else:
        found = read(url)
        assert (found.host, found.password) == ("db.example.com", word)


def test_escapes_that_are_no_text_are_answered_with_what_to_do() -> None:
    assert "percent-encode" in fault("postgres://keyman:zulu%c4zulu@db.example.com/keyman")
