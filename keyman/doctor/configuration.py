"""Checks of the settings: what they allow, and who can read the files with secrets."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from keyman.config.metrics import METRICS_LISTEN
from keyman.config.settings import Settings
from keyman.doctor.findings import Finding, State, failed, ok, warning
from keyman.loopback import is_loopback
from keyman.memory import dumps_go_to_a_program


def examine(settings: Settings, environ: Mapping[str, str], files: tuple[Path, ...] = ()) -> Iterator[Finding]:
    """Check the settings. `files` are further private files, beside those that the variables name."""
    yield _vault_address(settings)
    yield _public_url(settings)
    yield _sign_up(settings)
    yield from _ways_in(settings)
    yield _proxies(settings)
    yield _metrics(settings)
    yield from _channel_binding(settings)
    yield from _way_out(settings)
    yield _secret_files(settings, environ, files)
    yield from _trusted_files(environ)
    yield core_dumps()


def core_dumps() -> Finding:
    """Check where this machine's core dumps go."""
    if dumps_go_to_a_program():
        return warning(
            "core-dumps",
            "the kernel gives core dumps to a program, whatever their limit is. keyman's processes leave none, but "
            "Vault and the database may",
            "set kernel.core_pattern to a file name such as core, or let that program store nothing",
        )
    return ok("core-dumps", "keyman's processes leave none, and no program gets those of others")


def unsafe(settings: Settings, plane: str, host: str) -> Iterator[Finding]:
    """Find what is unsafe about starting this plane on this address: the findings that are not `ok`."""
    findings = [_vault_address(settings)]
    if plane == "management":
        findings.append(_public_url(settings))
    else:
        findings.append(_resolver_address(host) if plane == "resolver" else _gateway_address(host))
    findings.append(_metrics(settings))
    findings += _channel_binding(settings)
    yield from (finding for finding in findings if finding.state is not State.OK)


def _resolver_address(host: str) -> Finding:
    if is_loopback(host):
        return ok("address", "only this machine reaches the resolver")
    return warning(
        "address",
        "the resolver returns keys, and other machines reach it",
        "let only applications reach it, over TLS or a private network",
    )


def _gateway_address(host: str) -> Finding:
    if is_loopback(host):
        return ok("address", "only this machine reaches the gateway")
    return warning(
        "address",
        "other machines reach the gateway, and send it tokens",
        "let them reach it over TLS, through a proxy that buffers neither requests nor answers",
    )


def _metrics(settings: Settings) -> Finding:
    address = settings.metrics_listen
    if address == "off":
        return ok("metrics", "off")
    if address is None or is_loopback(address.host):
        return ok("metrics", "only this machine reaches them")
    return warning(
        "metrics",
        "other machines reach the metrics, which need no credentials",
        f"let only Prometheus reach the address in {METRICS_LISTEN}",
    )


def _way_out(settings: Settings) -> Iterator[Finding]:
    """Warn of a proxy between the gateway and providers."""
    if settings.gateway.proxy is not None:
        yield warning(
            "gateway-proxy",
            "a proxy resolves the names of providers, so the gateway cannot check that their addresses are public",
            "let the proxy refuse private, loopback and link-local addresses",
        )


def _vault_address(settings: Settings) -> Finding:
    parts = urlsplit(settings.vault.address)
    if parts.scheme == "https":
        authority = "its own CA" if settings.vault.ca_certificate else "the system's CAs"
        return ok("vault-address", f"TLS, checked against {authority}")
    if is_loopback(parts.hostname or ""):
        return ok("vault-address", "no TLS, on a loopback address")
    return failed(
        "vault-address",
        "Vault is reached without TLS: anyone who can read the network can read every key that is stored",
        "give Vault a certificate, set KEYMAN_VAULT_ADDR to https://… and KEYMAN_VAULT_CACERT to its CA",
    )


def _channel_binding(settings: Settings) -> Iterator[Finding]:
    """Warn of a URL that requires channel binding, which the driver cannot do, and verifies nothing instead."""
    given = settings.database_url.query
    if given.get("channel_binding") == "require" and given.get("ssl") not in ("verify-ca", "verify-full"):
        yield warning(
            "database-tls",
            "the database's URL requires channel binding, which keyman cannot do: a server in the network in between "
            "could take the database's place",
            "write sslmode=verify-full in the URL, and set KEYMAN_DATABASE_CACERT unless a public CA signed the "
            "database's certificate",
        )


