"""Reference pages for classes, from their signatures and docstrings."""

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator

from headrace.core.spec.base import texts_of
from scripts.reference.tables import cell

_SECTION = re.compile(r"^(Args|Returns|Raises):$", re.MULTILINE)
_WIDTH = 90
_ENTRY = re.compile(r"^ {4}(\S[^:]*): (.*)$")


def class_section(kind: type) -> str:
    """A class: what it is, its fields, its methods."""
    parts = [class_head(kind)]
    for name, member in vars(kind).items():
        if name.startswith("_") or not inspect.isfunction(member):
            continue
        parts.append(f"### {kind.__name__}.{name}\n")
        # Not `python`: a signature has no body, and `python` blocks are tried by the tests.
        parts.append(f"```pycon\n{_signature(member)}\n```\n")
        parts.append(markdown_from(member.__doc__ or ""))
    return "\n".join(parts)


def class_head(kind: type) -> str:
    """A class without its methods."""
    parts = [f"## {kind.__name__}\n", markdown_from(kind.__doc__ or "")]
    fields = {
        name: _plain(annotation)
        for name, annotation in inspect.get_annotations(kind).items()
        if not name.startswith("_") and "ClassVar" not in str(annotation)
    }
    if fields:
        texts = texts_of(kind)
        head = (
            ["| field | type | meaning |", "|---|---|---|"]
            if texts
            else ["| field | type |", "|---|---|"]
        )
        rows = [
            f"| `{name}` | `{cell(type_name)}` |"
            + (f" {cell(texts.get(name, ''))} |" if texts else "")
            for name, type_name in fields.items()
        ]
        parts.append("\n".join([*head, *rows]) + "\n")
    return "\n".join(parts)


def markdown_from(docstring: str) -> str:
    """A Google-style docstring as Markdown: sections become lists."""
    pieces = _SECTION.split(inspect.cleandoc(docstring))
    parts = [pieces[0].rstrip() + "\n"]
    for title, body in zip(pieces[1::2], pieces[2::2], strict=True):
        parts.append(f"**{title}**\n")
        # A section ends where the indentation does.
        listed, _, after = body.lstrip("\n").partition("\n\n")
        parts.append("\n".join(_entries(listed)) + "\n")
        if after.strip():
            parts.append(after.strip() + "\n")
    return "\n".join(parts)


def _entries(body: str) -> Iterator[str]:
    for line in body.splitlines():
        match = _ENTRY.match(line)
        yield f"- `{match[1]}`: {match[2]}" if match else f"  {line.strip()}"


def _signature(member: Callable[..., object]) -> str:
    """A function's head as its source has it, which keeps the names of types."""
    source = textwrap.dedent(inspect.getsource(member))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    prefix = "async " if isinstance(function, ast.AsyncFunctionDef) else ""
    arguments = ast.unparse(function.args).removeprefix("self").removeprefix(", ")
    answer = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    text = f"{prefix}{function.name}({arguments}){answer}"
    return text if len(text) <= _WIDTH else _wrapped(text)


def _plain(annotation: object) -> str:
    """A type as people write it, without modules and quotes."""
    is_simple = isinstance(annotation, type) and not hasattr(annotation, "__args__")
    text = annotation.__name__ if is_simple and isinstance(annotation, type) else str(annotation)
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Za-z])", "", text.replace("'", ""))


def _wrapped(text: str) -> str:
    head, _, rest = text.partition("(")
    inside, _, tail = rest.rpartition(")")
    lines = "".join(f"    {part},\n" for part in _split(inside))
    return f"{head}(\n{lines}){tail}"


def _split(text: str) -> list[str]:
    """At the commas that stand outside all brackets."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]
