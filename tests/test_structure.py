"""Imports point one way, and some modules cannot be imported from others. The source is read, not run."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from keyman.cli.serve import PLANES
from tests.support.sources import tree_of

PACKAGE = Path(__file__).parents[1] / "keyman"

MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def tree(module: str) -> ast.Module:
    return tree_of(MODULES[module])


@cache
def imports(module: str) -> frozenset[str]:
    """Every module that a module names in an import, `from package import name` as `package.name` where that is one."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return frozenset(found)


def below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def importers(*packages: str) -> set[str]:
    """The modules of keyman that import one of the packages, or something in them."""
    return {module for module in MODULES if any(below(name, *packages) for name in imports(module))}


def test_vault_is_the_only_package_that_imports_hvac() -> None:
    found = importers("hvac")
    assert found
    assert all(below(module, "keyman.vault") for module in found), found


def test_errors_know_nothing_of_keyman_and_nothing_of_http() -> None:
    assert not [name for name in imports("keyman.errors") if below(name, "keyman", "litestar", "http")]


LAYERS = (
    (
        "errors",
        "secret",
        "extras",
        "characters",
        "certificates",
        "clock",
        "handover",
        "ids",
        "logs",
        "loopback",
        "memory",
        "metrics",
        "patterns",
        "private",
        "quantities",
        "retry",
        "version",
        "processes",
        "batching",
    ),
    ("values",),
    ("decoding",),
    ("config",),
    ("storage",),
    ("vault",),
    ("audit",),
    ("providers",),
    ("identity",),
    ("keys",),
    ("http",),
    ("planes.assembly",),
    ("planes.management", "planes.resolver", "planes.gateway"),
    ("client",),
    ("testing",),
    ("migrations",),
    ("doctor",),
    ("dev",),
    ("cli",),
)
"""From the bottom up. What is in a layer imports only what is below it; on the ground floor, also its neighbours."""

GROUND_FLOOR = LAYERS[0]


def unit_of(module: str) -> str:
    """The name in LAYERS that a module belongs to."""
    named = [name for layer in LAYERS for name in layer if below(module, f"keyman.{name}")]
    assert len(named) == 1, f"{module} belongs to no layer"
    return named[0]


def floor_of(unit: str) -> int:
    (floor,) = [number for number, layer in enumerate(LAYERS) if unit in layer]
    return floor


OUTSIDE = {"keyman", "keyman.__main__", "keyman.planes"}
"""A package's face, the way in, and a package that only holds others."""


def test_every_module_imports_only_from_below() -> None:
    wrong = []
    for module in MODULES.keys() - OUTSIDE:
        here = unit_of(module)
        for name in (imports(module) & MODULES.keys()) - OUTSIDE:
            there = unit_of(name)
            same = here == there or (here in GROUND_FLOOR and there in GROUND_FLOOR)
            if not same and floor_of(there) >= floor_of(here):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_every_name_of_the_layers_is_there() -> None:
    assert all(f"keyman.{name}" in MODULES for layer in LAYERS for name in layer)


def test_the_architecture_document_shows_the_layers() -> None:
    document = (PACKAGE.parent / "docs" / "dev" / "architecture.md").read_text()
    (block,) = re.findall(r"```layers\n(.*?)```", document, re.DOTALL)
    shown = [tuple(line.partition("#")[0].split()) for line in reversed(block.splitlines())]
    assert shown == list(LAYERS)


def test_nothing_below_http_knows_of_requests_or_of_a_terminal() -> None:
    found = {module for module in importers("litestar", "granian", "click") - OUTSIDE if below(module, "keyman")}
    planes = {"planes.management", "planes.resolver", "planes.gateway"}
    assert {unit_of(module) for module in found} == {"http", *planes, "dev", "cli"}


def test_routes_ask_operations_and_never_the_database() -> None:
    drivers = ("sqlalchemy", "sqlite3", "asyncpg", "aiosqlite", "alembic")
    assert {module for module in importers(*drivers) if below(module, "keyman.planes.management.api")} <= {
        "keyman.http.health"
    }


