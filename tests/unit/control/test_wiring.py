"""The wiring of the control plane gives each object what it needs when it is made."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import control

CONTROL = Path(control.__file__).parent
WIRING = ["app/assemble.py", "app/main.py", "plane/control_plane.py", "agents/build.py"]
SERVICES = [
    "reconcile/service.py",
    "scaling/service.py",
    "telemetry/service.py",
    "plane/workloads.py",
]


def assigned_from_outside(source: str) -> Iterator[str]:
    """Attributes of objects other than `self` that a module assigns, or sets by their name."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=owner, ctx=ast.Store() | ast.Del()):
                if not (isinstance(owner, ast.Name) and owner.id == "self"):
                    yield ast.unparse(node)
            case ast.Call(func=ast.Name(id="setattr")):
                yield ast.unparse(node)


@pytest.mark.parametrize("module", [*WIRING, *SERVICES])
def test_no_attribute_is_assigned_from_outside(module: str) -> None:
    source = (CONTROL / module).read_text(encoding="utf-8")

    assert list(assigned_from_outside(source)) == []


def test_late_assignments_are_recognised() -> None:
    source = "a.b = 1\nself.c.d: int = 2\nsetattr(e, 'f', 3)\nself.g = 4\nh, i.j = 5, 6"

    assert sorted(assigned_from_outside(source)) == ["a.b", "i.j", "self.c.d", "setattr(e, 'f', 3)"]
