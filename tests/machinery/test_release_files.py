"""What a release says about itself in several places is the same in all of them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import refnorm

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_version_is_one():
    assert PROJECT["project"]["version"] == refnorm.__version__ == str(CITATION["version"])


def test_the_citation_agrees_with_the_project():
    project = PROJECT["project"]
    assert CITATION["title"] == project["name"]
    assert CITATION["license"] == project["license"]
    assert [author["name"] for author in CITATION["authors"]] == [author["name"] for author in project["authors"]]
    assert CITATION["keywords"] == project["keywords"]
    # The schema itself is held by tools/check_packages.
    assert CITATION["cff-version"] == "1.2.0"


def test_the_changelog_starts_with_what_is_not_released_and_has_every_release_once():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    releases = headings[1:]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d{2}-\d{2}", heading) for heading in releases)
    assert len(set(releases)) == len(releases)


@pytest.mark.parametrize("name", ["docs/policies.md", "SECURITY.md", "CITATION.cff"])
def test_the_readme_leads_to_the_policies(name):
    assert (ROOT / name).is_file()
    assert f"]({name})" in (ROOT / "README.md").read_text()


def test_wheels_are_built_for_every_supported_python_from_the_lowest_on():
    lowest = PROJECT["project"]["requires-python"].removeprefix(">=3.")
    built = [int(minor) for minor in re.findall(r"cp3(\d+)-\*", PROJECT["tool"]["cibuildwheel"]["build"])]
    assert built == list(range(int(lowest), int(lowest) + len(built)))
    assert PROJECT["tool"]["cibuildwheel"]["test-command"] == "bash {project}/tools/test_installed"


def test_every_license_that_a_wheel_needs_is_there():
    patterns = PROJECT["project"]["license-files"]
    found = {path.name for pattern in patterns for path in ROOT.glob(pattern)}
    assert found == {"LICENSE", "libgomp.txt"}
    text = (ROOT / "tools" / "licenses" / "libgomp.txt").read_text()
    for part in ("GCC RUNTIME LIBRARY EXCEPTION", "GNU GENERAL PUBLIC LICENSE", "END OF TERMS AND CONDITIONS"):
        assert part in text