def test_the_command_line_asks_operations_too() -> None:
    drivers = ("sqlite3", "asyncpg", "aiosqlite", "alembic")
    assert not {module for module in importers(*drivers) if below(module, "keyman.cli")}


def test_nothing_imports_the_application_of_a_plane() -> None:
    """`keyman serve` finds each by name, in a process that loads only that one."""
    assert {name: f"keyman.planes.{name}.app" for name in ("management", "resolver", "gateway")} == PLANES
    assert importers(*PLANES.values()) == set()


def test_the_client_imports_only_the_ground_floor() -> None:
    """It can be carried off into an application that has nothing else of keyman."""
    own = {name for module in MODULES if below(module, "keyman.client") for name in imports(module) & MODULES.keys()}
    assert {name for name in own if not below(name, "keyman.client")} == {
        "keyman.errors",
        "keyman.loopback",
        "keyman.retry",
        "keyman.secret",
        "keyman.version",
    }
    assert importers("keyman.client") <= {
        module for module in MODULES if below(module, "keyman.client", "keyman.testing", "keyman.cli.owner")
    }


def test_the_commands_of_owners_need_nothing_of_the_server() -> None:
    """They run where only the extra [cli] is installed."""
    own = {module for module in MODULES if below(module, "keyman.cli.owner")} | {"keyman.cli.completion"}
    used = {name for module in own for name in imports(module) & MODULES.keys() if not below(name, "keyman.client")}
    assert used - own == {
        "keyman.cli.groups",
        "keyman.cli.terminal",
        "keyman.errors",
        "keyman.loopback",
        "keyman.private",
        "keyman.providers.credentials",
        "keyman.providers.dotenv",
        "keyman.providers.masking",
        "keyman.providers.naming",
        "keyman.providers.pasted",
        "keyman.providers.services",
        "keyman.providers.snippets",
        "keyman.secret",
    }
    assert {name for name in imports("keyman.cli.terminal") if below(name, "keyman")} <= used
    loaded = {name for module in own for name in reached(module)}
    assert not [name for name in loaded if "\nrequire_server()\n" in MODULES[name].read_text()]


def test_the_fakes_need_only_the_clients_errors_and_shapes() -> None:
    own = {name for module in MODULES if below(module, "keyman.testing") for name in imports(module) & MODULES.keys()}
    others = {name for name in own if not below(name, "keyman.testing")}
    assert others <= {"keyman.client.errors", "keyman.client.shapes", "keyman.errors", "keyman.secret"}
    assert all(below(module, "keyman.testing") for module in importers("keyman.testing"))


def test_the_retries_need_only_the_standard_library() -> None:
    assert {name.split(".")[0] for name in imports("keyman.retry")} <= sys.stdlib_module_names


@pytest.mark.parametrize("package", ["keyman.client", "keyman.testing"])
def test_an_application_that_loads_the_client_loads_nothing_of_the_server(package: str) -> None:
    program = f"import sys, {package}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {name for name in loaded if below(name, "keyman")} == reached(package)
    server = (
        "litestar",
        "sqlalchemy",
        "hvac",
        "aiohttp",
        "granian",
        "alembic",
        "jinja2",
        "structlog",
        "prometheus_client",
    )
    assert not [name for name in loaded if below(name, *server)]


def _functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node


EXECUTES_ITSELF = {"keyman.keys.deployment"}
"""Asks for the schema's revision before it is known that there are tables."""


def test_statements_are_executed_in_one_place() -> None:
    found = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("execute", "exec_driver_sql", "scalars", "stream")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "connection"
    }
    assert {module for module in found if not below(module, "keyman.storage", "keyman.migrations")} == EXECUTES_ITSELF


FOUND_BY_NAME = {"from_environment", "upgrade", "downgrade", "revision", "down_revision"}
"""What granian and Alembic look for in a module."""


def _defined(module: str) -> set[str]:
    """The functions, classes and variables of a module. What has a decorator, such as a command, is left out."""
    found = set()
    for node in tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.decorator_list:
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in found if not name.startswith("__")} - FOUND_BY_NAME


