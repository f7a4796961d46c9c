"""The home directory of `keyman dev`: its files, and the lock on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.engine import URL

from keyman.errors import ConfigurationError
from keyman.handover import OWN
from keyman.private import open_private, read_private, write_private


class Home:
    """A directory that only its owner can read: `settings.env`, `resolver.env`, `gateway.env`, `keyman.db`, `vault/`.

    Each plane has its own file of settings, so that no plane sees another's login to Vault. Raises
    ConfigurationError for a path that a settings file cannot hold.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.abspath(directory))  # resolve() would follow a link
        if not is_utf8(str(self.directory)):  # its settings files name it
            raise ConfigurationError("The path of --home is not UTF-8 text: give another directory")
        self.settings_file = self.directory / "settings.env"
        self.resolver_file = self.directory / "resolver.env"
        self.gateway_file = self.directory / "gateway.env"
        self.checks_token_file = self.directory / "gateway-token"
        self.vault = self.directory / "vault"

    @property
    def database(self) -> URL:
        return URL.create("sqlite+aiosqlite", database=str(self.directory / "keyman.db"))

    def settings(self) -> dict[str, str]:
        """Return the variables of the management plane and of operators' commands. Empty before the first start.

        Raises ConfigurationError.
        """
        check_ours(self.directory)
        return _read(self.settings_file)

    def resolver_settings(self) -> dict[str, str]:
        """Return the variables of the resolver plane. Raises ConfigurationError."""
        check_ours(self.directory)
        return _read(self.resolver_file)

    def gateway_settings(self) -> dict[str, str]:
        """Return the variables of the gateway plane. Raises ConfigurationError."""
        check_ours(self.directory)
        return _read(self.gateway_file)

    def environment(self) -> dict[str, str]:
        """Return this process's variables, with those of keyman replaced by the ones of this home.

        Raises ConfigurationError when `keyman dev` has not run here yet.
        """
        settings = self.settings()
        if not settings:
            raise ConfigurationError(f"There is no {self.settings_file}. First run: keyman dev --home {self.directory}")
        return without_own(os.environ) | settings

    def checks_token(self) -> str | None:
        """Return the token of the application for live checks, or None. Raises ConfigurationError."""
        try:
            return read_private(self.checks_token_file).decode("ascii").strip()
        except (FileNotFoundError, UnicodeDecodeError):
            return None
        except OSError:
            raise ConfigurationError(f"{self.checks_token_file} cannot be read") from None

    def write_checks_token(self, token: str) -> None:
        """Store the token of the application for live checks. Raises ConfigurationError."""
        try:
            write_private(self.checks_token_file, f"{token}\n")
        except OSError:
            raise ConfigurationError(
                f"{self.checks_token_file} cannot be written: make room, or give another directory with --home"
            ) from None

    def write_settings(self, settings: Mapping[str, str]) -> None:
        _write(self.settings_file, settings)

    def write_resolver_settings(self, settings: Mapping[str, str]) -> None:
        _write(self.resolver_file, settings)

    def write_gateway_settings(self, settings: Mapping[str, str]) -> None:
        _write(self.gateway_file, settings)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the private directory and lock it for this process.

        Raises ConfigurationError when another process holds the lock, and when the directory is not ours.
        """
        try:
            with contextlib.suppress(FileExistsError):  # also of a link, which is not followed
                self.directory.mkdir(mode=0o700, parents=True)
            _close_to_others(self.directory)
            check_ours(self.vault)
            lock = open_private(self.directory / "lock", os.O_RDWR | os.O_CREAT)
        except OSError:
            raise ConfigurationError(
                f"{self.directory} cannot be written to: give another directory with --home"
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigurationError(
                f"keyman dev already runs with {self.directory}: stop it, or give another directory with --home"
            ) from None
        try:
            yield
        finally:
            os.close(lock)


def is_utf8(text: str) -> bool:
    """Return whether a text of the system, such as an argument or a file's name, is UTF-8. It may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read(path: Path) -> dict[str, str]:
    try:
        lines = read_private(path).decode().splitlines()
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{path} cannot be read") from None
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def _write(path: Path, settings: Mapping[str, str]) -> None:
    """Replace the settings, all of them or none, as lines `NAME=value`. Raises ConfigurationError."""
    lines = [
        "# Written by `keyman dev` at each start; for development.",
        *(f"{name}={value}" for name, value in settings.items()),
    ]
    try:
        write_private(path, "\n".join(lines) + "\n")
    except OSError:
        raise ConfigurationError(
            f"{path} cannot be written: make room, or give another directory with --home"
        ) from None


def without_own(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that are not keyman's. A shell may have set others for another keyman."""
    return {name: value for name, value in environ.items() if not name.startswith(OWN)}


def check_ours(directory: Path) -> None:
    """Raises ConfigurationError for a directory that another user could exchange or fill. None at all is fine."""
    try:
        found = directory.lstat()
    except FileNotFoundError:
        return
    except OSError:
        raise ConfigurationError(f"{directory} cannot be read") from None
    if stat.S_ISLNK(found.st_mode):
        raise ConfigurationError(f"{directory} is a symbolic link: give the directory itself with --home")
    if not stat.S_ISDIR(found.st_mode):
        raise ConfigurationError(f"{directory} is not a directory: give another with --home")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(f"{directory} belongs to another user: give a directory of your own with --home")


def _close_to_others(directory: Path) -> None:
    """Let only the owner use a directory. Raises ConfigurationError if it is not ours, or others may have filled it."""
    check_ours(directory)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():  # it was exchanged since the check
            raise ConfigurationError(f"{directory} belongs to another user: give a directory of your own with --home")
        os.fchmod(descriptor, 0o700)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and os.listdir(descriptor):
            raise ConfigurationError(
                f"Other users could write to {directory}, so its files may not be yours: give an empty directory with "
                "--home"
            )
    finally:
        os.close(descriptor)
