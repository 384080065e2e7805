"""Closed sets of words: each with the line that stands under it in the code."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from enum import StrEnum

from scripts.reference.text import cell


def meanings(kind: type[StrEnum]) -> Mapping[str, str]:
    """What each word means, by value; empty where the word says it all."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    name = ""
    for statement in definition.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[kind[name].value] = ""
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                found[kind[name].value] = cell(text)
    return found


def word_table(kind: type[StrEnum], title: str) -> str:
    """The words of a set and what they mean."""
    rows = [f"| `{word}` | {meaning} |" for word, meaning in meanings(kind).items()]
    return "\n".join([f"| {title} | meaning |", "|---|---|", *rows])
