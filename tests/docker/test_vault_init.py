"""The job that sets up the stack's Vault."""

from __future__ import annotations

import json
from pathlib import Path

import certifi
import pytest
from stack import vault

from keyman.dev.embedded import EmbeddedVault


def test_no_command_of_the_job_has_the_root_token_in_its_environment(
    embedded_server: EmbeddedVault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = embedded_server.root_token.reveal()
    keys = tmp_path / "unseal"
    for directory in (keys, *(tmp_path / plane for plane in vault.ROLES)):
        directory.mkdir()
    (keys / "keys.json").write_text(json.dumps({"unseal_key": "", "root_token": token}))
    given = dict[str, str]()
    run = vault._keyman

    def recording(arguments: list[str], environment: dict[str, str]) -> None:
        given.update(environment)
        run(arguments, environment)

    monkeypatch.setenv("KEYMAN_VAULT_ADDR", embedded_server.address)
    monkeypatch.setenv("KEYMAN_VAULT_CACERT", certifi.where())
    monkeypatch.setattr(vault, "_keyman", recording)
    vault.initialise(keys, tmp_path)
    assert given
    assert token not in given.values()
    assert not Path(given["KEYMAN_VAULT_TOKEN_FILE"]).exists()
    for plane in ("management", "resolver", "gateway"):
        assert (tmp_path / plane / "secret_id").stat().st_mode & 0o077 == 0
