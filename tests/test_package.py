"""The wheel: what somebody gets who installs keyman."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from keyman.version import __version__

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    directory = tmp_path_factory.mktemp("wheel")
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(directory))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True, timeout=120)
    (built,) = directory.glob("keyman-*.whl")
    return zipfile.ZipFile(built)


def test_the_policies_in_the_wheel_are_those_of_the_tree(wheel: zipfile.ZipFile) -> None:
    shipped = {name for name in wheel.namelist() if name.startswith("keyman/vault/policies/")}
    tree = [path for path in (ROOT / "vault-policies").iterdir() if path.is_file()]
    assert shipped == {f"keyman/vault/policies/{path.name}" for path in tree}
    for path in tree:
        assert wheel.read(f"keyman/vault/policies/{path.name}") == path.read_bytes()


def test_the_wheel_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    tracked = subprocess.run(["git", "ls-files", "keyman"], cwd=ROOT, capture_output=True, check=True, timeout=60)
    files = tracked.stdout.decode().split()
    assert "keyman/py.typed" in files
    assert set(files) - set(wheel.namelist()) == set()


def test_the_licence_of_keyman_and_of_what_it_carries_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert "keyman/planes/management/web/static/elements/LICENSE" in names


def test_the_metadata_has_the_version_of_the_tree_and_its_authors(wheel: zipfile.ZipFile) -> None:
    metadata = Parser().parsestr(wheel.read(f"keyman-{__version__}.dist-info/METADATA").decode())
    assert (metadata["Name"], metadata["Version"]) == ("keyman", __version__)
    assert metadata["Author"] == "The keyman developers"
    assert metadata["Author-email"] is None


def test_a_package_index_refuses_the_wheel(wheel: zipfile.ZipFile) -> None:
    """The name `keyman` belongs to another program there; an upload by mistake must fail."""
    metadata = Parser().parsestr(wheel.read(f"keyman-{__version__}.dist-info/METADATA").decode())
    assert "Private :: Do Not Upload" in metadata.get_all("Classifier", [])
