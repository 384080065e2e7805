"""Packages say in their first docstring line what belongs there, and what they may import."""

import re

import pytest

from scripts.reference.packages import (
    ROOT,
    SOURCE,
    children,
    first_line,
    imported_siblings,
    layer_list,
    layers,
    package_tree,
)


def below(package: str) -> list[str]:
    return [
        name
        for child in children(package)
        for name in (f"{package}.{child}", *below(f"{package}.{child}"))
    ]


PACKAGES = below("headrace")


def allowed(package: str) -> set[str]:
    """What the line may say of imports: one sentence for each package in the row below."""
    parent, _, name = package.rpartition(".")
    rows = layers().get(parent, ())
    number = next((number for number, row in enumerate(rows) if name in row), None)
    if number is not None and number + 1 < len(rows):
        return {f"Imports `{other}` and below." for other in rows[number + 1]}
    siblings = [f"`{sibling}`" for sibling in sorted(imported_siblings(package))]
    noun = "sibling" if len(siblings) == 1 else "siblings"
    return {f"Imports its {noun} {', '.join(siblings)}." if siblings else "Imports no sibling."}


@pytest.mark.parametrize("package", PACKAGES)
def test_first_line_says_what_belongs_in_a_package_and_what_it_imports(package: str) -> None:
    match = re.fullmatch(r"(.{8,}\.) (Imports .+)", first_line(package))

    assert match is not None
    assert match[2] in allowed(package)


def test_tree_has_one_line_for_each_package() -> None:
    lines = package_tree().splitlines()

    assert len(lines) == len(PACKAGES) + 3  # the root, and two fences
    assert all(re.fullmatch(r" *[a-z_]+/ +\S.*", line) for line in lines[1:-1])


@pytest.mark.parametrize("package", sorted(layers()))
def test_layers_are_listed_from_the_top(package: str) -> None:
    rows = layer_list(package).splitlines()[1:-1]

    assert [tuple(row.split(" | ")) for row in rows] == list(layers()[package])


def test_pages_name_modules_that_exist() -> None:
    modules = {
        (page.name, module)
        for page in (ROOT / "docs").rglob("*.md")
        for module in re.findall(r"`([a-z_]+/[\w/]+\.py)`", page.read_text())
    }
    roots = (ROOT, SOURCE / "headrace", SOURCE)

    assert len(modules) > 60
    assert [m for m in sorted(modules) if not any((root / m[1]).is_file() for root in roots)] == []