def _read(module: str) -> set[str]:
    return {node.id for node in ast.walk(tree(module)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _taken_from_others(module: str) -> set[str]:
    nodes = list(ast.walk(tree(module)))
    imported = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return imported | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_every_name_is_used() -> None:
    taken = {name for module in MODULES for name in _taken_from_others(module)}
    unused = {f"{module}.{name}" for module in MODULES for name in _defined(module) - _read(module) - taken}
    assert unused == {"keyman.characters.UNICODE_VERSION"}  # a test compares it with that of Python


def test_nothing_is_imported_inside_a_function() -> None:
    found = {
        (module, node.lineno)
        for module in MODULES
        for function in _functions(module)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert not found


def _unit(module: str) -> str:
    """The package, or the module, right below `keyman`."""
    return ".".join(module.split(".")[:2])


def _cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """A way from something back to itself, or None."""
    done: set[str] = set()

    def walk(here: str, way: list[str]) -> list[str] | None:
        if here in way:
            return [*way[way.index(here) :], here]
        if here in done:
            return None
        for there in sorted(edges.get(here, set())):
            if found := walk(there, [*way, here]):
                return found
        done.add(here)
        return None

    return next((found for start in sorted(edges) if (found := walk(start, []))), None)


def _edges(of: str) -> dict[str, set[str]]:
    """Who imports whom within keyman: modules, or the packages that they are in."""
    edges: dict[str, set[str]] = {}
    for module in MODULES:
        for name in imports(module) & MODULES.keys():
            here, there = (module, name) if of == "modules" else (_unit(module), _unit(name))
            if there not in (here, "keyman"):
                edges.setdefault(here, set()).add(there)
    return edges


@pytest.mark.parametrize("of", ["modules", "packages"])
def test_imports_go_one_way(of: str) -> None:
    assert _edges(of)
    assert _cycle(_edges(of)) is None


def test_a_cycle_would_be_found() -> None:
    assert _cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


DECRYPTING = {"decrypt_data", "export_key", "backup_key", "generate_data_key", "decrypt", "generate_hmac"}


def test_one_module_has_a_call_that_could_show_a_value() -> None:
    found = {
        (module, name)
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call)
        and (name := getattr(node.func, "attr", getattr(node.func, "id", None))) in DECRYPTING
    }
    assert found == {("keyman.vault.opener", "decrypt_data")}


def reached(module: str) -> set[str]:
    """What is loaded with a module: what it imports, what that imports, and the packages that they are in."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        here = waiting.pop()
        if here not in found:
            found.add(here)
            parts = here.split(".")
            packages = {".".join(parts[:n]) for n in range(1, len(parts))}
            waiting += packages & MODULES.keys()  # the migrations' versions are no package
            waiting += imports(here) & MODULES.keys()
    return found


def test_only_the_resolver_and_the_gateway_reach_the_opener() -> None:
    opening = {"keyman.planes.resolver.app", "keyman.planes.gateway.app"}
    assert importers("keyman.vault.opener") == opening
    assert importers(*opening) == set()
    assert {module for module in MODULES if "keyman.vault.opener" in reached(module)} == {
        "keyman.vault.opener",
        *opening,
    }
    others = ("keyman.planes.resolver", "keyman.planes.gateway")
    assert not {name for name in reached("keyman.planes.management.app") if below(name, *others)}


def test_only_the_gateway_reaches_what_calls_providers() -> None:
    assert all(below(module, "keyman.planes.gateway") for module in importers("keyman.planes.gateway"))


def test_what_the_management_plane_loads_is_what_its_source_says() -> None:
    program = (
        "import sys, keyman.planes.management.app; print(*[name for name in sys.modules if name.startswith('keyman')])"
    )
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "keyman.vault.cipher" in loaded
    assert set(loaded) == reached("keyman.planes.management.app")


def test_modules_that_are_found_by_name_are_few() -> None:
    """An import by name is one that the tests above do not see."""
    found = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute | ast.Name)
        and getattr(node, "attr", getattr(node, "id", None))
        in ("import_module", "import_late", "__import__", "run_module", "exec")
    }
    assert found == {"keyman.__main__", "keyman.cli", "keyman.cli.serve"}


def test_secrets_are_revealed_in_few_places_that_can_be_listed() -> None:
    """A new line here is a new place where a plaintext, a password or a token leaves its wrapper: think about it."""
    found = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", None) == "reveal"
    }
    assert found == {
        "keyman.identity.sessions",  # the session cookie is hashed
        "keyman.identity.passwords",  # to Argon2
        "keyman.identity.provider",  # secrets of a sign-in, to the identity provider
        "keyman.identity.id_tokens",  # an access token is hashed
        "keyman.identity.visits",  # the verifier is stored, and the cookie of a visit hashed
        "keyman.identity.personal_tokens",  # the token is shown once
        "keyman.identity.tokens",  # and hashed
        "keyman.http.guards",  # the cookie is set
        "keyman.planes.management.web.desk",  # the cookie of a visit is set
        "keyman.cli.app",  # an application's token is printed once
        "keyman.cli.common",  # a new password, to be parsed
        "keyman.cli.logins",  # an administrator's token of the embedded Vault, as a setting
        "keyman.cli.owner.inputs",  # how a value begins: a line, or a JSON file
        "keyman.cli.owner.imports",  # a file is read, line by line
        "keyman.cli.owner.offered",  # a value is recognised and masked
        "keyman.cli.owner.login",  # a pasted token, without white space
        "keyman.cli.owner.logins",  # a token, into the keyring or the private file
        "keyman.cli.owner.run",  # a token, into the environment of the program that somebody runs
        "keyman.cli.owner.values",  # what is around a value is left out
        "keyman.cli.owner.sign_in",  # a password and a cookie, into a request
        "keyman.cli.vault",  # a wrapped secret id, to be handed over
        "keyman.cli.serve",  # the AppRole's secret is handed on to the workers
        "keyman.client.calls",  # a value to store, into the body of a request
        "keyman.client.endpoint",  # a token, into the header of a request
        "keyman.client.exchange",  # looked for in a server's words, to mask them
        "keyman.dev.checks",  # the token for live checks is written to the home
        "keyman.dev.run",  # the AppRole's secret is written to the home
        "keyman.keys.sealing",  # checked and masked
        "keyman.vault.duplicates",  # into the body of the request for its fingerprint
        "keyman.providers.recognition",  # its prefix is looked at
        "keyman.testing.resolver",  # a fake's made-up value, into a copy that has the subject
        "keyman.planes.resolver.routes",  # a value, in the answer to an application
        "keyman.planes.management.checks",  # the token for the gateway, into the header of a request
        "keyman.planes.gateway.checking",  # a value, into the header of a live check
        "keyman.planes.gateway.forwarding",  # a value, into the header for the provider, and its mask
        "keyman.planes.gateway.redaction",  # looked for in what a provider answers
        "keyman.vault.cipher",  # to Vault
        "keyman.dev.embedded",  # the development root token
        "keyman.vault.opener",  # the sentinel is compared
        "keyman.vault.login",  # the AppRole's secret, to Vault
        "keyman.vault.wrapping",  # what it is wrapped in, to Vault
    }


def test_few_lines_leave_a_type_open() -> None:
    """`Any` switches the type checker off. `object`, a struct, a Protocol or a TypeVar says what is known."""
    lines = [line for path in MODULES.values() for line in path.read_text().splitlines()]
    assert 1000 * sum(bool(re.search(r"\bAny\b", line)) for line in lines) / len(lines) < 3


def test_no_environment_is_read_when_a_module_is_imported() -> None:
    found = set()
    for module in MODULES:
        inside = {id(node) for function in _functions(module) for node in ast.walk(function)}
        found |= {
            module
            for node in ast.walk(tree(module))
            if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") and id(node) not in inside
        }
    assert not found


def test_only_the_command_line_uses_print_and_sys_stdout() -> None:
    found = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if (isinstance(node, ast.Name) and node.id == "print")
        or (isinstance(node, ast.Attribute) and node.attr == "stdout" and isinstance(node.value, ast.Name))
    }
    assert not {module for module in found if not below(module, "keyman.cli")}


def early_returns(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[int]:
    """The lines at which a function returns nothing before its end; functions inside it are left out."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Return):
            yield node.lineno
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            waiting += ast.iter_child_nodes(node)


def test_no_test_returns_early_and_counts_as_passed() -> None:
    """A test that has nothing to do for some parameters is not given them, or skips with a reason."""
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line}"
        for path in sorted(Path(__file__).parent.rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
        for line in early_returns(node)
    ]
    assert not found


WITHOUT_A_CALLER = {
    ("keyman.audit.retention", "OPERATOR"),
    ("keyman.identity.application_tokens", "HolderLock"),  # the last use of a token
    ("keyman.identity.applications", "OPERATOR"),
    ("keyman.identity.arrivals", "KEYMAN"),  # housekeeping
    ("keyman.identity.arrivals", "SIGN_IN"),  # by a portal link, which is checked behind the same locks
    ("keyman.identity.jwt", "SIGN_IN"),  # the first token of a user
    ("keyman.identity.audiences", "KEYMAN"),  # the audience of users, of the management plane's own settings
    ("keyman.identity.back_channel", "KEYMAN"),  # the identity provider ends sessions
    ("keyman.identity.login", "KEYMAN"),  # the totals of failed sign-ins
    ("keyman.identity.login", "SIGN_IN"),
    ("keyman.identity.oidc", "SIGN_IN"),
    ("keyman.identity.personal_tokens", "OPERATOR"),
    ("keyman.identity.personal_tokens", "HolderLock"),  # the last use of a token
    ("keyman.identity.sessions", "HolderLock"),  # the last use of a session
    ("keyman.identity.standing", "HolderLock"),  # locks within the transaction of somebody else
    ("keyman.identity.throttle", "OUTCOME"),  # an attempt that was refused before its password was verified
    ("keyman.identity.users", "OPERATOR"),
    ("keyman.keys.deployment", "KEYMAN"),  # the sentinel
    ("keyman.keys.erasure", "OPERATOR"),
    ("keyman.keys.probe", "KEYMAN"),  # the row of a plane, in which it proves that it can write
    ("keyman.keys.release", "LAST_USE"),
    ("keyman.keys.checks", "OUTCOME"),  # what an answer that was passed on says of the key
    ("keyman.keys.release", "OUTCOME"),  # a released key that could not be opened
    ("keyman.keys.rewrap", "OPERATOR"),
    ("keyman.planes.management.housekeeping", "KEYMAN"),
    ("keyman.planes.management.web.oidc", "SIGN_IN"),  # a visit of the identity provider begins and ends
}
"""Who writes without the check of a caller: by a member of Unchecked, or by a HolderLock, which only takes a lock.

Think about it before you add a line: who could be revoked here?
"""


def test_transactions_that_check_no_caller_can_be_listed() -> None:
    found = {
        (module, node.attr)
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Unchecked"
    }
    found |= {
        (module, "HolderLock")
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HolderLock"
    }
    assert found == WITHOUT_A_CALLER


def test_only_the_storage_begins_transactions() -> None:
    found = {
        module
        for module in MODULES
        for node in ast.walk(tree(module))
        if isinstance(node, ast.Attribute) and node.attr in ("begin", "begin_nested", "_engine")
    }
    assert {module for module in found if not below(module, "keyman.storage", "keyman.migrations")} == set()


def test_a_body_is_read_in_the_one_place_that_checks_the_caller_again() -> None:
    readers, trusting = set(), set()
    for module in MODULES:
        for node in ast.walk(tree(module)):
            if isinstance(node, ast.Attribute) and node.attr in ("body", "json", "form", "stream", "receive"):
                is_request = isinstance(node.value, ast.Name) and node.value.id in ("request", "exchange")
                readers |= {module} if is_request else set()
            if isinstance(node, ast.keyword) and node.arg == "confirm" and isinstance(node.value, ast.Constant):
                trusting.add(module)
    assert readers == {"keyman.http.requests"}
    # In each, one transaction checks the caller, before anything is read or changed.
    of_management = {"keyman.planes.management.api.keys", "keyman.planes.management.api.batch"}
    assert trusting == {"keyman.planes.resolver.routes", *of_management}
