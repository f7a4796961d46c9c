"""Writes docs/reference/query-plans.md: how both databases execute keyman's statements on a million keys.

.venv/bin/python -m bench.query_plans [--keys 1000000] [--check]
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import click
from sqlalchemy.engine import URL, make_url

from bench import filling, plans
from bench.plans import Captured
from keyman import migrations
from keyman.storage.transactions import Database
from tests.support.database import postgres_server

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "query-plans.md"

HEAD = """\
# Query plans

This page is for database administrators and contributors. It shows how PostgreSQL and SQLite execute each statement
of keyman: which index they use, and how much they read. You need it if a statement is slow on your database:
compare its plan with the one here.

The databases have {keys:,} keys of {owners:,} owners, one of whom has {heavy:,}; {entries:,} entries in the audit
log; and rows in the other tables in proportion. Versions: {versions}. PostgreSQL's figures are rows, and pages of 8
KiB that it reads from memory or from the disk. They do not depend on the machine, as times would. SQLite shows no
figures, only which index it uses. If an earlier section shows the same statement with the same indexes, this page
only names it.

`.venv/bin/python -m bench.query_plans` writes this page in some minutes: it runs keyman's own operations, catches
the statements on their way to the driver, and lets the database explain them. Only these words are written by hand.
With 20,000 keys, `tests/storage/test_plans.py` checks that each statement uses the intended index, on SQLite with
and without `ANALYZE`.

## What they show

No statement below reads a whole table. What one owner has limits the cost of every statement of this owner.

**Lists of keys**

- A page of a list is read backwards from the index `(owner_id, id)`: 51 rows and as many pages, on the first page
  and in the middle alike. For one service it is read from `(owner_id, service, id)`. Nothing is sorted and nothing
  skipped.
- For an owner with few or no keys, the same index answers in a few pages. PostgreSQL does not read the primary key
  backwards until it meets rows of that owner, which is the usual trap of `ORDER BY id DESC LIMIT`.
- A search by name reads the keys of the owner, newest first, until the page is full. If PostgreSQL expects that few
  match, it reads all keys of the owner ({heavy:,} here) and sorts those that match. There is no index over parts of
  names: it would have to contain the names of all owners.
- A list by label or last use reads the keys of the owner and sorts them. A list of one status, a count, and the
  keys in use read all keys of the owner, too.
- The limit of keys counts the owner's keys in the index `(owner_id, id)`, and stops at the limit: 100 here.

**The audit log**

- A page is read from `(user_id, id)`, and for one action from `(user_id, action, id)`. For several actions, a page
  of each is read and merged.
- A time first becomes an id, by one lookup in the index on it, so nothing outside the period is read. If PostgreSQL
  expects few entries between two times, it reads those from the same index and sorts them.
- "Who has used this key" takes one lookup in `(key_id, action, application, at)` for each application, however many
  uses there were.

**Callers, and giving out a key**

- A transaction that writes begins with the check of the caller: one row by the primary key of the token, and one by
  that of its account. A resolve begins with that of the application's token.
- A resolve finds a key by its id, or as the default in the partial index `(owner_id, service)`, and otherwise as
  the newest active one of `(owner_id, service, id)`. What the audit log says about the current value is the last
  entry of the partial index `(key_id, as_of)`.
- Whether an owner has blocked an application is one lookup by the primary key `(user_id, application_id)`, and only
  for an owner who has ever blocked one.
- A token, a session, an idempotency key and a counter of failed sign-ins are found by their hash, in one lookup of
  a unique index. In the same way, an identity is found by its issuer and subject, in each of the two tables of
  identities, and the application of a JWT by issuer, subject and audience.

**Housekeeping**

- Indexes on times find what has ended. A batch reads only what it removes.

**Not shown**

- the chart of the page Activity, which counts at most 10,000 entries of an action, the newest of `(user_id, action,
  id)`
- the last uses on the page of a key: the newest 20 of each application, from the index of "Who has used this key"
- the list of applications, and a user's JWT with several audiences: both read all applications, of which there are
  some dozens
- the tables of chain ends and of probes, which have a page or two

