"""Modules of a user's own: which files decide what they do."""

from __future__ import annotations

import configparser
import importlib
import importlib.machinery
import os
import py_compile
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.disk.versions import PACKAGES, versions
from lab.own_modules import module_source, source_digest

ROOT = Path(__file__).resolve().parents[1]

#: A module and a package, and what they are made of; ``own_`` keeps them apart from all others.
FILES = {
    "own_core.py": "import json, torch\nfrom own_helper import x",
    "own_helper.py": "def f():\n    import own_package.deep.part",
    "own_package/__init__.py": "",
    "own_package/deep/part.py": "import importlib\nimportlib.import_module('own_late')",
    "own_package/other.py": "import own_core",
    "own_late.py": "",
    "own_stranger.py": "",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        write(tmp_path / name, text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def is_known(module: str) -> bool:
    return source_digest([module]) == source_digest([module])


@pytest.mark.parametrize("module", ["own_core", "own_package.other"])
def test_every_file_that_is_imported_counts(here: Path, module: str) -> None:
    before = source_digest([module])
    assert source_digest([module]) == before
    for name in FILES:
        (here / name).write_text(f"{FILES[name]}\n# edited")
        assert (source_digest([module]) != before) == (name != "own_stranger.py"), name
        (here / name).write_text(FILES[name])
        assert source_digest([module]) == before


def test_a_file_that_comes_or_goes_counts(here: Path) -> None:
    before = source_digest(["own_core"])
    write(here / "own_package/deep/more.py", "")
    more = source_digest(["own_core"])
    assert more != before
    (here / "own_package/deep/more.py").rename(here / "own_package/deep/less.py")
    assert source_digest(["own_core"]) not in (before, more)
    (here / "own_package/deep/less.py").unlink()
    assert source_digest(["own_core"]) == before


def test_it_does_not_matter_where_the_folder_is(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = source_digest(["own_core"])
    monkeypatch.chdir("/")
    assert not is_known("own_core")
    sys.path.append(str(here))
    assert source_digest(["own_core"]) == before


def test_modules_on_the_path_count_wherever_they_are(here: Path) -> None:
    (here / "own_late.py").rename(here / "own_package/deep/own_late.py")
    sys.path.append(str(here / "own_package/deep"))
    importlib.invalidate_caches()
    before = source_digest(["own_late"])
    (here / "own_package/deep/own_late.py").write_text("edited = 1")
    assert source_digest(["own_late"]) != before


def test_what_an_editable_installation_finds_counts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            if name != "own_elsewhere":
                return None
            return importlib.machinery.PathFinder.find_spec(name, [str(here / "elsewhere")])

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    write(here / "elsewhere/own_elsewhere.py", "")
    (here / "own_core.py").write_text("import own_elsewhere")
    before = source_digest(["own_core"])
    (here / "elsewhere/own_elsewhere.py").write_text("edited = 1")
    assert source_digest(["own_core"]) != before
    assert module_source("own_elsewhere") == b"edited = 1"


def test_installed_libraries_count_only_if_named(here: Path) -> None:
    write(here / "site-packages/own_library/__init__.py", "import own_late")
    sys.path.append(str(here / "site-packages"))
    importlib.invalidate_caches()
    (here / "own_core.py").write_text("import own_library, json")
    importing, named = source_digest(["own_core"]), source_digest(["own_library"])
    (here / "own_late.py").write_text("edited = 1")
    assert source_digest(["own_library"]) == named
    write(here / "site-packages/own_library/part.py", "")
    assert source_digest(["own_core"]) == importing
    assert source_digest(["own_library"]) != named


def test_libraries_go_by_their_versions() -> None:
    assert source_digest(["torch.nn", "rims.layers"]) == source_digest([])
    assert set(versions()) - {"python", "rims-toolkit"} <= PACKAGES


def test_our_packages_are_those_that_are_installed() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = setup["options.packages.find"]["include"].replace("*", "").split()
    ours = {*packages, *setup["options"]["py_modules"].split()}
    assert ours == {name for name in PACKAGES if (ROOT / name).is_dir() or name == "cli"}


@pytest.mark.parametrize("suffix", importlib.machinery.EXTENSION_SUFFIXES[:1])
def test_compiled_modules_are_never_the_same(here: Path, suffix: str) -> None:
    assert is_known("own_core")
    (here / "own_late.py").rename(here / f"own_late{suffix}")
    importlib.invalidate_caches()
    assert not is_known("own_late")
    assert not is_known("own_core")  # which imports it


def test_compiled_parts_of_a_package_count_by_their_bytes(here: Path) -> None:
    file = here / f"own_package/fast{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    file.write_bytes(b"1")
    before = source_digest(["own_core"])
    assert source_digest(["own_core"]) == before
    file.write_bytes(b"2")
    assert source_digest(["own_core"]) != before
    assert not is_known("own_package.fast")


def test_bytecode_without_source_is_never_the_same(here: Path) -> None:
    py_compile.compile("own_late.py", "own_late.pyc")
    (here / "own_late.py").unlink()
    importlib.invalidate_caches()
    assert not is_known("own_late")


@pytest.mark.parametrize("name", ["own_zipped.py", "own_zipped/__init__.py"])
def test_archives_are_never_the_same(here: Path, name: str) -> None:
    with zipfile.ZipFile(here / "own.zip", "w") as archive:
        archive.writestr(name, "")
    sys.path.append(str(here / "own.zip"))
    assert not is_known("own_zipped")
    (here / "own_late.py").write_text("import own_zipped")
    assert not is_known("own_core")


def test_what_is_loaded_from_elsewhere_is_never_the_same(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("own_late")  # typed in
    monkeypatch.setitem(sys.modules, "own_late", module)
    assert not is_known("own_late")
    module.__file__ = str(here / "own_stranger.py")
    assert not is_known("own_late")
    module.__file__ = str(here / "own_late.py")
    assert is_known("own_late")
    assert not is_known("no_such_module")
    assert not is_known("sys")


def test_folders_that_lead_to_themselves_end(here: Path) -> None:
    os.symlink(here / "own_package", here / "own_package/deep/again")
    write(here / "linked/part.py", "")
    os.symlink(here / "linked", here / "own_package/linked")
    before = source_digest(["own_core"])
    (here / "linked/part.py").write_text("edited = 1")
    assert source_digest(["own_core"]) != before


@pytest.mark.parametrize(
    "make", [lambda path: path.write_text("def ("), lambda path: path.write_bytes(b"\xff\x00")]
)
def test_files_that_are_no_python_count_by_their_bytes(
    here: Path, make: Callable[[Path], object]
) -> None:
    before = source_digest(["own_core"])
    make(here / "own_package/template.py")
    assert is_known("own_core")
    assert source_digest(["own_core"]) != before


def test_source_of_a_module_is_found_without_importing_it() -> None:
    sys.modules.pop("antigravity", None)
    assert b"webbrowser" in (module_source("antigravity") or b"")
    assert module_source("no_such_module.below") is None
    assert module_source("sys") is None
    assert "antigravity" not in sys.modules
