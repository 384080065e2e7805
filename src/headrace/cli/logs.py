"""`headrace logs`: what gateway, control plane and replicas say, in one stream."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from typing import Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Home, LogFormat, LogFormatOption


def logs(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Only this process, by its name in `headrace status --json`.",
            show_default="all of them",
        ),
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many lines.")] = 100,
    log_format: LogFormatOption = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the newest log lines of all processes.

    For example:

        headrace logs -f

        headrace logs gateway --tail 20
    """
    from headrace.cli.output import write
    from headrace.cli.running import management

    lines = management(home).lines(
        "/api/v1/logs",
        follow=int(follow),
        tail=tail,
        source=source,
        format=log_format or LogFormat.TEXT,
    )
    for line in lines:
        write(line)
