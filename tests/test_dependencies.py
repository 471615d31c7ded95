"""What setup.cfg asks for: bounds that can be tried, as ``tests/versions.sh`` does."""

from __future__ import annotations

from configparser import ConfigParser

import pytest
from packaging.requirements import Requirement

from command_line import ROOT


def requirements() -> list[Requirement]:
    found = ConfigParser()
    found.read(ROOT / "setup.cfg", encoding="utf-8")
    lists = [found["options"]["install_requires"], *found["options.extras_require"].values()]
    return [Requirement(line) for text in lists for line in text.splitlines() if line]


def lowest(name: str) -> str | None:
    (requirement,) = (each for each in requirements() if each.name == name)
    bounds = [each.version for each in requirement.specifier if each.operator == ">="]
    return bounds[0] if len(bounds) == 1 else None


@pytest.mark.parametrize("name", [each.name for each in requirements()])
def test_every_dependency_has_a_lower_bound(name: str) -> None:
    """Else the lowest version is that of long ago, which nobody ran."""
    assert lowest(name) is not None


def test_torch_that_is_installed_here_is_the_lowest_that_is_allowed() -> None:
    """The lowest versions are tried with the torch of constraints.txt: none is promised below."""
    (pinned,) = (
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("torch==")
    )
    assert pinned in Requirement(f"torch=={lowest('torch')}").specifier
