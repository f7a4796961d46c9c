"""The stack's certificate authority, asked by a real TLS client."""

from __future__ import annotations

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import time_machine
from stack import certificates
from stack.certificates import Pair, authority, is_current, issue

NAMES = ["keys.example.com", "127.0.0.1", "::1"]


@pytest.fixture
def trusted(tmp_path: Path) -> Pair:
    return authority(tmp_path)


def shake_hands(directory: Path, server: Pair, trusted: Pair, name: str) -> None:
    """A TLS handshake of a client that trusts `trusted` and asks for `name`. Raises ssl.SSLError."""
    pem, roots = directory / "server.pem", directory / "roots.pem"
    pem.write_bytes(server.certificate_pem() + server.key_pem())
    roots.write_bytes(trusted.certificate_pem())
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(pem)
    asking = ssl.create_default_context(cafile=str(roots))
    left, right = socket.socketpair()

    def serve() -> None:
        try:
            with serving.wrap_socket(left, server_side=True) as wrapped:
                wrapped.recv(1)
        except OSError:  # the client did not like it, which the client says itself
            left.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with asking.wrap_socket(right, server_hostname=name) as wrapped:
            wrapped.send(b"!")
    finally:
        right.close()
        thread.join()


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_trusts_the_authority_accepts_each_name(tmp_path: Path, trusted: Pair, name: str) -> None:
    shake_hands(tmp_path, issue(trusted, NAMES), trusted, name)


def test_a_client_refuses_another_name(tmp_path: Path, trusted: Pair) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake_hands(tmp_path, issue(trusted, NAMES), trusted, "other.example.com")


def test_a_client_refuses_another_authority(tmp_path: Path, trusted: Pair) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(tmp_path, issue(authority(tmp_path / "other"), NAMES), trusted, NAMES[0])


def test_the_authority_stays_the_same(tmp_path: Path, trusted: Pair) -> None:
    assert authority(tmp_path).certificate == trusted.certificate
    assert authority(tmp_path).key.private_numbers() == trusted.key.private_numbers()
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {"ca.crt": 0o600, "ca.key": 0o600}


def test_an_authority_that_was_half_made_is_made_again(tmp_path: Path, trusted: Pair) -> None:
    (tmp_path / "ca.crt").unlink()  # it is written last
    assert authority(tmp_path).certificate != trusted.certificate


def test_a_certificate_is_kept_until_it_nears_its_end(trusted: Pair) -> None:
    pem = issue(trusted, NAMES).certificate_pem()
    assert is_current(pem, trusted, NAMES)
    with time_machine.travel(datetime.now(UTC) + certificates.SERVER_LIFE - certificates.RENEW_BEFORE, tick=False):
        assert not is_current(pem, trusted, NAMES)


def test_a_certificate_for_other_names_or_of_another_authority_is_not_kept(tmp_path: Path, trusted: Pair) -> None:
    pem = issue(trusted, NAMES).certificate_pem()
    assert not is_current(pem, trusted, NAMES[:1])
    (tmp_path / "other").mkdir()
    assert not is_current(pem, authority(tmp_path / "other"), NAMES)


def test_browsers_accept_how_long_it_lives(trusted: Pair) -> None:
    certificate = issue(trusted, NAMES).certificate
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= timedelta(days=398)
