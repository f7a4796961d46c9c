"""Signatures of anchors, by a key in Vault: their options, and how `keyman audit` makes and checks them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click

from keyman.audit.anchors import Anchor
from keyman.cli.logins import admin_settings, as_admin
from keyman.errors import KeymanError
from keyman.vault.signing import Signer

T = TypeVar("T")

C = TypeVar("C", bound=Callable[..., object])


class KeyName(click.ParamType[str]):
    name = "key"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if re.fullmatch(r"\w([\w.-]{0,126}\w)?", str(value), re.ASCII) is None:
            self.fail("must be the name of a key in Vault: letters, digits, '_', '.' and '-'", param, ctx)
        return str(value)


def signing_key_option(command: C) -> C:
    return click.option(
        "--signing-key", type=KeyName(), metavar="KEY", help="The key in Vault that must have signed each anchor."
    )(command)


def check_signatures(anchored: Sequence[Anchor], files: Sequence[Path], signing_key: str, home: Path | None) -> None:
    """Raise KeymanError if an anchor has no valid signature of this key."""

    async def work(signer: Signer) -> list[bool]:
        return [
            anchor.signature is not None and await signer.is_signature(anchor.signed_part(), anchor.signature)
            for anchor in anchored
        ]

    wrong = [file for file, good in zip(files, _with_signer(home, signing_key, work), strict=True) if not good]
    if wrong:
        raise KeymanError(f"Not signed by {signing_key}: {', '.join(map(str, wrong))}. Do not rely on these anchors.")


def sign(made: Anchor, signing_key: str, home: Path | None) -> str:
    """Return the signature of an anchor. The key is created if it does not exist."""

    async def work(signer: Signer) -> str:
        if await signer.create_key():
            click.echo(f"Created the key {signing_key}: ed25519, not exportable.", err=True)
        return await signer.sign(made.signed_part())

    return _with_signer(home, signing_key, work)


def _with_signer(home: Path | None, signing_key: str, work: Callable[[Signer], Awaitable[T]]) -> T:
    settings = admin_settings(home)
    needs = f"update on {settings.mount}/sign/{signing_key} and {settings.mount}/verify/{signing_key}"
    return as_admin(settings, lambda admin: work(Signer(admin, settings, signing_key)), needs)
