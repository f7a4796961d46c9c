"""`keyman rotate` and `keyman rewrap`, as transcripts, with the rotator's own login; and on a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import delete, update
from sqlalchemy.engine import make_url

from keyman.config.vault import VaultSettings
from keyman.keys.deployment import deployment
from keyman.keys.tables import api_keys
from tests.cli.conftest import execute, store
from tests.cli.test_common import failed
from tests.cli.transcript import keyman
from tests.support.cli import KEYMAN, Finished, live
from tests.support.database import stored_keys
from tests.support.vault import DisposableVault
from tests.support.waiting import PATIENCE


def versions(env: dict[str, str]) -> list[str]:
    keys = asyncio.run(stored_keys(make_url(env["KEYMAN_DATABASE_URL"])))
    return sorted({key.ciphertext.split(":")[1] for key in keys.values()})


def test_a_rotation_brings_everything_along_and_says_what_may_be_retired(
    operator: dict[str, str], stored: int, rotated_vault: DisposableVault
) -> None:
    mount = operator["KEYMAN_VAULT_MOUNT"]
    nothing = Finished(0, "", "0 keys to rewrap. The newest version is 1.\n")
    assert keyman("rewrap", "--dry-run", env=operator) == nothing

    done = keyman("rotate", env=operator)
    assert (done.code, done.out) == (0, "")
    first, *steps = done.err.splitlines()
    assert first == "New values are now sealed with version 2 of the encryption key."
    assert f"Rewrapped {stored} keys to version 2." in steps
    assert f"    vault write {mount}/keys/keyman/config min_decryption_version=2" in steps
    assert "Vault does not open backups of the database from before this run" in done.err
    assert versions(operator) == ["v2"]

    rotated_vault.root.ask("POST", f"{mount}/keys/keyman/config", {"min_decryption_version": 2})
    assert keyman("rewrap", env=operator) == Finished(0, "", "Rewrapped 0 keys to version 2.\n")
    told = json.loads(keyman("audit", "list", "--json", env=operator).out)
    assert [(entry["action"], entry["actor"], entry["detail"]) for entry in told if entry["key_id"] is None] == [
        ("vault.rotate", "operator", "version 2"),
        ("vault.rewrap", "operator", f"to version 2: {stored} rewrapped, 0 refused"),
        ("vault.rewrap", "operator", "to version 2: 0 rewrapped, 0 refused"),
    ]


def test_a_dry_run_counts_by_version_and_changes_nothing(
    operator: dict[str, str], stored: int, rotated_vault: DisposableVault
) -> None:
    rotated_vault.root.ask("POST", f"{operator['KEYMAN_VAULT_MOUNT']}/keys/keyman/rotate")
    counted = Finished(0, f"{stored} at version 1\n", f"{stored} keys to rewrap. The newest version is 2.\n")
    assert keyman("rewrap", "--dry-run", env=operator) == counted
    assert keyman("rewrap", "--dry-run", env=operator) == counted
    assert versions(operator) == ["v1"]


def test_progress_is_a_line_for_each_tenth_where_there_is_no_terminal(operator: dict[str, str], stored: int) -> None:
    steps = [line for line in keyman("rotate", env=operator).err.splitlines() if line.startswith("Rewrapping: ")]
    assert 1 <= len(steps) <= 10
    assert steps[-1].startswith(f"Rewrapping: {stored} of {stored}, ")
    assert steps[-1].endswith(" per second, 0 s left")


def test_progress_is_a_bar_with_rate_and_time_left_on_a_terminal(operator: dict[str, str], stored: int) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([KEYMAN, "rotate"], env=operator | {"TERM": "xterm"}, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal that closes is reported
            while part := os.read(ours, 65536):
                shown += part
        assert process.wait(PATIENCE) == 0
    os.close(ours)
    text = shown.decode()
    assert "━" in text
    assert f"{stored}/{stored}" in text
    assert " per second" in text
    assert "0:00:00" in text


def test_standard_output_lists_only_what_vault_does_not_open(operator: dict[str, str], stored: int) -> None:
    execute(operator, update(api_keys).where(api_keys.c.id == 7).values(value_uuid=uuid4()))
    done = keyman("rotate", env=operator)
    assert (done.code, done.out) == (1, "key 7 of user 1 (OPENAI): Vault does not open it\n")
    assert f"Rewrapped {stored - 1} keys to version 2." in done.err
    assert "Vault did not open 1 key, now marked undecryptable." in done.err
    assert "To retire" not in done.err
    assert "min_decryption_version" not in done.err  # the old version is still needed
    assert keyman("rewrap", "--dry-run", env=operator).out == "1 at version 1\n"
    execute(operator, delete(api_keys).where(api_keys.c.id == 7))
    assert keyman("rewrap", env=operator).code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_every_key_whole_and_the_next_one_goes_on(
    operator: dict[str, str], stored: int, rotated_vault: DisposableVault, tmp_path: Path, number: signal.Signals
) -> None:
    with live("rotate", env=operator | {"MARK": str(tmp_path)}, directory=tmp_path / "out", mark=tmp_path) as running:
        running.says("New values are now")
        ended = running.end(number)
    if number is signal.SIGINT and "Rewrapped" not in ended.err:  # else it had done its work when the signal came
        assert ended.code == 130
        assert "Run `keyman rewrap` to continue." in ended.err
    done = keyman("rewrap", env=operator)
    assert (done.code, done.out) == (0, "")
    assert versions(operator) == ["v2"]
    keys = asyncio.run(stored_keys(make_url(operator["KEYMAN_DATABASE_URL"])))
    opened = rotated_vault.root.opens_all(keys.values(), mount=operator["KEYMAN_VAULT_MOUNT"])
    assert set(opened.values()) == {"sk-1234567890"}
    assert len(opened) == stored


def test_of_keys_below_what_vault_still_opens_it_says_how_they_are_got_back(
    operator: dict[str, str], stored: int, rotated_vault: DisposableVault, file: Path
) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        [late] = connection.execute("SELECT encrypted_key, id FROM api_keys WHERE id = 7")
        assert keyman("rotate", env=operator).code == 0
        connection.execute("UPDATE api_keys SET key_version = 1, encrypted_key = ? WHERE id = ?", late)
        connection.commit()
    key = f"{operator['KEYMAN_VAULT_MOUNT']}/keys/keyman"
    rotated_vault.root.ask("POST", f"{key}/config", {"min_decryption_version": 2})
    done = keyman("rewrap", env=operator)
    assert (done.code, done.out) == (1, "key 7 of user 1 (OPENAI): Vault does not open it\n")
    assert f"    vault write {key}/config min_decryption_version=1\n" in done.err
    rotated_vault.root.ask("POST", f"{key}/config", {"min_decryption_version": 1})
    assert keyman("rewrap", env=operator).code == 0


@pytest.mark.parametrize("command", [("rotate",), ("rewrap",), ("rewrap", "--dry-run")], ids=" ".join)
def test_what_keeps_it_from_starting_is_said_in_words(
    operator: dict[str, str], management: VaultSettings, command: tuple[str, ...]
) -> None:
    assert "KEYMAN_VAULT_ROLE_ID is not set" in failed(keyman(*command, env={**operator, "KEYMAN_VAULT_ROLE_ID": ""}))
    wrong = failed(keyman(*command, env={**operator, "KEYMAN_VAULT_SECRET_ID": "not-the-secret"}))
    assert "Vault refuses keyman's login" in wrong
    assert "not-the-secret" not in wrong
    gone = failed(keyman(*command, env={**operator, "KEYMAN_VAULT_ADDR": "http://127.0.0.1:9"}))
    assert "Vault cannot be reached" in gone
    assert "Nothing was stored" not in gone


def test_a_wrapped_secret_id_serves_one_command(
    operator: dict[str, str], stored: int, rotated_vault: DisposableVault
) -> None:
    token = rotated_vault.root.wraps("auth/approle/role/keyman-rotator/secret-id")
    env = {**operator, "KEYMAN_VAULT_SECRET_ID": "", "KEYMAN_VAULT_WRAPPED_SECRET_ID": token}
    unmigrated = {**env, "KEYMAN_DATABASE_URL": f"{env['KEYMAN_DATABASE_URL']}.other"}
    assert "keyman db upgrade" in failed(keyman("rotate", env=unmigrated))  # which leaves it for the next
    assert keyman("rotate", env=env).code == 0
    assert versions(operator) == ["v2"]
    said = failed(keyman("rewrap", env=env))
    assert "used up" in said
    assert "keyman vault secret-id keyman-rotator" in said
    assert token not in said


def test_the_planes_own_role_cannot_rotate(operator: dict[str, str], management: VaultSettings) -> None:
    asyncio.run(store(operator, management, 1))
    assert management.role_id is not None
    assert management.secret_id is not None
    env = operator | {
        "KEYMAN_VAULT_ROLE_ID": management.role_id,
        "KEYMAN_VAULT_SECRET_ID": management.secret_id.reveal(),
    }
    said = failed(keyman("rotate", env=env))
    assert "its policy does not allow this operation" in said
    assert "keyman-rotator" in said
    assert keyman("rewrap", env=env).code == 0


def test_another_key_of_the_same_name_is_not_rotated(
    operator: dict[str, str], stored: int, rotated_vault: DisposableVault
) -> None:
    key = f"{operator['KEYMAN_VAULT_MOUNT']}/keys/keyman"
    rotated_vault.root.ask("POST", f"{key}/config", {"deletion_allowed": True})
    rotated_vault.root.ask("DELETE", key)
    rotated_vault.root.ask("POST", key, {"derived": True, "type": "aes256-gcm96"})
    for command in ("rotate", "rewrap"):
        assert "not the one that this database was sealed with" in failed(keyman(command, env=operator))
    assert rotated_vault.root.ask("GET", key)["latest_version"] == 1


def test_a_database_without_a_sentinel_is_not_rotated_by_somebody_who_cannot_make_one(
    operator: dict[str, str], stored: int
) -> None:
    execute(operator, update(deployment).values(sentinel=None))
    said = failed(keyman("rotate", env=operator))
    assert "its policy does not allow" in said or "not the one that this database was sealed with" in said


def test_a_home_is_rotated_by_its_own_vaults_rotator_and_needs_its_keyman_dev(tmp_path: Path) -> None:
    assert "First run: keyman dev" in failed(keyman("rotate", "--home", tmp_path / "nothing"))
