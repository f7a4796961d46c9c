"""The home directory of `keyman dev`: private, held by one process, and written whole."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from keyman.config.database import load_database_url
from keyman.dev.home import Home, without_own
from keyman.errors import ConfigurationError
from keyman.private import write_private


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


@pytest.mark.parametrize("target", ["ours", "nowhere"])
def test_a_home_that_is_a_link_is_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "ours").mkdir(mode=0o755)
    (tmp_path / "home").symlink_to(tmp_path / target)
    home = Home(tmp_path / "home")
    for use in (home.settings, home.resolver_settings, home.environment, lambda: home.locked().__enter__()):
        with pytest.raises(ConfigurationError, match=r"symbolic link.*--home"):
            use()
    assert _mode(tmp_path / "ours") == 0o755
    assert not (tmp_path / "nowhere").exists()
    assert list((tmp_path / "ours").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_a_home_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir(mode=0o755)
    (tmp_path / "home" / "settings.env").write_text("KEYMAN_DATABASE_URL=theirs\n")
    os.chown(tmp_path / "home", 65534, -1)
    home = Home(tmp_path / "home")
    for use in (home.settings, home.resolver_settings, home.environment, lambda: home.locked().__enter__()):
        with pytest.raises(ConfigurationError, match=r"belongs to another user.*--home"):
            use()
    assert _mode(tmp_path / "home") == 0o755
    assert not (tmp_path / "home" / "lock").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
@pytest.mark.parametrize("name", ["settings.env", "lock"])
def test_a_file_of_another_user_is_not_used(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / "home")
    with home.locked():
        (home.directory / name).write_text("KEYMAN_DATABASE_URL=theirs\n")
    os.chown(home.directory / name, 65534, -1)
    with pytest.raises(ConfigurationError, match="cannot be"), home.locked():
        home.settings()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_home_that_others_could_fill_is_refused_unless_it_is_empty(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "home"
    directory.mkdir()
    directory.chmod(mode)
    with Home(directory).locked():
        assert _mode(directory) == 0o700
    directory.chmod(mode)
    with pytest.raises(ConfigurationError, match="may not be yours"), Home(directory).locked():
        pass


@pytest.mark.parametrize("name", ["lock", "settings.env", "resolver.env", "vault"])
def test_a_link_inside_a_home_is_not_followed(tmp_path: Path, name: str) -> None:
    home, elsewhere = Home(tmp_path / "home"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("KEYMAN_X=1\n")
    with home.locked():
        (home.directory / "lock").unlink()
        (home.directory / name).symlink_to(elsewhere if name == "vault" else elsewhere / "file")
    with pytest.raises(ConfigurationError), home.locked():  # noqa: PT012
        home.settings()
        home.resolver_settings()
    assert [path.name for path in elsewhere.iterdir()] == ["file"]
    assert (elsewhere / "file").read_text() == "KEYMAN_X=1\n"


def test_a_home_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("x")
    with pytest.raises(ConfigurationError, match="not a directory"), Home(tmp_path / "home").locked():
        pass


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
    assert without_own({"KEYMAN_X": "", "VAULT_X": "", "PGPASSWORD": "", "X": ""}) == {"X": ""}


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


def test_a_file_is_utf_8_whatever_the_locale_is(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from keyman.private import write_private\n"
        f"write_private(Path({str(tmp_path)!r}, 'x'), 'K\\xfcche')"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)
    assert (tmp_path / "x").read_bytes() == "Küche".encode()


def test_a_home_whose_name_is_no_text_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="--home is not UTF-8"):
        Home(tmp_path / os.fsdecode(b"\xff"))


def test_settings_that_cannot_be_written_are_said(tmp_path: Path) -> None:
    (tmp_path / "settings.env").mkdir()
    with pytest.raises(ConfigurationError, match=r"settings\.env cannot be written.*--home"):
        Home(tmp_path).write_settings({"KEYMAN_X": "1"})