def _public_url(settings: Settings) -> Finding:
    if settings.public_url is None:
        return warning(
            "public-url",
            "not set: cookies are Secure, and redirects use the Host header of the request",
            "set KEYMAN_PUBLIC_URL to the address that browsers use, such as https://keys.example.com",
        )
    if settings.is_https:
        return ok("public-url", "https; cookies are Secure")
    if not settings.cookies_are_secure:
        return ok("public-url", "plain http on a loopback address; cookies are not Secure, for development")
    return failed(
        "public-url",
        "plain http and not loopback: browsers do not send the session cookie back, so nobody can sign in",
        "put a proxy with TLS in front of keyman, and set KEYMAN_PUBLIC_URL to its https://… address",
    )


def _sign_up(settings: Settings) -> Finding:
    if not settings.passwords_on:
        return ok("sign-up", "closed, because passwords are switched off")
    if not settings.signup_open:
        return ok("sign-up", "closed; create accounts with `keyman user add`")
    if settings.public_url is not None and not settings.cookies_are_secure:
        return ok("sign-up", "open, on a loopback address")
    return warning(
        "sign-up",
        "open: anyone who can reach the pages can create an account",
        "set KEYMAN_SIGNUP to closed, unless you want this",
    )


def _ways_in(settings: Settings) -> Iterator[Finding]:
    """Warn if nobody can come in but by a portal link, of which only the resolver and the database know."""
    if not settings.passwords_on and settings.jwt is None and settings.oidc is None:
        yield warning(
            "sign-in",
            "passwords are switched off, and there is no other way to sign in: only portal links lead to the pages",
            "set KEYMAN_PASSWORDS to on, or configure another way to sign in",
        )


def _proxies(settings: Settings) -> Finding:
    if settings.trusted_proxies:
        return ok("proxies", f"{len(settings.trusted_proxies)} trusted for the client's address")
    if not settings.is_https:
        return ok("proxies", "none trusted; the client's address is that of the connection")
    return warning(
        "proxies",
        "none trusted behind an https address: sign-in limits and the audit log see the proxy's address for everybody",
        "set KEYMAN_TRUSTED_PROXIES to the networks of the proxies in front of keyman",
    )


def _secret_files(settings: Settings, environ: Mapping[str, str], files: tuple[Path, ...]) -> Finding:
    """Check the modes of secret files. The finding names variables and files, never their contents."""
    named = _named(environ, "_FILE")
    for name in (*_TRUSTED, "KEYMAN_VAULT_ROLE_ID_FILE"):  # their contents are not secret
        named.pop(name, None)
    private = named | {str(path): path for path in files}
    database = settings.database_url
    if database.get_backend_name() == "sqlite" and database.database:
        private["the database"] = Path(database.database)
    open_to_others = [name for name, path in private.items() if _has_mode(path, stat.S_IRWXO | stat.S_IWGRP)]
    if not open_to_others:
        return ok("secret-files", f"{len(private)} checked, none open to others" if private else "none are used")
    return failed(
        "secret-files",
        f"every user of this machine can read, or a group can write: {', '.join(sorted(open_to_others))}",
        "remove these rights: chmod o=,g-w FILE",
    )


_TRUSTED = ("KEYMAN_JWT_JWKS_FILE", "KEYMAN_SERVICES_FILE")


def _trusted_files(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Check who can write the files that say whom keyman trusts. There is no finding if none is used."""
    named = _named(environ, "_CACERT") | {
        name: path for name, path in _named(environ, "_FILE").items() if name in _TRUSTED
    }
    writable = [name for name, path in named.items() if _has_mode(path, stat.S_IWGRP | stat.S_IWOTH)]
    if writable:
        yield warning(
            "trusted-files",
            "a group or every user of this machine can write, and so decide whose tokens and certificates count or "
            f"where keys are sent: {', '.join(sorted(writable))}",
            "remove these rights: chmod go-w FILE",
        )
    elif named:
        yield ok("trusted-files", f"{len(named)} checked, none writable by others")


def _named(environ: Mapping[str, str], ending: str) -> dict[str, Path]:
    """Return the files that variables with this ending name."""
    return {
        name: Path(path.strip())
        for name, path in environ.items()
        if name.startswith("KEYMAN_") and name.endswith(ending) and path.strip()
    }


def _has_mode(path: Path, bits: int) -> bool:
    """Return True if the file has one of these rights."""
    try:
        return bool(path.stat().st_mode & bits)
    except OSError:  # it does not exist, or is in a directory that this user may not enter
        return False
