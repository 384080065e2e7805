"""Package tree and layers: first docstring lines, and the import contracts of `pyproject.toml`."""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCE: Final = ROOT / "src"


@cache
def layers() -> dict[str, tuple[tuple[str, ...], ...]]:
    """The rows of children that each contract puts in order, top first, by package."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    return {
        container: tuple(tuple(row.split(" | ")) for row in contract["layers"])
        for contract in tools["importlinter"]["contracts"]
        if contract["type"] == "layers"
        for container in contract["containers"]
    }


def layer_list(package: str) -> str:
    """The layers of a package as a block of text, top first."""
    return "\n".join(["```text", *map(" | ".join, layers()[package]), "```"])


def children(package: str) -> list[str]:
    """Packages directly in `package`: in the order of its layers, else of the alphabet."""
    rows = layers().get(package, ())
    order = {name: number for number, row in enumerate(rows) for name in row}
    names = {path.parent.name for path in _directory(package).glob("*/__init__.py")}
    return sorted(names, key=lambda name: (order.get(name, len(rows)), name))


def first_line(package: str) -> str:
    """The first line of a package's docstring."""
    module = ast.parse((_directory(package) / "__init__.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(module) or "").partition("\n")[0]


def package_tree() -> str:
    """All packages, a line each, as a block of text."""
    rows = list(_tree("headrace", ""))
    width = max(len(name) for name, _ in rows)
    return "\n".join(["```text", *(f"{name:{width}}  {text}" for name, text in rows), "```"])


def imported_siblings(package: str) -> set[str]:
    """Packages with the same parent whose modules a package's modules import."""
    parent, _, name = package.rpartition(".")
    prefix = f"{parent}."
    modules: set[str] = set()
    for path in _directory(package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.ImportFrom(module=str(module), names=names):
                    modules |= {f"{module}.{alias.name}" for alias in names}
                case ast.Import(names=names):
                    modules |= {alias.name for alias in names}
    siblings = {m.removeprefix(prefix).partition(".")[0] for m in modules if m.startswith(prefix)}
    return siblings & set(children(parent)) - {name}


def _directory(package: str) -> Path:
    return SOURCE.joinpath(*package.split("."))


def _tree(package: str, indent: str) -> Iterator[tuple[str, str]]:
    name = package.rpartition(".")[2]
    yield f"{indent}{name}/", first_line(package).replace("`", "")
    for child in children(package):
        yield from _tree(f"{package}.{child}", indent + "  ")
