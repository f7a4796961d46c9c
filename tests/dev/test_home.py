"""The home directory of `keyman dev`: private, held by one process, and written whole."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.config.database import load_database_url
from keyman.dev.home import Home, without_own, write_private
from keyman.errors import ConfigurationError


@contextmanager
def _umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_what_is_written_is_its_owners_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    home = Home(tmp_path / "a" / "home")
    with _umask(mask), home.locked():
        home.write_settings({"KEYMAN_X": "1"})
        write_private(home.directory / "keys.json", "{}")
    assert _mode(home.directory) == 0o700
    for name in ("lock", "settings.env", "keys.json"):
        assert _mode(home.directory / name) == 0o600
    assert sorted(path.name for path in home.directory.iterdir()) == ["keys.json", "lock", "settings.env"]


def test_a_home_that_was_open_is_closed(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    with Home(tmp_path / "home").locked():
        assert _mode(tmp_path / "home") == 0o700


def test_a_file_that_was_open_is_replaced_by_one_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "settings.env"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, "new")
    assert (path.read_text(), _mode(path)) == ("new", 0o600)


def test_what_a_crash_left_half_written_is_not_read_and_not_in_the_way(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.write_settings({"KEYMAN_X": "1"})
    (tmp_path / "settings.new").write_text("KEYMAN_X=ha")
    (tmp_path / "settings.new").chmod(0o644)
    assert home.settings() == {"KEYMAN_X": "1"}
    home.write_settings({"KEYMAN_X": "2"})
    assert home.settings() == {"KEYMAN_X": "2"}
    assert _mode(tmp_path / "settings.env") == 0o600


_NAMES = st.from_regex(r"KEYMAN_[A-Z_]{1,20}", fullmatch=True)
_VALUES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1)


@given(settings=st.dictionaries(_NAMES, _VALUES, min_size=1))
def test_settings_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, str]
) -> None:
    directory = tmp_path_factory.mktemp("home")
    home = Home(directory)
    home.write_settings(settings)
    assert home.settings() == settings
    shutil.rmtree(directory)


@given(name=st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60))
def test_a_home_of_any_name_keeps_its_database_inside(name: str) -> None:
    assume(len(name.encode()) <= 200 and name not in (".", ".."))
    home = Home(Path("/nonexistent") / name)
    written = home.database.render_as_string(hide_password=False)
    assert load_database_url({"KEYMAN_DATABASE_URL": written}).database == f"/nonexistent/{name}/keyman.db"
    assert "\n" not in written


def test_a_home_that_was_never_used_says_how_to_use_it(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert home.settings() == {}
    with pytest.raises(ConfigurationError, match=f"keyman dev --home {tmp_path}/home"):
        home.environment()
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_settings_that_cannot_be_read_are_said(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "settings.env"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"settings\.env cannot be read"):
        Home(tmp_path).settings()


def test_a_shells_own_settings_do_not_leak_into_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYMAN_SIGNUP", "closed")
    monkeypatch.setenv("VAULT_ADDR", "http://elsewhere.example.com")
    monkeypatch.setenv("UNRELATED", "stays")
    home = Home(tmp_path)
    home.write_settings({"KEYMAN_VAULT_ADDR": "http://127.0.0.1:1"})
    environ = home.environment()
    assert "KEYMAN_SIGNUP" not in environ
    assert "VAULT_ADDR" not in environ
    assert (environ["UNRELATED"], environ["KEYMAN_VAULT_ADDR"]) == ("stays", "http://127.0.0.1:1")
    assert without_own({"KEYMAN_X": "", "VAULT_X": "", "X": ""}) == {"X": ""}


def test_a_home_is_held_once_and_given_back(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.locked():
        with pytest.raises(ConfigurationError, match="already runs"), Home(tmp_path).locked():
            pass
        with pytest.raises(ConfigurationError, match="already runs"), Home(tmp_path / "." / "x" / "..").locked():
            pass
    with home.locked():
        pass


def test_a_home_that_cannot_be_written_to_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--home"), Home(tmp_path / "file").locked():
        pass
