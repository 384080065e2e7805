"""The bill of materials says what is installed, and the same bytes for the same things."""

import json
from pathlib import Path

import pytest

from scripts.images.sbom import (
    bill_of_materials,
    debian_components,
    main,
    python_components,
    python_dependencies,
)

STATUS = """\
Package: libssl3
Status: install ok installed
Architecture: amd64
Source: openssl (3.5.1-1)
Version: 3.5.1-1+b2
Description: Secure Sockets Layer
 with a second line

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1.0

Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2.37-2

"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(STATUS)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_ID="13"\nNAME="Debian"\n')
    return tmp_path


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    install(tmp_path, "Fast_API", "1.2", "License-Expression: MIT\nRequires-Dist: numpy>=1\n")
    install(
        tmp_path,
        "numpy",
        "2.0",
        "License: see LICENSE\nClassifier: License :: OSI Approved :: BSD License\n"
        'Requires-Dist: fast-api; extra == "all"\nRequires-Dist: absent (>=1)\n',
    )
    install(tmp_path, "wordy", "3", "License: A text\n  of many lines\n")
    return tmp_path


def install(folder: Path, name: str, version: str, more: str) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n{more}\n"
    )


def test_installed_packages_of_debian_are_listed_by_name(base: Path) -> None:
    found = list(debian_components(base))

    assert [(one["name"], one["version"]) for one in found] == [
        ("bash", "5.2.37-2"),
        ("libssl3", "3.5.1-1+b2"),
    ]
    assert found[1]["purl"] == "pkg:deb/debian/libssl3@3.5.1-1%2Bb2?arch=amd64&distro=debian-13"


def test_the_source_package_is_named_since_advisories_are_about_it(base: Path) -> None:
    bash, openssl = debian_components(base)

    assert openssl["properties"] == [{"name": "headrace:source", "value": "openssl@3.5.1-1"}]
    assert bash["properties"] == [{"name": "headrace:source", "value": "bash@5.2.37-2"}]


def test_a_base_that_keeps_a_file_for_each_package_is_read_too(tmp_path: Path) -> None:
    parts = tmp_path / "var/lib/dpkg/status.d"
    parts.mkdir(parents=True)
    (parts / "tzdata").write_text("Package: tzdata\nArchitecture: all\nVersion: 2026b-1\n")
    (parts / "tzdata.md5sums").write_text("0 usr/share/zoneinfo\n")

    (found,) = debian_components(tmp_path)

    assert found["purl"] == "pkg:deb/debian/tzdata@2026b-1?arch=all"


def test_a_base_without_a_list_of_packages_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has neither var/lib/dpkg/status"):
        list(debian_components(tmp_path))


def test_pythons_packages_are_named_as_the_index_names_them(packages: Path) -> None:
    assert [one["purl"] for one in python_components(packages)] == [
        "pkg:pypi/fast-api@1.2",
        "pkg:pypi/numpy@2.0",
        "pkg:pypi/wordy@3",
    ]


def test_a_licence_is_an_expression_else_a_name_and_never_a_text(packages: Path) -> None:
    api, numpy, wordy = python_components(packages)

    assert api["licenses"] == [{"expression": "MIT"}]
    assert numpy["licenses"] == [{"license": {"name": "BSD License"}}]
    assert "licenses" not in wordy


def test_dependencies_are_those_that_are_there_without_extras(packages: Path) -> None:
    needed = {one["ref"]: one["dependsOn"] for one in python_dependencies(packages)}

    assert needed["pkg:pypi/fast-api@1.2"] == ["pkg:pypi/numpy@2.0"]
    assert needed["pkg:pypi/numpy@2.0"] == []


def test_the_same_things_give_the_same_bill_and_others_another_number(packages: Path) -> None:
    once, again = (
        bill_of_materials("image", python_components(packages), python_dependencies(packages))
        for _ in range(2)
    )
    other = bill_of_materials("other", python_components(packages), [])

    assert once == again
    assert once["serialNumber"] != other["serialNumber"]


def test_the_file_is_written_with_all_in_it(base: Path, packages: Path, tmp_path: Path) -> None:
    install(packages, "headrace", "0.1.0", "")
    output = tmp_path / "bill.json"

    status = main(
        [
            "--name",
            "image",
            "--packages",
            str(packages),
            "--base",
            str(base),
            "--output",
            str(output),
        ]
    )

    bill = json.loads(output.read_text())
    assert status == 0
    assert bill["specVersion"] == "1.6"
    assert bill["metadata"]["component"] == {
        "type": "container",
        "bom-ref": "image",
        "name": "image",
        "version": "0.1.0",
    }
    names = [one["name"] for one in bill["components"]]
    assert names == ["python", "bash", "libssl3", "fast-api", "headrace", "numpy", "wordy"]
    refs = [one["bom-ref"] for one in bill["components"]]
    assert len(refs) == len(set(refs))
    assert {one["ref"] for one in bill["dependencies"]} <= set(refs)