SQLite uses the same indexes with and without `ANALYZE`{same}.
"""


@click.command()
@click.option("--keys", default=1_000_000, show_default=True, help="Rows in api_keys.")
@click.option("--output", type=click.Path(path_type=Path), default=PAGE, help="The page to write.")
def main(keys: int, output: Path) -> None:
    """Write docs/reference/query-plans.md."""
    with tempfile.TemporaryDirectory() as directory, postgres_server(log_statements=False) as server:
        urls = [make_url(f"sqlite+aiosqlite:///{directory}/keyman.db"), make_url(server.create_database("plans"))]
        output.write_text(asyncio.run(_page(urls, keys)))


async def _page(urls: list[URL], keys: int) -> str:
    sqlite, postgresql = urls
    captured: dict[str, list[Captured]] = {}
    explained: dict[str, dict[str, list[str]]] = {}
    for name, url in (("sqlite", sqlite), ("postgresql", postgresql)):
        click.echo(f"{name}: filling", err=True)
        await migrations.upgrade(url)
        await filling.build(url, keys)
        if name == "postgresql":
            await filling.analyze(url)
        db = Database(url)
        captured[name] = await plans.capture(db)
        await db.close()
        click.echo(f"{name}: explaining", err=True)
        explained[name] = await plans.explain(url, captured[name])
        if name == "postgresql":
            await plans.explain(url, captured[name])  # warm up, so that pages show as hits
            explained["generic"] = await plans.explain(url, captured[name], generic=True)
        else:
            await filling.analyze(url)
            explained["analyzed"] = await plans.explain(url, captured[name])
    versions = ", ".join([await plans.versions(sqlite), await plans.versions(postgresql)])
    other = [label for label, plan in explained["sqlite"].items() if explained["analyzed"][label] != plan]
    named = ", ".join(f'"{label}"' for label in other)
    same = f", but for {named}: those are shown twice" if other else ""
    head = HEAD.format(keys=keys, owners=keys // 100, heavy=keys // 100, entries=keys, versions=versions, same=same)
    sections: dict[str, list[str]] = {}
    for label in explained["postgresql"]:
        statements = [_wrapped(one.statement) for one in captured["postgresql"] if one.label == label]
        sections[f"{label[0].upper()}{label[1:]}"] = [
            _block(statement, explained, label, number, with_analyzed=label in other)
            for number, statement in enumerate(statements)
        ]
    return head + "".join(f"\n## {title}\n{''.join(blocks)}" for title, blocks in shortened(sections).items())


def _block(
    statement: str, explained: dict[str, dict[str, list[str]]], label: str, number: int, *, with_analyzed: bool
) -> str:
    """Return a statement with its plans."""
    sqlite = explained["sqlite"][label][number] or "(found by the primary key, which SQLite does not show)"
    block = f"\n```sql\n{statement}\n```\n"
    block += f"PostgreSQL:\n```\n{_tidy(explained['postgresql'][label][number])}\n```\n"
    block += f"SQLite:\n```\n{sqlite}\n```\n"
    if with_analyzed:
        block += f"SQLite after `ANALYZE`:\n```\n{explained['analyzed'][label][number]}\n```\n"
    return block


INDEX = re.compile(r"(?:using|on) \w+|(?:SEARCH|SCAN) .*")
"""What a plan reads, and by which index."""


def shortened(sections: dict[str, list[str]]) -> dict[str, list[str]]:
    """Replace a block of an earlier section, with the same statement and the same indexes, by the title of that one.

    A section of one statement stays as it is: it is there for its data.
    """
    first: dict[tuple[str, ...], str] = {}
    found: dict[str, list[str]] = {}
    for title, blocks in sections.items():
        found[title] = []
        for block in blocks:
            statement, _, plans_of_it = block.removeprefix("\n```sql\n").partition("\n```\n")
            earlier = first.setdefault((statement, *INDEX.findall(plans_of_it)), title)
            is_named = earlier != title and len(blocks) > 1
            name = f'\n`{statement.splitlines()[0][:80]} …`: as in "{earlier}".\n'
            found[title].append(name if is_named else block)
    return found


def _wrapped(statement: str) -> str:
    return re.sub(r"\s*\n\s*", "\n", statement).strip()


def _tidy(plan: str) -> str:
    """Remove what differs from run to run: moments, hashes, and how much was already in memory."""
    plan = re.sub(r"'\d{4}-[^']*'::timestamp with time zone", "$moment", plan)
    plan = re.sub(r"'\\x[0-9a-f]*'::bytea", "$hash", plan)
    plan = re.sub(r"Buffers: shared .*", _pages, plan)
    return re.sub(r"\s*\n\s*Pages: \d+$", "", plan) if plan.count("Pages:") > 1 else plan


def _pages(match: re.Match[str]) -> str:
    numbers = dict(re.findall(r"(hit|read)=(\d+)", match[0]))
    return f"Pages: {sum(int(number) for number in numbers.values())}"


if __name__ == "__main__":
    main()
