"""Commands and options as Markdown."""

from collections.abc import Iterator
from typing import Any

import typer

from headrace.cli.app import app


def command_sections() -> str:
    """All commands and options."""
    command = typer.main.get_command(app)
    return "\n".join(_page(command, "headrace", 2)).rstrip() + "\n"


def _page(command: Any, path: str, level: int) -> Iterator[str]:  # noqa: ANN401  # click's, wherever typer keeps it
    context = typer.Context(command, info_name=path)
    yield f"{'#' * level} `{path}`"
    yield ""
    yield f"    {' '.join([path, *command.collect_usage_pieces(context)])}"
    yield ""
    for text in (command.help or "", command.epilog):
        if text is not None:
            yield from text.replace("\b", "").strip().splitlines()
            yield ""
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


def _row(parameter: Any) -> str:  # noqa: ANN401  # as above
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    if parameter.param_type_name == "argument":
        names = f"`{parameter.metavar or parameter.name.upper()}`"
    default = parameter.show_default if isinstance(parameter.show_default, str) else ""
    if not default and parameter.default not in (None, "", False) and parameter.show_default:
        default = str(getattr(parameter.default, "value", parameter.default))
    texts = (f"`{text}`" if text else "" for text in (parameter.envvar, default))
    cells = (names, parameter.help or "", *texts)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
