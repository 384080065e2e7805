"""`headrace diff`: what would an apply change?"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.failures import FAILED, USAGE, report
from headrace.cli.options import DEFAULT_HOME, Home, Json, Server, Tuned

if TYPE_CHECKING:
    from rich.text import Text

CHANGES = 1
_CONTEXT_LINES = 3
_ANY_WIDTH = 1 << 20
_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def diff(
    file: Annotated[
        Path,
        typer.Option(
            "--file", "-f", help="The spec file.", exists=True, dir_okay=False, show_default=False
        ),
    ],
    *,
    tuned: Tuned = False,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what `apply` would change; nothing is served differently.

    Models that lie in files are stored as versions, as `apply` would; a second `diff` finds them.

    Exit status, as `kubectl diff` has it: 0 no changes; 1 changes; 2 the spec or the command line
    is wrong; 3 not running.

    For example:

        headrace diff -f headrace.yaml

        headrace diff -f headrace.yaml || headrace apply -f headrace.yaml --wait
    """
    from headrace.core import HeadraceError

    try:
        found = _ask(file, server, home, tuned=tuned)
    except HeadraceError as error:
        code = report(error, debug=False)
        raise typer.Exit(USAGE if code == FAILED else code) from None
    _print(found, json=json)
    if found["changes"]:
        raise typer.Exit(CHANGES)


def _ask(file: Path, server: str | None, home: Path, *, tuned: bool) -> dict[str, Any]:
    from headrace.cli.connection import find_target
    from headrace.cli.output import progress
    from headrace.cli.spec import document_for, read_spec, tuned_spec

    spec = read_spec(file)
    target = find_target(server, home)
    if tuned:
        spec = tuned_spec(spec, target)
    api = target.management()
    document = document_for(api, spec)
    with progress("comparing"):
        return api.post("/api/v1/diff", document, timeout_s=300.0)


def _print(found: Mapping[str, Any], *, json: bool) -> None:
    from headrace.cli.output import say, show, write_json

    if json:
        write_json(found)
        return
    text = diff_text(found)
    if text.plain:
        show(text)
    for change in found["changes"] or ["no changes"]:
        say(change)


def diff_text(found: Mapping[str, Any]) -> "Text":
    """The endpoints' parts of the spec, before and after, as a unified diff with colours."""
    from rich.text import Text

    lines = [
        line
        for name, change in found["endpoints"].items()
        for line in _endpoint_lines(name, change["before"], change["after"])
    ]
    return Text("\n").join(
        Text(line, style="bold" if line[:3] in {"---", "+++"} else _STYLES.get(line[:1], ""))
        for line in lines
    )


def _endpoint_lines(
    name: str, before: Mapping[str, Any] | None, after: Mapping[str, Any] | None
) -> Iterator[str]:
    import difflib

    yield from difflib.unified_diff(
        _yaml_lines(before),
        _yaml_lines(after),
        fromfile=f"{name} (now)",
        tofile=f"{name} (then)",
        n=_CONTEXT_LINES,
        lineterm="",
    )


def _yaml_lines(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return []
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.width = _ANY_WIDTH  # a path that is broken into lines could not be searched for
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its types lag behind
    stream = io.StringIO()
    yaml.dump(dict(entry), stream)
    return stream.getvalue().splitlines()
