"""`keyman audit`, as an operator types it."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from keyman.audit import anchors
from keyman.audit.chain import Head
from keyman.errors import ConfigurationError
from tests.cli.transcript import keyman
from tests.support.cli import Finished
from tests.support.vault import DisposableVault

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "audit-log.md"
LINE = re.compile(r'\{"action":"[a-z.-]+",.*,"hash":"[0-9a-f]{64}"\}')


def refused(done: Finished, why: str) -> None:
    assert (done.code, done.out) == (1, ""), done
    assert why in done.err.splitlines()[-1]
    assert done.err.splitlines()[-1].startswith("keyman: ")
    assert "Traceback" not in done.err


@pytest.fixture
def told(env: dict[str, str]) -> dict[str, str]:
    """A database whose audit log has three entries."""
    for name in ("one", "two", "three"):
        assert keyman("app", "create", name, "--service", "OPENAI", env=env).code == 0
    return env


def bend(file: Path, statement: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(statement)
        connection.commit()


def test_the_audit_log_is_listed_for_a_person_and_for_a_program(told: dict[str, str]) -> None:
    listed = keyman("audit", "list", env=told)
    assert listed.code == 0
    head, *lines = listed.out.splitlines()
    assert re.fullmatch(r"ID +AT +USER ID +ACTOR +ACTION +KEY ID +SERVICE +APPLICATION +REASON +REQUEST ID", head)
    assert [line.split()[0] for line in lines] == ["1", "2", "3"]
    assert all("operator" in line and "application.create" in line for line in lines)

    newest = json.loads(keyman("audit", "list", "--limit", "1", "--json", env=told).out)
    assert [entry["application"] for entry in newest] == ["three"]
    assert not {"hash", "value_uuid"} & newest[0].keys()

    none = keyman("audit", "list", "--action", "key.resolve", "--json", env=told)
    assert (none.code, json.loads(none.out)) == (0, [])
    none = keyman("audit", "list", "--since", "2100-01-01T00:00:00Z", "--json", env=told)
    assert json.loads(none.out) == []
    refused(keyman("audit", "list", "--user", "nobody@example.com", env=told), "There is no account")
    assert keyman("audit", "list", "--since", "yesterday", env=told).code == 2
    assert keyman("audit", "list", "--action", "key.read", env=told).code == 2


def test_an_audit_log_is_exported_and_verified_and_its_breaks_are_named(told: dict[str, str], file: Path) -> None:
    exported = keyman("audit", "export", env=told)
    assert (exported.code, exported.err) == (0, "Exported 3 entries.\n")
    assert all(LINE.fullmatch(line) for line in exported.out.splitlines())

    (program,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    for text, code in ((exported.out, 0), (exported.out.replace('"two"', '"tow"'), 1)):
        checked = subprocess.run(
            [sys.executable, "-c", program], input=text, text=True, capture_output=True, check=False
        )
        assert checked.returncode == code, checked.stderr

    whole = keyman("audit", "verify", env=told)
    assert (whole.code, whole.out) == (0, "")
    assert whole.err.endswith("Verified 3 entries: every hash is correct.\n")

    bend(file, "UPDATE audit_log SET application = 'c4n4ry' WHERE id = 2")
    broken = keyman("audit", "verify", env=told)
    assert broken.code == 1
    changed = "its hash does not match: this entry or the one before it was changed or replaced"
    assert broken.out == f"chain 0, place 2 (entry 2): {changed}\n"
    assert "The audit log is broken: 1 break in 3 entries." in broken.err
    assert "c4n4ry" not in broken.out + broken.err
    found = json.loads(keyman("audit", "verify", "--json", env=told).out)
    assert [(one["entry_id"], one["sequence"]) for one in found["breaks"]] == [(2, 2)]
    refused(keyman("audit", "anchor", env=told), "does not verify. It is evidence")

    bend(file, "DELETE FROM audit_log WHERE id = 2")
    assert "entries missing before this one: 1" in keyman("audit", "verify", env=told).out


def test_what_somebody_wrote_into_an_entry_does_not_steer_the_terminal(told: dict[str, str], file: Path) -> None:
    bend(file, "UPDATE audit_log SET service = char(27) || '[2J' || char(10) || 'x' || char(8238) WHERE id = 3")
    listed = keyman("audit", "list", env=told).out
    assert len(listed.splitlines()) == 4
    assert r"\x1b[2J\nx\u202e" in listed


def test_what_cannot_be_exported_is_said_in_words(told: dict[str, str], file: Path) -> None:
    for harm in ("hash = printf('%032d', 7)", "at = x'00'"):
        bend(file, f"UPDATE audit_log SET {harm} WHERE id = 3")  # noqa: S608
        said = keyman("audit", "export", env=told)
        assert (said.code, "Traceback" in said.err) == (1, False)
        assert "An entry is invalid." in said.err
    assert "An entry is invalid." in keyman("audit", "list", env=told).err
    assert "place 3 (no entry): the entry contains a value" in keyman("audit", "verify", env=told).out


def test_an_anchor_finds_what_was_bent_and_made_to_fit_and_lets_old_entries_go(
    told: dict[str, str], file: Path, tmp_path: Path
) -> None:
    anchored = keyman("audit", "anchor", env=told)
    assert anchored.code == 0
    anchor = tmp_path / "anchor.json"
    anchor.write_text(anchored.out)
    assert [head["sequence"] for head in json.loads(anchored.out)["heads"]] == [3]
    assert "c4n4ry" not in anchored.out

    assert keyman("app", "create", "four", "--service", "XAI", env=told).code == 0
    good = keyman("audit", "verify", "--anchor", str(anchor), env=told)
    assert good.code == 0
    assert good.err.endswith("All anchored entries exist, unchanged.\n")

    counted = keyman("audit", "prune", "--older-than", "0s", "--anchor", str(anchor), "--dry-run", env=told)
    assert (counted.code, counted.err.splitlines()[-1]) == (0, "3 entries would be removed.")
    young = keyman("audit", "prune", "--older-than", "400d", "--anchor", str(anchor), env=told)
    assert young.err.splitlines()[-1] == "Removed 0 entries."
    pruned = keyman("audit", "prune", "--older-than", "0s", "--anchor", str(anchor), env=told)
    assert pruned.err.splitlines()[-1] == "Removed 3 entries."
    since = keyman("audit", "verify", "--anchor", str(anchor), env=told)
    assert since.code == 0
    assert "The audit log says that 3 entries from before the anchor were pruned after it was taken." in since.err
    left = json.loads(keyman("audit", "list", "--json", env=told).out)
    assert [entry["action"] for entry in left] == ["application.create", "trail.prune"]

    second = keyman("audit", "anchor", env=told)
    anchor.write_text(second.out)
    bend(file, "DELETE FROM audit_log WHERE id = 5")
    bend(file, "UPDATE audit_chains SET sequence = 4, hash = (SELECT hash FROM audit_log WHERE id = 4)")
    bend(file, "UPDATE audit_chains SET base_sequence = 0")
    found = keyman("audit", "verify", "--anchor", str(anchor), env=told)
    assert found.code == 1
    assert "the entry that was anchored is missing" in found.out
    refused(keyman("audit", "prune", "--older-than", "0s", "--anchor", str(anchor), env=told), "evidence")


def test_an_anchor_that_is_none_is_said(told: dict[str, str], tmp_path: Path) -> None:
    anchor = tmp_path / "anchor.json"
    refused(keyman("audit", "verify", "--anchor", str(anchor), env=told), "cannot be read")
    for text in ("", "{}", "[1]", '{"deployment": "c4n4ry"}', '{"heads": ["c4n4ry"]}'):
        anchor.write_text(text)
        said = keyman("audit", "verify", "--anchor", str(anchor), env=told)
        refused(said, "is not an anchor")
        assert "c4n4ry" not in said.err
    other: dict[str, object] = {
        "deployment": "00000000-0000-0000-0000-000000000001",
        "at": "2026-01-01T00:00:00Z",
        "heads": [],
    }
    anchor.write_text(json.dumps(other))
    refused(keyman("audit", "verify", "--anchor", str(anchor), env=told), "another deployment")
    other["heads"] = [{"chain": 0, "sequence": 1, "hash": "zz"}]
    anchor.write_text(json.dumps(other))
    refused(keyman("audit", "verify", "--anchor", str(anchor), env=told), "is not an anchor")


def test_an_anchor_of_which_nothing_is_left_proves_nothing_unless_a_newer_one_is_given_too(
    told: dict[str, str], tmp_path: Path
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(keyman("audit", "anchor", env=told).out)
    assert keyman("app", "create", "four", "--service", "XAI", env=told).code == 0
    new.write_text(keyman("audit", "anchor", env=told).out)
    assert keyman("audit", "prune", "--older-than", "0s", "--anchor", str(new), env=told).code == 0
    refused(
        keyman("audit", "verify", "--anchor", str(old), env=told), "The anchored entries of 1 chain no longer exist"
    )
    assert keyman("audit", "verify", "--anchor", str(old), "--anchor", str(new), env=told).code == 0
    shown = keyman("audit", "verify", "--anchor", str(old), "--json", env=told)
    assert shown.code == 1
    answer = json.loads(shown.out)
    assert (answer["pruned_since_anchor"], answer["chains_without_anchor"]) == (3, [0])


def test_a_hostile_anchor_is_none(tmp_path: Path) -> None:
    path, deployment = tmp_path / "anchor.json", UUID(int=5)
    good: dict[str, object] = {"chain": 0, "sequence": 1, "hash": "00" * 32}
    whole = {"deployment": str(deployment), "at": "2026-01-01T00:00:00Z", "heads": [good]}
    path.write_text(json.dumps(whole))
    assert anchors.load(path, deployment).parsed_heads() == [Head(0, 1, bytes(32))]
    hostile: dict[str, tuple[object, ...]] = {
        "chain": (-1, 2**63, 10**30, float("nan")),
        "sequence": (-5, 0, 2**63, 10**30, float("inf"), 1.5, "1"),
        "hash": ("", "00", "00" * 33, " " + "00" * 31 + " ", "A0" * 32),
        "base": (-1,),
    }
    heads = [good | {name: value} for name, values in hostile.items() for value in values]
    texts = [json.dumps(whole | {"heads": [head]}) for head in heads]
    nested = '{"more":' + "[" * 400_000 + "]" * 400_000 + "}"
    for text in (*texts, nested, json.dumps(whole).replace(": 1,", ": 1e400,"), json.dumps(whole) + " " * 1_000_000):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match="is not an anchor"):
            anchors.load(path, deployment)


def test_an_anchor_is_signed_by_vault_and_held_to_its_signature(
    operator: dict[str, str], rotated_vault: DisposableVault, tmp_path: Path
) -> None:
    env = operator | {"KEYMAN_VAULT_TOKEN": rotated_vault.root.ask_token({"policies": ["root"]})}
    assert keyman("app", "create", "one", "--service", "OPENAI", env=env).code == 0
    anchor = tmp_path / "anchor.json"
    signed = keyman("audit", "anchor", "--sign", "keyman-audit", env=env)
    assert signed.code == 0, signed.err
    assert "Created the key keyman-audit: ed25519, not exportable." in signed.err
    assert json.loads(signed.out)["signature"].startswith("vault:v1:")
    anchor.write_text(signed.out)
    check = ("audit", "verify", "--anchor", str(anchor))
    assert keyman(*check, "--signing-key", "keyman-audit", env=env).code == 0
    unchecked = keyman(*check, env=env)
    assert unchecked.code == 0
    assert "was not checked. To check it, give its key with --signing-key" in unchecked.err

    again = keyman("audit", "anchor", "--sign", "keyman-audit", env=env)
    assert "Created the key" not in again.err
    forged = json.loads(signed.out) | {"at": "2026-01-01T00:00:00Z"}
    for bad in (forged, forged | {"signature": "vault:v1:AAAA"}, forged | {"signature": None}):
        anchor.write_text(json.dumps(bad))
        refused(keyman(*check, "--signing-key", "keyman-audit", env=env), "Not signed by keyman-audit")
        going = ("audit", "prune", "--older-than", "0s", "--anchor", str(anchor), "--signing-key", "keyman-audit")
        refused(keyman(*going, env=env), "Not signed by keyman-audit")
    assert keyman("audit", "anchor", "--sign", "../keys", env=env).code == 2
    unauthorized = keyman("audit", "anchor", "--sign", "keyman-audit", env=env | {"KEYMAN_VAULT_TOKEN": "not-a-token"})
    refused(unauthorized, "It needs update on")
    sealing = keyman("audit", "anchor", "--sign", "keyman", env=env)
    refused(sealing, "exists and cannot sign")
