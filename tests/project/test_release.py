"""The parts of a release: a version, a changelog and complete distributions."""

import datetime
import io
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata

import pytest
import yaml

import sparseopt_jax as so
from tests.helpers.pages import ROOT, read

CHANGELOG = read("CHANGELOG.md")
CITATION = yaml.safe_load(read("CITATION.cff"))
PROJECT = tomllib.loads(read("pyproject.toml"))

# In the order of keepachangelog.com.
KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def releases():
    """Return the dates of the releases by version, newest first."""
    found = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - (.*)$", CHANGELOG, re.MULTILINE)
    return {version: datetime.date.fromisoformat(date) for version, date in found}


def as_numbers(version):
    return tuple(int(part) for part in version.split("."))


def test_the_changelog_has_a_section_for_every_release_and_what_comes():
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert len(headings) == 1 + len(releases())
    versions = [as_numbers(version) for version in releases()]
    assert versions == sorted(versions, reverse=True)
    dates = list(releases().values())
    assert dates == sorted(dates, reverse=True)


def test_sections_of_the_changelog_sort_changes_by_their_kind():
    sections = re.split(r"^## ", CHANGELOG, flags=re.MULTILINE)[1:]
    for section in sections:
        title, *parts = re.split(r"^### ", section, flags=re.MULTILINE)
        assert "\n- " not in title, "a change without a kind"
        kinds = [part.splitlines()[0] for part in parts]
        assert kinds == [kind for kind in KINDS if kind in kinds]
        for part in parts:
            assert "\n- " in part


def test_the_version_is_the_newest_release_or_the_next():
    newest = next(iter(releases()), "0.0.0")
    assert as_numbers(so.__version__) >= as_numbers(newest)
    if so.__version__ not in releases():
        unreleased = CHANGELOG.split("## [Unreleased]")[1].split("\n## ")[0]
        assert f"This will be {so.__version__}" in unreleased


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"]
    path = ROOT / PROJECT["tool"]["hatch"]["version"]["path"]
    assert runpy.run_path(str(path))["__version__"] == so.__version__


def test_the_citation_is_of_this_version():
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["message"] and CITATION["type"] == "software"
    assert CITATION["title"] == PROJECT["project"]["name"]
    assert CITATION["license"] == PROJECT["project"]["license"]
    assert CITATION["version"] == so.__version__
    released = releases().get(so.__version__)
    assert CITATION.get("date-released") == released


def test_the_citation_has_its_authors_and_the_papers_of_the_readme():
    for work in (CITATION, *CITATION["references"]):
        assert work["title"] and work["authors"]
        for author in work["authors"]:
            assert author.keys() <= {"name", "family-names", "given-names"}
            assert author.get("name") or author.get("family-names")
    papers = {work["title"]: work for work in CITATION["references"]}
    entries = re.findall(r"^@\w+\{.*?^\}", read("README.md"), re.MULTILINE | re.DOTALL)
    assert len(entries) == len(papers) > 1
    for entry in entries:
        (title,) = re.findall(r"\btitle += \{(.*)\}", entry)
        (year,) = re.findall(r"\byear += \{(.*)\}", entry)
        assert papers[title]["year"] == int(year)
        for number in re.findall(r"arXiv:([\d.]+)", entry):
            assert papers[title]["url"] == f"https://arxiv.org/abs/{number}"


def test_links_of_the_project_are_to_its_papers():
    for url in PROJECT["project"]["urls"].values():
        assert url in {work.get("url") for work in CITATION["references"]}


EXTRAS = PROJECT["project"]["optional-dependencies"]


def test_extras_that_pages_and_programs_name_can_be_installed():
    named = set()
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "Makefile"):
        found = re.findall(
            r"(?:'\.|sparseopt_jax)\[([\w,]+)\]", path.read_text("utf-8")
        )
        named |= {extra for extras in found for extra in extras.split(",")}
    assert named == EXTRAS.keys()


def test_extras_ask_for_extras_that_there_are():
    for requirement in (line for extra in EXTRAS.values() for line in extra):
        for package, extra in re.findall(r"^([\w-]+)\[([\w-]+)\]", requirement):
            if package == PROJECT["project"]["name"]:
                assert extra in EXTRAS
            else:
                offered = metadata.metadata(package).get_all("Provides-Extra")
                assert extra in offered, requirement


# The distributions.

CHECK = ROOT / ".ci" / "distributions.py"
NAMES = runpy.run_path(str(CHECK))
STEM = f"sparseopt_jax-{so.__version__}"
WHEEL, SOURCES = f"{STEM}-py3-none-any.whl", f"{STEM}.tar.gz"


def build(folder, wheel, sources):
    """Write distributions that hold empty files of these names."""
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name in wheel:
            archive.writestr(name, "")
    with tarfile.open(folder / SOURCES, "w:gz") as archive:
        for name in sources:
            archive.addfile(tarfile.TarInfo(f"{STEM}/{name}"), io.BytesIO())
    return folder


def checked(folder):
    return subprocess.run(
        [sys.executable, CHECK, folder], capture_output=True, text=True, check=False
    )


@pytest.fixture
def contents():
    package = NAMES["package_files"]()
    beside = {f"{STEM}.dist-info/{name}" for name in NAMES["METADATA"]}
    return {"wheel": package | beside, "sources": package | NAMES["BESIDE"]}


def test_distributions_hold_the_package(tmp_path, contents):
    assert "sparseopt_jax/py.typed" in contents["wheel"] & contents["sources"]
    assert not any("__pycache__" in name for name in contents["wheel"])
    done = checked(build(tmp_path / "dist", **contents))
    assert done.returncode == 0, done.stderr
    assert WHEEL in done.stdout and SOURCES in done.stdout


@pytest.mark.parametrize("kind", ["wheel", "sources"])
def test_distributions_lack_nothing_and_hold_nothing_else(tmp_path, contents, kind):
    whole = contents[kind]
    contents[kind] = whole - {"sparseopt_jax/py.typed"}
    done = checked(build(tmp_path / "lacking", **contents))
    assert done.returncode == 1
    assert "lacks ['sparseopt_jax/py.typed']" in done.stderr.replace(f"{STEM}/", "")
    contents[kind] = whole | {"tests/test_release.py"}
    done = checked(build(tmp_path / "more", **contents))
    assert done.returncode == 1
    assert "not hold ['tests/test_release.py']" in done.stderr.replace(f"{STEM}/", "")


def test_distributions_are_one_of_each_kind_and_of_this_version(tmp_path, contents):
    folder = build(tmp_path / "dist", **contents)
    (folder / "sparseopt_jax-0.0.1.tar.gz").touch()
    done = checked(folder)
    assert done.returncode == 1 and "sparseopt_jax-0.0.1.tar.gz" in done.stderr
    (folder / "sparseopt_jax-0.0.1.tar.gz").unlink()
    (folder / WHEEL).unlink()
    assert checked(folder).returncode == 1
