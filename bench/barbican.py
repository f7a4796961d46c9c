"""OpenStack's Barbican, without Keystone: anyone is an administrator, its simplest crypto plugin, and PostgreSQL.

It is installed into a separate environment in the user's cache directory, because keyman does not need it. uwsgi is
compiled there, which needs a C compiler. Barbican checks no token and writes no audit log, and its key lies in a file.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from sqlalchemy.engine import make_url

from bench.peers import install
from bench.ratios import Ratio, share
from bench.rounds import always
from bench.rounds import measure as rounds_of
from bench.servers import NEW_KEY, Machine
from bench.speed import KEYS, KV, fill, key_value
from bench.wrk import Target

VERSION = "23.0.0"

PROCESSES = 2
"""Of uwsgi."""

CLIENTS = 8
"""Connections at a time. More would only wait for the processes of uwsgi."""

STORE, LIST = "Barbican, store", "Barbican, list of 50"

_NEW_SECRET = {"name": "bench", "payload": "sk-" + "x" * 45, "payload_content_type": "text/plain"}

_CONFIGURATION = """\
[DEFAULT]
db_auto_create = True
host_href =
debug = False
[database]
connection = {database}
[oslo_policy]
policy_file = {directory}/policy.json
[secretstore]
enabled_secretstore_plugins = store_crypto
[crypto]
enabled_crypto_plugins = simple_crypto
[simple_crypto_plugin]
kek = {key}
"""

_PIPELINE = """\
[composite:main]
use = egg:Paste#urlmap
/v1: barbican_api
[pipeline:barbican_api]
pipeline = unauthenticated-context microversion apiapp
[app:apiapp]
paste.app_factory = barbican.api.app:create_main_app
[filter:unauthenticated-context]
paste.filter_factory = barbican.api.middleware.context:UnauthenticatedContextMiddleware.factory
[filter:microversion]
paste.filter_factory = barbican.api.middleware.microversion:MicroversionMiddleware.factory
"""

_APPLICATION = """\
import webob
from paste import deploy
from barbican.plugin.crypto.simple_crypto import SimpleCryptoPlugin as Plugin

webob.Request.request_id = None  # the middleware without Keystone expects it
bind = Plugin.bind_kek_metadata


def bind_as_text(self, metadata):  # PostgreSQL's driver would store the representation of the bytes
    bound = bind(self, metadata)
    if isinstance(bound.plugin_meta, bytes):
        bound.plugin_meta = bound.plugin_meta.decode()
    return bound


Plugin.bind_kek_metadata = bind_as_text
application = deploy.loadapp("config:{directory}/paste.ini")
"""


def run(machine: Machine, seconds: int, rounds: int) -> list[Ratio]:
    """Store and list with keyman and with Barbican, print the figures, and return the ratios.

    The list is that of a project that stores nothing else. A write to Vault's KV v2 shows what else a store could take.
    """
    url = machine.database("bench")
    account = machine.account(url)
    keyman = Target("POST", f"{machine.plane('keyman', url)}/api/keys", [account], [NEW_KEY])
    address = _start(machine, "Barbican")
    targets = {
        "keyman, store": keyman,
        STORE: Target("POST", f"{address}/v1/secrets", [_of_project("stored")], [_NEW_SECRET]),
        "keyman, list of 50": Target("GET", keyman.url, [account]),
        LIST: Target("GET", f"{address}/v1/secrets?limit=50", [_of_project("listed")]),
    }
    fill(keyman, KEYS)
    fill(Target("POST", f"{address}/v1/secrets", [_of_project("listed")], [_NEW_SECRET]), KEYS)
    plan = {(label, CLIENTS): always(target) for label, target in targets.items()}
    plan[KV, CLIENTS] = key_value(machine)
    results = rounds_of(machine, plan, seconds, rounds)
    return [
        Ratio(
            f"{ours} ÷ {theirs}, {CLIENTS} clients",
            share(results[ours, CLIENTS].rate, results[theirs, CLIENTS].rate),
            20,
            cpu=results[theirs, CLIENTS].cpu,
        )
        for ours, theirs in (("keyman, store", STORE), ("keyman, list of 50", LIST))
    ]


def _of_project(name: str) -> dict[str, str]:
    return {"X-Project-Id": name, "Accept": "application/json"}


def _start(machine: Machine, name: str) -> str:
    """Start Barbican and return its address. Raises ClickException."""
    commands = install("barbican", VERSION, "uwsgi", "python-memcached", "psycopg2-binary")
    directory = machine.directory / "barbican"
    (directory / ".barbican").mkdir(parents=True)
    database = make_url(machine.postgres.create_database("barbican")).set(drivername="postgresql+psycopg2", query={})
    configuration = _CONFIGURATION.format(
        database=database.render_as_string(hide_password=False),
        directory=directory,
        key=base64.urlsafe_b64encode(b"x" * 32).decode(),
    )
    (directory / ".barbican" / "barbican.conf").write_text(configuration)
    (directory / "paste.ini").write_text(_PIPELINE)
    (directory / "application.py").write_text(_APPLICATION.format(directory=directory))
    (directory / "policy.json").write_text(json.dumps({"secrets:post": "", "secrets:get": ""}))
    script = _script(directory, commands)
    return machine.program(name, [script], HOME=str(directory), PYTHONPATH="")


def _script(directory: Path, commands: Path) -> Path:
    """Return a command that takes `--port`, as `Machine.program` gives it."""
    file = directory / "serve"
    file.write_text(
        f"#!/bin/sh\n{commands}/python {directory}/application.py\n"  # creates the tables
        f'exec {commands}/uwsgi --http11-socket "127.0.0.1:$2" --processes {PROCESSES} --master --lazy-apps '
        f"--need-app --disable-logging --die-on-term --wsgi-file {directory}/application.py\n"
    )
    file.chmod(0o700)
    return file
