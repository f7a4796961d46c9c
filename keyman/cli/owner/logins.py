"""Where the command line keeps what `keyman login` got: the servers in a private file, and each token in the keyring
of the system, or else in that file.
"""

from __future__ import annotations

import os
from pathlib import Path

import keyring
import msgspec

from keyman.client.endpoint import checked_token
from keyman.errors import KeymanError
from keyman.private import read_private, write_private
from keyman.secret import Secret

FILE = "logins.json"


class Login(msgspec.Struct):
    """One server. `token` is None if it lies in the keyring, and `email` if the token was pasted."""

    email: str | None = None
    token: str | None = None

    def __repr__(self) -> str:
        return "Login(***)"


class Logins(msgspec.Struct):
    """The servers by their URLs. `current` is the one of the last login."""

    current: str | None = None
    servers: dict[str, Login] = {}

    @classmethod
    def load(cls) -> Logins:
        """Return what is stored, or nothing before the first login. Raises KeymanError."""
        path = _path()
        try:
            content = read_private(path)
            is_open = path.stat().st_mode & 0o077
        except FileNotFoundError:
            return cls()
        except OSError:
            raise KeymanError(f"{path} cannot be read: it must be a file of yours, and no link.") from None
        if is_open:
            raise KeymanError(f"Others can read {path}, which may hold tokens. Run: chmod 600 {path}")
        try:
            return msgspec.json.decode(content, type=cls)
        except msgspec.MsgspecError:
            fault = KeymanError(f"{path} is damaged. Remove it, and sign in again with: keyman login URL")
        raise fault  # here, because the other error may quote the file

    def save(self) -> None:
        """Store all of it, or nothing. Raises KeymanError."""
        path = _path()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n")
        except OSError:
            raise KeymanError(
                f"{path} cannot be written: make room, or name another directory in XDG_CONFIG_HOME."
            ) from None

    def token_of(self, url: str) -> Secret | None:
        """Return the token of a server, or None without a login there, and if the keyring has lost it.

        Raises KeymanError if the keyring has it, but does not give it out, and if it is no token.
        """
        login = self.servers.get(url)
        if login is None:
            return None
        return _checked(Secret(login.token), url) if login.token is not None else _from_keyring(url)

    def add(self, url: str, email: str | None, token: Secret) -> Path | None:
        """Store a login, and make it the current one. Return the file if the token lies there, and not in the keyring.

        Raises KeymanError.
        """
        is_kept = _into_keyring(url, token)
        self.servers[url] = Login(email, None if is_kept else token.reveal())
        self.current = url
        self.save()
        return None if is_kept else _path()

    def remove(self, url: str) -> None:
        """Forget a login and its token. Raises KeymanError."""
        login = self.servers.pop(url, None)
        if login is not None and login.token is None:
            _out_of_keyring(url)
        if self.current == url:
            self.current = next(reversed(self.servers), None)
        self.save()


def _path() -> Path:
    """Return the path of the file. Raises KeymanError without a home directory."""
    given = os.environ.get("XDG_CONFIG_HOME", "")
    try:
        base = Path(given) if given.startswith("/") else Path.home() / ".config"
    except RuntimeError:
        raise KeymanError("There is no home directory to keep the login in. Set HOME or XDG_CONFIG_HOME.") from None
    return base / "keyman" / FILE


USER = "token"
"""The user name of a token in the keyring; the name of its service has the URL."""


def _service(url: str) -> str:
    return f"keyman {url}"


def _into_keyring(url: str, token: Secret) -> bool:
    """Return whether the keyring has the token now. There may be none, and one that forgets what it gets."""
    try:
        keyring.set_password(_service(url), USER, token.reveal())
        found = keyring.get_password(_service(url), USER)
    except Exception:  # noqa: BLE001  # a backend is another program's code, and raises what it likes
        return False
    return found == token.reveal()


def _from_keyring(url: str) -> Secret | None:
    try:
        found = keyring.get_password(_service(url), USER)
    except Exception:  # noqa: BLE001  # as above
        fault = KeymanError(
            f"Your token for {url} is in the keyring of the system, which is locked or does not answer. Unlock it, or "
            f"run: keyman login {url}"
        )
    else:
        return None if found is None else _checked(Secret(found), url)
    raise fault  # here, because nobody knows what the other error holds


def _checked(token: Secret, url: str) -> Secret:
    """Return a token that was kept. Raises KeymanError for a text that has not the form of a token."""
    try:
        return checked_token(token)
    except ValueError:
        raise KeymanError(f"What is kept as your token for {url} is damaged. Run: keyman login {url}") from None


def _out_of_keyring(url: str) -> None:
    try:
        keyring.delete_password(_service(url), USER)
    except Exception:  # noqa: BLE001  # as above; the token was revoked before
        return
