"""Initialises and unseals the stack's own Vault, and sets it up for keyman with keyman's commands.

No error of hvac is shown: its text may hold Vault's answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import hvac
import requests

from stack.files import PRIVATE, write

REQUEST_SECONDS = 10
"""Seconds for one call. Vault is in the next container."""

START_SECONDS = 120
"""Seconds until a started Vault answers, and until an unsealed one is active. On an idle machine it takes seconds."""

LOOK_SECONDS = 1.0
"""Seconds between two checks of a Vault that is not ready yet, or may have been sealed."""

ROLES = {"management": "keyman-management", "resolver": "keyman-resolver", "gateway": "keyman-gateway"}
"""The volume for the credentials of each AppRole."""

FAULTS = (hvac.exceptions.VaultError, requests.RequestException)


def client(token: str | None = None) -> Any:
    """Return a client of the Vault at KEYMAN_VAULT_ADDR, with the CA in KEYMAN_VAULT_CACERT."""
    return hvac.Client(
        url=os.environ["KEYMAN_VAULT_ADDR"],
        verify=os.environ["KEYMAN_VAULT_CACERT"],
        token=token or "",  # with None, hvac would look for a token in the environment and in a file
        timeout=REQUEST_SECONDS,
        allow_redirects=False,
    )


def initialise(keys: Path, volumes: Path) -> None:
    """Prepare Vault so that keyman can log in. It can run any number of times.

    Raises click.ClickException when it does not come up, or was initialised with keys that are not in `keys`.
    """
    vault = client()
    _wait(vault, {"sealed", "active", "uninitialised"})
    if state(vault) == "uninitialised":
        # One share, because anyone who can read the volume would have all of them.
        answer = vault.sys.initialize(secret_shares=1, secret_threshold=1)
        new = {"unseal_key": answer["keys_base64"][0], "root_token": answer["root_token"]}
        write(keys / "keys.json", json.dumps(new).encode(), PRIVATE)
        click.echo("initialised Vault", err=True)
    kept = _keys(keys)
    if kept is None:
        raise click.ClickException(
            "Vault was initialised before, and its unseal key is not in the volume of this job: "
            "without it nothing that was sealed can be opened."
        )
    unseal(vault, kept["unseal_key"])
    _wait(vault, {"active"})
    # The root token is stored, because with the unseal key another one can be created at any time. A file, because the
    # environment of a process can be read as long as it runs.
    with tempfile.NamedTemporaryFile() as token:
        token.write(kept["root_token"].encode())
        token.flush()
        environment = {**os.environ, "KEYMAN_VAULT_TOKEN_FILE": token.name}
        _keyman(["vault", "setup"], environment)
        for volume, role in ROLES.items():
            directory = volumes / volume
            if not _opens(directory):
                _keyman(["vault", "secret-id", role, "--directory", str(directory)], environment)


def keep_unsealed(keys: Path, alive: Path) -> None:
    """Unseal Vault whenever it is sealed, forever. Each check touches the file `alive`."""
    vault = client()
    before = None
    while True:
        now = state(vault)
        kept = _keys(keys)
        if now == "sealed" and kept is not None:
            try:
                unseal(vault, kept["unseal_key"])
            except FAULTS as fault:
                click.echo(f"Vault could not be unsealed: {type(fault).__name__}", err=True)
            now = state(vault)
        if now != before:
            click.echo(f"Vault is {now}", err=True)
            before = now
        alive.touch()
        time.sleep(LOOK_SECONDS)


def state(vault: Any) -> str:
    """Return `active`, `standby`, `uninitialised`, `sealed` or `unreachable`."""
    try:
        status = vault.sys.read_health_status(method="GET")
    except FAULTS:
        return "unreachable"
    # The status codes of sys/health. For 200, hvac returns the parsed body; for others, the response.
    code = getattr(status, "status_code", 200)
    return {200: "active", 429: "standby", 501: "uninitialised", 503: "sealed"}.get(code, "unreachable")


def unseal(vault: Any, key: str) -> None:
    if state(vault) == "sealed":
        vault.sys.submit_unseal_key(key=key)


def _wait(vault: Any, wanted: set[str]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while (now := state(vault)) not in wanted:
        if time.monotonic() > deadline:
            raise click.ClickException(f"Vault is {now} after {START_SECONDS} s")
        time.sleep(LOOK_SECONDS / 4)


def _keys(keys: Path) -> dict[str, str] | None:
    path = keys / "keys.json"
    if not path.exists():
        return None
    kept: dict[str, str] = json.loads(path.read_bytes())
    return kept


def _opens(directory: Path) -> bool:
    """Return whether a directory has credentials and Vault accepts them."""
    try:
        role_id = (directory / "role_id").read_text().strip()
        secret_id = (directory / "secret_id").read_text().strip()
    except FileNotFoundError:
        return False
    try:
        answer = client().auth.approle.login(role_id, secret_id, use_token=False)
    except hvac.exceptions.InvalidRequest:
        return False
    client(answer["auth"]["client_token"]).auth.token.revoke_self()
    return True


def _keyman(arguments: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-m", "keyman", *arguments], env=environment, check=False)  # noqa: S603
    if done.returncode:
        raise click.ClickException(f"keyman {arguments[0]} {arguments[1]} failed")
