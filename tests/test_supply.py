"""What is installed is exactly what was tested: one version of everything, known by its hash."""

import re
import shutil
import tomllib
from functools import cache
from typing import Any

import pytest

from tests.support.server import ROOT
from tools import sbom

REQUIREMENT = re.compile(
    r"^([a-z0-9.-]+)==([^ ;]+)( ; .+?)? \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE
)


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def normalized(requirement: str) -> str:
    """The name of a package in the form in which lists have it."""
    return re.split(r"[ =<>~;\[]", requirement, maxsplit=1)[0].lower().replace("_", "-")


@cache
def requirements() -> dict[tuple[str, str], frozenset[str]]:
    """Package and version → the hashes of its files."""
    text = (ROOT / "requirements.txt").read_text("utf-8")
    return {
        (name, version): frozenset(re.findall(r"sha256:(\w+)", hashes))
        for name, version, _, hashes in REQUIREMENT.findall(text)
    }


def test_every_requirement_has_one_exact_version_and_the_hashes_of_its_files() -> None:
    text = (ROOT / "requirements.txt").read_text("utf-8")
    assert "".join(match.group() for match in REQUIREMENT.finditer(text)) == text.partition("\n")[2]
    assert all(requirements().values())


def test_every_dependency_is_among_the_requirements_and_has_the_version_that_is_tested() -> None:
    names = {name for name, _ in requirements()}
    direct = [*project()["project"]["dependencies"], *project()["dependency-groups"]["cpu"]]
    assert {normalized(each) for each in direct} <= names
    pins = [pin.partition(" ;")[0] for pin in project()["tool"]["uv"]["constraint-dependencies"]]
    # MLX is pinned by its groups, because its CPU and CUDA builds exclude each other.
    assert {f"{name}=={version}" for name, version in requirements() if not name.startswith("mlx")} <= {*pins}


def test_build_backend_and_what_it_needs_are_pinned() -> None:
    pins = project()["tool"]["uv"]["build-constraint-dependencies"]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", pin) for pin in pins)
    assert set(project()["build-system"]["requires"]) <= set(pins)


def test_no_list_names_the_place_that_packages_come_from() -> None:
    """It would be that of the machine that made the list, and every user's own setting is what counts."""
    assert "://" not in (ROOT / "requirements.txt").read_text("utf-8")
    assert project()["tool"]["uv"].keys().isdisjoint({"index", "index-url", "extra-index-url", "find-links", "sources"})


def test_bill_of_materials_names_every_requirement_with_its_hashes() -> None:
    if shutil.which("uv") is None or not (ROOT / "uv.lock").is_file():
        pytest.skip("needs uv and the lock that `uv run` keeps")
    document = sbom.finish(sbom.export())
    listed = {
        (each["name"], each["version"]): frozenset(file["content"] for file in each.get("hashes", ()))
        for each in document["components"]
    }
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.5")
    assert listed == requirements()
    assert "://" not in str(document["components"])


def test_pins_are_installed_as_they_stand() -> None:
    """The tests ran with these versions, and no others."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name, wanted in requirements():
        try:
            found[name] = (version(name), wanted)
        except PackageNotFoundError:
            # Of another platform or Python.
            continue
    several = {name for name, _ in requirements() if sum(name == other for other, _ in requirements()) > 1}
    assert len(found) > 40
    assert {name: each for name, each in found.items() if each[0] != each[1] and name not in several} == {}
