"""The reference page of all commands, from the commands themselves."""

from collections.abc import Iterator
from typing import Any

import typer


def reference() -> str:
    """All commands and options as Markdown."""
    from headrace.cli.app import app  # noqa: PLC0415  # it imports this module's package

    command = typer.main.get_command(app)
    return "\n".join(_page(command, "headrace", 2)).rstrip() + "\n"


def _page(command: Any, path: str, level: int) -> Iterator[str]:  # noqa: ANN401  # click's, wherever typer keeps it
    context = typer.Context(command, info_name=path)
    yield f"{'#' * level} `{path}`"
    yield ""
    yield f"    {' '.join([path, *command.collect_usage_pieces(context)])}"
    yield ""
    yield from _text(command.help or "")
    if command.epilog:
        yield from _text(command.epilog)
    lists_hidden = any("--help-all" in parameter.opts for parameter in command.params)
    rows = [
        _row(parameter)
        for parameter in command.params
        if "--help" not in parameter.opts
        and (lists_hidden or not getattr(parameter, "hidden", False))
    ]
    if rows:
        yield "| argument or option | meaning | environment | default |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    for name, child in getattr(command, "commands", {}).items():
        yield from _page(child, f"{path} {name}", min(level + 1, 4))


def _text(text: str) -> Iterator[str]:
    yield from text.replace("\b", "").strip().splitlines()
    yield ""


def _row(parameter: Any) -> str:  # noqa: ANN401  # as above
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    default = parameter.show_default if isinstance(parameter.show_default, str) else ""
    if not default and parameter.default not in (None, "", False) and parameter.show_default:
        default = str(getattr(parameter.default, "value", parameter.default))
    cells = (names, parameter.help or "", _code(parameter.envvar), _code(default))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _code(text: object) -> str:
    return f"`{text}`" if text else ""
