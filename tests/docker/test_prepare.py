"""The job that fills the stack's volumes."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url
from stack.files import SHARED, password, write
from stack.prepare import prepare

VOLUMES = (
    *("authority", "public", "vault", "proxy", "gateway-proxy", "database"),
    *("migration", "management", "resolver", "gateway", "grafana"),
)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    for name in VOLUMES:
        (tmp_path / name).mkdir()
    prepare(tmp_path, ["localhost"])
    return tmp_path


def contents(volumes: Path) -> dict[str, bytes]:
    return {str(path.relative_to(volumes)): path.read_bytes() for path in volumes.rglob("*") if path.is_file()}


def test_a_second_time_changes_nothing(volumes: Path) -> None:
    before = contents(volumes)
    prepare(volumes, ["localhost"])
    assert contents(volumes) == before


def test_another_host_gets_another_certificate_and_nothing_else_changes(volumes: Path) -> None:
    before = contents(volumes)
    prepare(volumes, ["keys.example.com", "localhost"])
    after = contents(volumes)
    assert {name for name in before if before[name] != after[name]} == {"proxy/tls.pem", "gateway-proxy/tls.pem"}


def test_each_plane_gets_a_user_of_its_own_and_the_password_that_the_database_gives_it(volumes: Path) -> None:
    users = set()
    for plane in ("migration", "management", "resolver", "gateway"):
        url = make_url((volumes / plane / "database_url").read_text())
        assert url.username is not None
        users.add(url.username)
        assert url.password == (volumes / "database" / f"{url.username}_password").read_text()
        assert (volumes / plane / "database_url").stat().st_mode & 0o777 == 0o600
    assert len(users) == 4


def test_no_private_key_but_a_servers_own_is_beside_it(volumes: Path) -> None:
    holding = {name for name, content in contents(volumes).items() if b"PRIVATE KEY" in content}
    assert holding == {"authority/ca.key", "vault/tls.pem", "proxy/tls.pem", "gateway-proxy/tls.pem"}


def test_passwords_differ_and_need_no_quoting(tmp_path: Path) -> None:
    drawn = {password(tmp_path / str(number), SHARED) for number in range(50)}
    assert len(drawn) == 50
    assert all(len(word) >= 43 and word.replace("-", "").replace("_", "").isalnum() for word in drawn)


def test_what_a_killed_job_left_half_written_is_not_in_the_way(tmp_path: Path) -> None:
    (tmp_path / ".word.new").write_bytes(b"half")
    write(tmp_path / "word", b"whole", SHARED)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"word": b"whole"}
